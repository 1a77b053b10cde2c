"""What a giver's engine prints, as much of it as the caller may have, on its way into his pipe."""

import fcntl
import os
import select
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final, NamedTuple, cast

from capkeep.engines import gives
from capkeep.engines.giving import Node
from capkeep.errors import Failure, StepError
from capkeep.kernel.peer import Peer
from capkeep.kernel.pipes import enlarge
from capkeep.rooms import rights
from capkeep.rooms.calls import Caller
from capkeep.rooms.engine import RunningEngine
from capkeep.rooms.parcel import ATTRIBUTES, END, PART, Item, fitted, head, names_of
from capkeep.rooms.pipe import take_pipe
from capkeep.rooms.restorer import nanoseconds
from capkeep.values import is_at_or_below

if TYPE_CHECKING:
    import tarfile

SECONDS: Final = 12 * 3600  # of all that is given
STALL_SECONDS: Final = 60.0  # in which the caller takes nothing, before he is left
TICK_SECONDS: Final = 1.0
TOLD: Final = 1000  # names of what is left out
_ATTRIBUTE: Final = "SCHILY.xattr."
_NO_FILES: Final = frozenset(("fifo", "dev", "chardev", "socket"))


class Outflow:
    """The way to the caller. A context: leaving it closes the pipe."""

    def __init__(self, caller: Caller, peer: Peer) -> None:
        self._caller, self._peer = caller, peer
        self._gives = gives(caller.engine.name)
        self._others = caller.room.heard()
        self._until = time.monotonic() + SECONDS
        self._ticked = 0.0
        self._pipe = -1
        self.count = self.bytes = self.left_out = self.attributes_left_out = 0

    def __enter__(self) -> "Outflow":
        self._pipe = take_pipe(self._caller.room)
        enlarge(self._pipe)
        flags = fcntl.fcntl(self._pipe, fcntl.F_GETFL)
        fcntl.fcntl(self._pipe, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)

    def end(self) -> None:
        """Say that it is all."""
        self._send(END)

    def give(self, snapshot: str, path: str, node: Node, *, firm: bool) -> None:
        """What may be read of an entry that may be read itself. Raises StepError, Stopped.

        `firm`: nobody but root could have exchanged what is in it (`rights.keeps_firm`).
        """
        if node.kind == "file" and not self._gives.plain_files:
            self._archived(snapshot, path)
            return
        item = Item(
            path=path, kind=node.kind, mode=node.mode, uid=node.uid, gid=node.gid,
            mtime_ns=nanoseconds(node.mtime) or 0, link=node.link,
            size=node.size if node.kind == "file" else 0,
            listed=any(rights.is_list(name) for name, _ in node.attributes),
            attributes=tuple(
                (name, b64decode(value))
                for name, value in node.attributes if name.startswith(ATTRIBUTES)
            ),
        )  # fmt: skip
        self._announce(item)
        if node.kind == "file":
            self._file(snapshot, path, node.size)
        elif node.kind == "dir":
            self._below(snapshot, path, firm=firm)

    # -- what the engine prints

    def _file(self, snapshot: str, path: str, size: int) -> None:
        with self._content(snapshot, path) as read:
            while part := read(PART):
                size -= len(part)
                if size < 0:
                    break
                self._send(part)
        if size:
            raise StepError(Failure.DAMAGED, f"{path} has another size than the snapshot says")

    def _below(self, snapshot: str, path: str, *, firm: bool) -> None:
        """All that is in a directory: what is in a closed one is not even counted."""
        no_files = set() if self._gives.kinds_in_archives else self._no_files(snapshot, path)
        above = [_Above(path, firm, True)]
        with self._members(snapshot, path) as (archive, members):
            for member in members:
                self._member(archive, member, path, above, no_files)

    def _archived(self, snapshot: str, path: str) -> None:
        """A file that may be read, of an engine that hands out archives alone."""
        with self._members(snapshot, path) as (archive, members):
            for member in members:
                if _path(member) != path:
                    raise ValueError("a member is not where it belongs")
                if member.isreg():
                    self._pass(archive, member)
                else:  # nobody can tell whose content it is
                    self._leave_out(path)

    @contextmanager
    def _members(
        self, snapshot: str, path: str
    ) -> "Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]":
        """The archive that the engine prints, and what is in it, each once. Raises StepError."""
        import tarfile

        with self._content(snapshot, path) as read:
            try:
                archive = tarfile.open(  # noqa: SIM115 - it is a view of what is read
                    fileobj=cast("IO[bytes]", _Stream(read)), mode="r|", bufsize=PART,
                    encoding="utf-8", errors="surrogateescape",
                )  # fmt: skip
                yield archive, _each(archive)
            except (tarfile.TarError, ValueError) as error:
                raise StepError(Failure.ENGINE, f"the engine's archive is none: {error}") from error
            while read(PART):  # zeros after its end
                pass

    def _member(
        self,
        archive: "tarfile.TarFile",
        member: "tarfile.TarInfo",
        top: str,
        above: "list[_Above]",
        no_files: set[str],
    ) -> None:
        path = _path(member)
        if path == top:
            return
        folder = path.rpartition("/")[0]
        while above and above[-1].path != folder:
            above.pop()
        if not is_at_or_below(path, top) or not above:
            raise ValueError("a member is not where it belongs")
        firm, seen = above[-1].firm, above[-1].open
        kind = _kind(member)
        node = rights.Node(
            member.uid, member.gid, member.mode & 0o7777, _list_of(member.pax_headers)
        )
        want = rights.WANTED.get(kind) if _shown(path) not in no_files else None
        given = (
            want is not None
            and rights.may(self._peer, node, want)
            and (firm or node.uid == self._peer.uid)
        )
        if kind == "dir":
            above.append(_Above(path, firm and rights.keeps_firm(node), seen and given))
        if not seen:
            return
        if not given:
            self._leave_out(path if firm or node.uid == self._peer.uid else "")
            return
        self._pass(archive, member)

    def _pass(self, archive: "tarfile.TarFile", member: "tarfile.TarInfo") -> None:
        """Hand a member on, and what it holds."""
        path, kind = _path(member), _kind(member)
        size = member.size if kind == "file" else 0
        headers = member.pax_headers
        self._announce(Item(
            path=path, kind=kind, mode=member.mode & 0o7777, uid=member.uid, gid=member.gid,
            mtime_ns=int(member.mtime * 1_000_000_000), size=size, link=member.linkname,
            listed=_list_of(headers) is not rights.NO_ACL,
            attributes=tuple(
                (name.removeprefix(_ATTRIBUTE), os.fsencode(value))
                for name, value in headers.items() if name.startswith(_ATTRIBUTE + ATTRIBUTES)
            ),
        ))  # fmt: skip
        content = archive.extractfile(member) if kind == "file" else None
        while content and (part := content.read(PART)):
            size -= len(part)
            self._send(part)
        if size:
            raise StepError(Failure.DAMAGED, f"{path} has another size than the snapshot says")

    def _no_files(self, snapshot: str, path: str) -> set[str]:
        """Paths of what looks like an empty file in restic's archives, and is none."""
        found: set[str] = set()
        engine = self._caller.engine

        def take(stream: str, line: bytes) -> None:
            entry = engine.parse_ls_line(line) if stream == "stdout" else None
            if entry and entry.kind in _NO_FILES and is_at_or_below(entry.path, _shown(path)):
                found.add(entry.path)

        command = engine.ls(self._caller.call, snapshot)
        self._caller.raise_for(self._caller.run(command, take, SECONDS, tell=False), ())
        return found

    @contextmanager
    def _content(self, snapshot: str, path: str) -> Iterator[Callable[[int], bytes]]:
        """A function that reads what the engine prints. Raises StepError where it fails."""
        caller = self._caller
        command = self._gives.content(caller.call, snapshot, path)
        outlet, inlet = os.pipe()
        tail: list[str] = []

        def take(_stream: str, line: bytes) -> None:
            tail.append(line.decode(errors="replace"))
            del tail[:-40]

        try:
            try:
                process = caller.started(command, tell=False, output=inlet)
                engine = process.__enter__()
            finally:
                os.close(inlet)
            try:
                yield lambda size: self._read(outlet, engine, take, size)
                while engine.open_fds():
                    self._wait((), (), engine, take)
                caller.raise_for(engine.end(), tuple(tail))
            finally:
                process.__exit__(None, None, None)
        finally:
            os.close(outlet)

    def _read(
        self, outlet: int, engine: RunningEngine, take: Callable[[str, bytes], None], size: int
    ) -> bytes:
        while True:
            if outlet in self._wait((outlet,), (), engine, take):
                return os.read(outlet, size)

    # -- what the caller takes

    def _announce(self, item: Item) -> None:
        fit = fitted(item)
        if lost := len(item.attributes) - len(fit.attributes):
            self.attributes_left_out += lost
            text = f"{lost} attributes are left out, which are too much together: {item.path}"
            self._caller.room.tell({"event": "warning", "text": text})
        self._send(head(fit))
        self.count += 1
        self.bytes += item.size

    def _leave_out(self, path: str) -> None:
        """Count it, and name it if its name is nobody's secret."""
        self.left_out += 1
        if path and self.left_out <= TOLD:
            self._caller.room.tell({"event": "left-out", "path": path})

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        moved = time.monotonic()
        while view:
            try:
                view = view[os.write(self._pipe, view) :]
                moved = time.monotonic()
            except BlockingIOError:
                self._wait((), (self._pipe,), None, None)
                if time.monotonic() - moved > STALL_SECONDS:
                    raise StepError(Failure.TIMEOUT, "the caller does not take it") from None
            except BrokenPipeError:
                raise StepError(Failure.STOPPED, "the caller takes no more") from None

    def _wait(
        self,
        sources: tuple[int, ...],
        sinks: tuple[int, ...],
        engine: RunningEngine | None,
        take: Callable[[str, bytes], None] | None,
    ) -> set[int]:
        """Those of the sources and sinks that are ready, if any is within a second; hears all others."""
        poll = select.poll()
        said = engine.open_fds() if engine else ()
        for fd in (*sources, *said, *self._others):
            poll.register(fd, select.POLLIN)
        for fd in sinks:
            poll.register(fd, select.POLLOUT)
        ready = {fd for fd, _ in poll.poll(TICK_SECONDS * 1000)}
        for fd in ready & self._others.keys():
            self._others[fd]()
        for fd in ready & set(said):
            if engine and take:
                engine.feed(fd, take)
        now = time.monotonic()
        if now - self._ticked >= TICK_SECONDS:
            self._ticked = now
            self._caller.room.alive()
            if now > self._until:
                raise StepError(Failure.TIMEOUT, "it took longer than a giver's time limit")
        return ready & {*sources, *sinks}


class _Above(NamedTuple):
    """A directory that the archive is in."""

    path: str
    firm: bool
    open: bool  # it is given, and what is in it as far as that may be read


class _Stream:
    """As much of a file as tarfile asks for."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        return self._read(size)


def _each(archive: "tarfile.TarFile") -> "Iterator[tarfile.TarInfo]":
    """Its members, which it forgets."""
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def _path(member: "tarfile.TarInfo") -> str:
    """Raises ValueError for what is none."""
    path = "/" + member.name.strip("/")
    names_of(path)
    return path


def _kind(member: "tarfile.TarInfo") -> str:
    if member.isreg():
        return "file"
    if member.isdir():
        return "dir"
    return "symlink" if member.issym() else ""


def _list_of(headers: "Mapping[str, str]") -> rights.Acl | rights.Unknown | None:
    """A member's access control list; none where the archive names none, which names all."""
    return rights.from_attributes(
        (name.removeprefix(_ATTRIBUTE), os.fsencode(value)) for name, value in headers.items()
    )


def _shown(path: str) -> str:
    """A path as the engine lists it: what is not UTF-8 it lists as U+FFFD."""
    with suppress(UnicodeEncodeError):
        path.encode()
        return path
    return os.fsencode(path).decode(errors="replace")
