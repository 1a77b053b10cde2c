"""A session: the mirror becomes what the other half shows, and what it was before becomes increments."""

import io
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from capkeep.guest.rdiff.library import (
    Node,
    Repository,
    await_new_second,
    drop_unfinished,
    session_id,
    stamp,
    to_rorp,
)
from capkeep.guest.rdiff.wire import (
    Failed,
    Index,
    Meta,
    Pipes,
    Refused,
    Tree,
    from_plain,
    pieces,
    receive,
    send,
    text,
)

UNKEPT_TOLD: Final = 10_000
BATCH_LIMIT: Final = 10_000
COUNTS: Final = {
    "SourceFiles": "total_files", "NewFiles": "files_new", "ChangedFiles": "files_changed",
    "SourceFileSize": "bytes_processed", "TotalDestinationSizeChange": "bytes_stored",
    "DeletedFiles": "files_deleted", "Errors": "errors",
}  # fmt: skip


class Added(NamedTuple):
    """What a session has brought."""

    stored: int = 0  # bytes
    name: str = ""  # what the session is called; empty if none was made


def backup(end: Pipes, path: bytes, request: dict[str, object]) -> Added:
    """Make a session, or see what one would bring.

    Raises Failed, Refused, Gone, OSError; whatever happens, the next session puts it right.
    """
    host, tags = request.get("host"), request.get("tags")
    if not isinstance(host, str) or not isinstance(tags, list):
        raise Refused("a backup of nobody")
    if not all(isinstance(t, str) for t in tags) or len(tags) > 100:
        raise Refused("tags that are none")
    repository = Repository(path, write=True)
    try:
        dry_run = request.get("dry_run") is True
        repository.claim(host, tags, write=not dry_run)
        session = _Session(repository, end)
        if dry_run:
            send(end, {"done": {"summary": session.compare()}})
            return Added()
        try:
            done = session.run()
        except BaseException:
            drop_unfinished()
            raise
        send(end, {"done": done})
        return session.added
    finally:
        repository.close()


class _Session:
    def __init__(self, repository: Repository, end: Pipes) -> None:
        self._repository, self._end = repository, end
        self._tree = Tree()
        self._unkept: list[str] = []
        self._warnings: list[str] = []
        self.added = Added()

    def run(self) -> dict[str, object]:
        """The account that the other half gets."""
        from rdiff_backup import Globals, Time, log

        repository = self._repository
        before = repository.mirror_time()
        await_new_second(before)
        Time.set_current_time(None)
        now = int(Time.getcurtime())
        if before >= now:
            raise Failed(
                "engine", f"the newest session is of {stamp(before)}, later than this host's clock"
            )
        shadow = repository.shadow
        shadow._get_one_sig_fp = _no_signature  # noqa: SLF001
        log.ErrorLog._write = self._told  # noqa: SLF001
        repository.begin_owned()
        log.ErrorLog.open(Time.getcurtimestr(), compress=Globals.compression)
        if before:
            shadow.touch_current_mirror(repository.data, Time.getcurtimestr())
        signatures = shadow.get_sigs(repository.base, self._sources(), before, True)
        shadow.apply(repository.base, self._changes(signatures), repository.increments, before)
        if before:
            shadow.remove_current_mirror(repository.data)
        else:
            shadow.touch_current_mirror(repository.data, Time.getcurtimestr())
        shadow.close_statistics(time.time())
        log.ErrorLog.close()
        if given := repository.end_owned(now, first=not before):
            self._warnings.append(f"{given} files of the mirror were given to their owners")
        if repository.went_back:
            self._warnings.append(
                "the session before did not come to its end, and was taken back first"
            )
        found = counts(repository, now)
        self.added = Added(max(0, found.get("bytes_stored", 0)), session_id(now))
        return {
            "summary": {"time": now, "program": f"rdiff-backup {Globals.version}", **found},
            "unkept": self._unkept, "warnings": self._warnings,
        }  # fmt: skip

    def compare(self) -> dict[str, object]:
        """What a session would change, by the metadata alone."""
        before = self._repository.mirror_time()
        known = {m.where: m for m in self._repository.nodes(before)} if before else {}
        found = {"total_files": 0, "files_new": 0, "files_changed": 0, "bytes_processed": 0}
        for meta in self._listed():
            old = known.get(meta.where)
            found["total_files"] += 1
            found["bytes_processed"] += meta.size if meta.kind == "reg" else 0
            if old is None:
                found["files_new"] += 1
            elif (old.kind, old.mtime, old.perms, old.uid, old.gid) != (
                meta.kind, meta.mtime if meta.kind not in ("sym", "dev") else 0, meta.perms,
                meta.uid, meta.gid,
            ):  # fmt: skip
                found["files_changed"] += 1
        return {**found, "time": 0, "dry_run": True}

    # -- what comes from the other half

    def _listed(self) -> Iterator[Meta]:
        while True:
            send(self._end, {"ask": "more"})
            batch = receive(self._end)
            if not isinstance(batch, list) or len(batch) > BATCH_LIMIT:
                raise Refused("expected a list of nodes")
            if not batch:
                return
            for item in batch:
                yield self._tree.add(from_plain(item)._replace(sha1=""))

    def _sources(self) -> Iterator[Node]:
        return map(to_rorp, self._listed())

    def _changes(self, signatures: Iterator[Node]) -> Iterator[Node]:
        """For each node that rdiff-backup wants anew: what the other half has listed, and its content.

        Only what it has listed, and of the kind that it said then, so both agree on the tree.
        """
        from rdiff_backup import iterfile

        wanted: list[Node] = []
        for signature in signatures:
            if signature is iterfile.MiscIterFlushRepeat:
                yield from self._fetched(wanted)
                wanted = []
            else:
                wanted.append(signature)
        yield from self._fetched(wanted)

    def _fetched(self, signatures: list[Node]) -> Iterator[Node]:
        from rdiff_backup import hash as hashes

        nodes = deque(map(self._node, signatures))
        files = [node.index for node in nodes if node.isreg() and not node.isflaglinked()]
        if files:
            names = [text(b"/".join(index)) for index in files]
            send(self._end, {"ask": "send", "paths": names})
        for node in nodes:
            node.set_attached_filetype("snapshot")
            if node.isreg() and not node.isflaglinked():
                content = Content(self._end)
                try:
                    content.begin()
                except OSError:
                    continue  # told by the half that sees it; the mirror keeps what it had
                node.setfile(hashes.FileWrapper(content))
                yield node
                content.drain()
            else:
                yield node

    def _node(self, signature: Node) -> Node:
        from rdiff_backup import rpath

        source: Node | None = self._repository.shadow.CCPP.get_source_rorp(signature.index)
        node: Node = source.getRORPath() if source else rpath.RORPath(signature.index)
        if signature.isflaglinked():
            node.flaglinked(signature.get_link_flag())
        return node

    def _told(self, kind: str, rp: object, _why: object) -> None:
        """In place of rdiff-backup's error log: what could not be kept as it is.

        A special file that this user cannot make is in the metadata whole, and comes back from there.
        """
        if kind != "SpecialFileError" and len(self._unkept) < UNKEPT_TOLD:
            index: Index = getattr(rp, "index", ())
            self._unkept.append("/" + text(b"/".join(index)))


def _no_signature(_file: object) -> io.BytesIO:
    """The content comes whole: on one machine that is less work than to compare it."""
    return io.BytesIO()


class Content:
    """A file that comes over the wire; as much of a file object as rdiff-backup wants."""

    def __init__(self, end: Pipes) -> None:
        self._pieces = pieces(end)
        self._held = b""
        self._over = False

    def begin(self) -> None:
        """Wait for the first of it. Raises OSError if there is nothing."""
        self._fill()

    def read(self, size: int = -1) -> bytes:
        """Raises OSError where the other half could not read on."""
        while not self._over and (size < 0 or len(self._held) < size):
            self._fill()
        data = self._held if size < 0 else self._held[:size]
        self._held = self._held[len(data) :]
        return data

    def close(self) -> None:
        """Nothing to be closed: the wire goes on."""

    def drain(self) -> None:
        """Whatever has not been read."""
        while not self._over:
            try:
                self._fill()
            except OSError:
                return

    def _fill(self) -> None:
        try:
            self._held += next(self._pieces)
        except StopIteration:
            self._over = True
        except OSError:
            self._over = True
            raise


def counts(repository: Repository, when: int) -> dict[str, int]:
    """What rdiff-backup counted in a session; empty where that file is gone."""
    files = [rp for rp in repository.files(b"session_statistics") if rp.getinctime() == when]
    found: dict[str, int] = {}
    for file in files:
        for line in file.get_bytes().decode().splitlines():
            key, _, value = line.partition(" ")
            if key in COUNTS:
                found[COUNTS[key]] = int(float(value.split()[0]))
    return found
