"""The prover: restores a part of a snapshot for a moment, and compares it with what it should be.

No capability on the host and no network. In a user namespace of its own it can give restored files
their owners, modes, attributes and capabilities for real; what such a namespace cannot give is compared
with the snapshot's own words, and counted apart. What is restored is gone when the room ends; what a
killed one has left goes when the next one starts.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Final

from capkeep.engines.base import Entry, Event, Progress, RestoreReader, Unreadable, Unset
from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.kernel.ownership import Namespace, keep
from capkeep.plan.model import Brief, Job
from capkeep.rooms.base import EngineRoom, option, option_list, serve
from capkeep.rooms.calls import Caller, done, remove_tree
from capkeep.rooms.choice import DEVICES, Choice
from capkeep.rooms.listing import word_for
from capkeep.rooms.probe import probe
from capkeep.rooms.protocol import Message, ProtocolError, encode
from capkeep.rooms.reload import Loaded
from capkeep.rooms.restorer import FOREIGN_OWNER, UNKNOWN, differences_of
from capkeep.rooms.sampling import batches
from capkeep.rooms.sums import BATCH, MANIFEST, describe, file_sum, key_of, text_sum
from capkeep.rooms.viewer import snapshot_name

FILES_AT_ONCE: Final = 5000  # in one call of the engine
TEXT_AT_ONCE: Final = 256 << 10  # characters of their names, which are arguments (execve(2))
DIFFERENCES_TOLD: Final = 10_000
PROGRESS_SECONDS: Final = 0.2
LIST_SECONDS: Final = 600
NO_IDS: Final = (
    "the prover has no ids of its own to give: owners are compared by the snapshot's own words"
)
CAPABILITY: Final = "security.capability"
NO_OWNER: Final = re.compile(r"lchown .*: operation not permitted$", re.IGNORECASE | re.DOTALL)
OTHER_KEY: Final = "what was read at backup time is not compared: the password was another one then"
# Which attributes no process without privilege on the host can write (xattr(7)), as engines say it.
FOREIGN_ATTRIBUTE: Final = re.compile(
    r"\b(trusted|security)\.[\w.]+.*(operation not permitted|permission denied)"
    r"|(operation not permitted|permission denied).*\b(trusted|security)\."
    # An ACL that names whom the namespace has not (posix_acl_from_xattr, fs/posix_acl.c).
    r"|\bsystem\.posix_acl_(access|default).*invalid argument",
    re.IGNORECASE | re.DOTALL,
)


def main() -> int:
    """A prover's whole life."""
    namespace, why = None, ""
    if _may_map():
        try:
            namespace = Namespace()
        except OSError as error:
            why = error.strerror or str(error)

    def become(brief: Brief) -> Brief:
        return _become(brief, namespace, why)

    actions = {"choose": choose, "drill": drill, "wipe": wipe, "probe": probe}
    return serve(actions, seccomp.Profile.RESTORE, become)


def _may_map() -> bool:
    """Whether this process was started with what a namespace's ids need."""
    from capkeep.kernel.facts import own_bounding

    return "CAP_SETUID" in own_bounding()


def _become(brief: Brief, namespace: Namespace | None, why: str) -> Brief:
    """Enter the namespace; without one hold nothing, and say so. Raises StepError."""
    grant = brief.room.grant
    if not grant.subordinate[1]:
        return brief
    try:
        if namespace is not None:
            namespace.enter(grant.uid, grant.gid, grant.subordinate, grant.capabilities)
            return brief
        keep(())
    except OSError as error:
        raise StepError(
            Failure.WEAKENED, f"{brief.room.name} has not got its user namespace: {error}"
        ) from error
    walls = brief.walls._replace(namespaces=tuple(n for n in brief.walls.namespaces if n != "user"))
    less = grant._replace(capabilities=(), subordinate=(0, 0))
    room = brief.room._replace(grant=less)
    reason = (f"this kernel gives no user namespace ({why}): owners are compared with the snapshot's"
              " own words only")  # fmt: skip
    return brief._replace(room=room, walls=walls, left_out=(("user namespace", reason),))


def scratch_of(brief: Brief, job: Job) -> str:
    """Where the job's drills restore: a directory that is there as long as a drill is."""
    assert job.drill is not None, "only jobs with drills are asked for"
    folder = brief.room.grant.write[0]
    if job.drill.scratch:
        folder = f"{job.drill.scratch}/{brief.room.name}"
    return f"{folder}/restored"


def _job(room: EngineRoom, request: Message) -> Job:
    name = option(request, "job", default="")
    job = next((j for j in room.brief.jobs if j.name == name and j.drill), None)
    if job is None:
        raise ProtocolError("no such job has drills here")
    return job


def wipe(room: EngineRoom, request: Message) -> Message:
    """Remove what a drill that was killed has left."""
    _wipe(scratch_of(room.brief, _job(room, request)))
    return {"exit_code": 0, "failure": None, "text": "", "engine": "", "engine_words": "",
            "summary": {}, **room.finish_wire()}  # fmt: skip


def _wipe(scratch: str) -> None:
    """What a drill that was killed may have left: its files, and a way in for its servers."""
    remove_tree(scratch)
    if os.stat(folder := os.path.dirname(scratch)).st_mode & 0o077:
        from capkeep.rooms.ground import close_up

        close_up(f"{folder}/restored")


def choose(room: EngineRoom, request: Message) -> Message:
    """One of the older snapshots that are still there; the newest where there is none."""
    _job(room, request)
    snapshot, moment = snapshot_name(request, "snapshot"), option(request, "moment", default=0)
    older = dict(zip(option_list(request, "older"), option_list(request, "moments"), strict=True))
    caller = Caller(room)
    room.await_vault()
    said = caller.output(caller.engine.snapshots(caller.call), LIST_SECONDS)
    there = [s.id for s in caller.engine.parse_snapshots(said)]
    known = [i for i in there if any(i.startswith(o) for o in older if o)]
    if known:
        import random

        seed = option(request, "seed", default="")
        chooser = random.Random(f"snapshot {seed}")  # noqa: S311 (to be repeated)
        snapshot = chooser.choice(known)
        moment = next(int(m) for o, m in older.items() if snapshot.startswith(o))
    return done(caller, "", facts={"snapshot": snapshot, "moment": moment})


def drill(room: EngineRoom, request: Message) -> Message:
    """Choose, restore, compare; what was restored is told in sums, to be compared with what is live."""
    job = _job(room, request)
    if not room.brief.room.grant.subordinate[1]:
        reasons = [reason for _, reason in room.brief.left_out]
        room.tell({"event": "warning", "text": (*reasons, NO_IDS)[0]})
    scratch = scratch_of(room.brief, job)
    _wipe(scratch)
    os.mkdir(scratch, 0o700)
    try:
        caller = Caller(room)
        room.await_vault()
        work = _Drill(caller, job, request, scratch)
        snapshot = work.choose_snapshot(request)
        work.list_snapshot()
        work.restore_all()
        work.refuse_nothing()
    finally:
        remove_tree(scratch)
    facts = {"snapshot": snapshot, **work.facts()}
    text, engine = work.sentence(), caller.name()
    if work.unsound and not work.differing:
        return {
            **done(caller, text, engine=engine), "failure": Failure.DUMP, "facts": facts,
            "hint": "the files are as in the snapshot: `capkeep restore` the dump and load it by hand,"
            " which says more than may be told here",
        }  # fmt: skip
    if work.differing:
        return {
            **done(caller, text, engine=engine), "failure": Failure.DAMAGED, "facts": facts,
            "hint": "both sides of each are in the log (`capkeep log`); `capkeep check` with"
            ' read-data = "all" tells whether the repository itself is damaged',
        }  # fmt: skip
    return done(caller, text, facts=facts, engine=engine)


class _Drill:
    """One drill under way."""

    def __init__(self, caller: Caller, job: Job, request: Message, scratch: str) -> None:
        assert job.drill is not None, "only jobs with drills are asked for"
        self._caller, self._job, self._settings = caller, job, job.drill
        self._room, self._scratch = caller.room, scratch
        self._seed = option(request, "seed", default="")
        self._whole = option(request, "all", default=False) or job.drill.whole
        password = dict(self._room.brief.secrets).get("password", "")
        self._key = key_of(password, option(request, "nonce", default=""))
        # What a reader has read at backup time, and the key of its sums.
        self._read, self._read_key = frozenset(option_list(request, "read")), b""
        if self._read:
            nonce = option(request, "read_nonce", default="")
            self._read_key = key_of(password, nonce, MANIFEST)
            if text_sum(MANIFEST, self._read_key) != option(request, "read_check", default=""):
                self._read = frozenset()
                caller.room.tell({"event": "message", "text": OTHER_KEY})
        self._until = time.monotonic() + job.drill.timeout_seconds
        self._listing = f"{caller.scratch}/listing"
        self._owners = _Owners(self._room.brief)
        self._word = ""
        self._moment = 0  # when its backup began, in seconds since 1970; 0 where nobody knows
        self._sample: list[Entry] = []
        self._choice: Choice | None = None
        self._all_at_once = False
        self._loaded = Loaded(caller.room, self._until, scratch)
        self.differing = 0
        self.unsound = 0  # of what is in dumps
        self._first = ""  # of those
        self._entries = self._files = self._bytes = 0  # that were restored and compared
        self._compared = 0  # of them, those of the job itself
        kinds = ("owners", "attributes", "devices", "names", "large", "links")
        self._apart = dict.fromkeys(kinds, 0)
        self._restoring = 0.0
        self._telling: list[Message] = []
        self._told_size = 0
        self._complaints: _Complaints | None = None
        self._ticked = self._shown = 0.0

    # -- choosing

    def choose_snapshot(self, request: Message) -> str:
        """The one that is asked for. Raises StepError."""
        snapshot = snapshot_name(request, "snapshot")
        self._moment = option(request, "moment", default=0)
        self._word = word_for(self._caller, snapshot)
        return snapshot

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def list_snapshot(self) -> None:
        """Ask the engine what there is, and choose on the way. Raises StepError."""
        tail: list[str] = []
        dumps = self._job.dumps if self._settings.dumps else ()
        staged = (self._room.brief.places.staging(name) for name in dumps)
        folders = [f"{path}/last" for path in staged if path in self._job.include]  # not streamed
        with open(self._listing, "w", encoding="utf-8", errors="surrogateescape") as file:
            choice = Choice(
                self._settings, self._seed, whole=self._whole, dumps=folders, listing=file,
                moment=self._moment, read=self._read,
            )  # fmt: skip

            def take(stream: str, line: bytes) -> None:
                entry = self._caller.engine.parse_ls_line(line) if stream == "stdout" else None
                if entry is not None:
                    choice.take(entry)
                elif stream == "stderr":
                    tail.append(line.decode(errors="replace"))
                    del tail[:-40]

            engine, call = self._caller.engine, self._caller.call
            code = self._caller.run(engine.ls(call, self._word), take, self._left())
        self._caller.raise_for(code, tuple(tail))
        self._sample = choice.chosen(self._differs)
        self._choice = choice
        self._all_at_once = self._whole and choice.held["bytes"] <= self._settings.max_bytes

    # -- restoring

    def restore_all(self) -> None:
        """Part after part, each compared and removed before the next. Raises StepError."""
        assert self._choice is not None, "the snapshot was listed"
        self._restore_dumps(self._choice.dumps)
        if self._all_at_once:
            self._restore((), self._listed)
            return
        if self._whole:
            kept: list[Entry] = []
            size = 0
            for entry in filter(self._choice.may_be_chosen, self._listed()):
                if len(kept) >= FILES_AT_ONCE or (
                    kept and size + entry.size > self._settings.max_bytes
                ):
                    self._restore_these(kept)
                    kept, size = [], 0
                kept.append(entry)
                size += entry.size
            self._restore_these(kept)
            return
        self._restore_these(self._sample)

    def refuse_nothing(self) -> None:
        """A drill that has compared no file of its job has proven nothing. Raises StepError."""
        assert self._choice is not None, "the snapshot was listed"
        own = bool(self._job.canary)  # a file of our own, which proves none of the job's
        held = self._choice.held
        expected = held["files"] > own or not held["entries"]
        if expected and not self._compared and not self.differing and not self.unsound:
            raise StepError(
                Failure.ENGINE,
                f"nothing was proven: none of {max(0, held['files'] - own)} files was restored by itself",
                hint="larger files need a larger max-size; `capkeep ls` shows what there is",
            )

    def _restore_dumps(self, dumps: dict[str, list[Entry]]) -> None:
        """Each as a whole, and loaded."""
        for path, entries in dumps.items():
            if sum(entry.size for entry in entries) > self._settings.max_bytes:
                self._apart["large"] += len(entries)
                text = f"it is larger than max-size, {self._settings.max_bytes} bytes"
                self._loaded.leave_out(path, text)
            elif entries:
                self._restore((path,), entries.__iter__, path)
            else:
                text = f"the snapshot holds nothing of the dump at {path}: there is nothing to load"
                self._room.tell({"event": "warning", "text": text})
        if self._settings.dumps:
            for name in self._job.dumps:
                path = self._room.brief.places.staging(name)
                if path not in self._job.include:
                    self._loaded.leave_out(path, "it is streamed, into snapshots of its own")

    def _restore_these(self, entries: list[Entry]) -> None:
        for part in batches(entries, FILES_AT_ONCE, self._settings.max_bytes, TEXT_AT_ONCE):
            self._restore(tuple(entry.path for entry in part), part.__iter__)

    def _listed(self) -> Iterator[Entry]:
        with open(self._listing, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                yield Entry(*json.loads(line))

    def _restore(
        self, paths: tuple[str, ...], entries: Callable[[], Iterator[Entry]], dump: str = ""
    ) -> None:
        """Restore these and compare them; a `dump` is loaded, which may change it."""
        caller = self._caller
        target = f"{self._scratch}/part"
        os.mkdir(target, 0o700)
        abilities = caller.abilities()
        command = caller.engine.restore(
            caller.call, self._word, target, include=paths, verify=True,
            sparse=abilities.sparse_restore, plain=abilities.plain_restore,
            files=bool(paths) and not dump,
        )  # fmt: skip
        devices = {e.path for e in entries() if e.kind in DEVICES} if not paths else set()
        own_ids = bool(self._room.brief.room.grant.subordinate[1])
        reader = _Complaints(caller.engine.read_restore(), devices, own_ids=own_ids)

        def take(stream: str, line: bytes) -> None:
            for event in reader.feed(stream, line):
                if isinstance(event, Progress):
                    self._show(event)

        begun = time.monotonic()
        code = caller.run(command, take, self._left())
        self._restoring += time.monotonic() - begun
        self._apart["attributes"] += len(reader.bare | reader.unset.keys())
        self._complaints = reader
        for path, detail in reader.others:
            self._differs(path, f"the engine could not restore it: {detail}")
        if not reader.others and not reader.explains(code):
            caller.raise_for(code, reader.tail)
        if not (dump and self._whole):  # else they are compared with everything
            self._compare(target, entries())
        if dump:
            self._loaded.load(target + dump, dump, self._does_not_load)
        remove_tree(target)

    def _show(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown >= PROGRESS_SECONDS:
            self._shown = now
            self._room.tell({"event": "progress", **progress._asdict()})

    # -- comparing

    def _alive(self) -> None:
        now = time.monotonic()
        if now - self._ticked >= 1.0:
            self._ticked = now
            self._room.alive()
            if now > self._until:
                raise StepError(Failure.TIMEOUT, "the drill took longer than its time limit")

    def _compare(self, target: str, entries: Iterator[Entry]) -> None:
        """Each with the snapshot's own words, and tell what it is."""
        digits = self._caller.engine.traits.mtime_digits
        for entry in entries:
            self._alive()
            if entry.kind in DEVICES or entry.kind == "socket" or UNKNOWN in entry.path:
                kind = "names" if UNKNOWN in entry.path else "devices"
                self._apart[kind] += self._all_at_once
                continue
            known = self._owners.can_be(entry)
            self._apart["owners"] += not known
            place = target + entry.path
            found = list(differences_of(entry, place, digits, owners=known))
            if found:
                self._differs(entry.path, "; ".join(found))
                continue
            self._entries += 1
            self._compared += entry.path != self._job.canary
            self._files += entry.kind == "file"
            self._bytes += max(0, entry.size) if entry.kind == "file" else 0
            self._tell_restored(entry, place)
        self._flush()

    def _tell_restored(self, entry: Entry, place: str) -> None:
        if entry.kind not in ("file", "symlink"):
            return
        try:
            said = describe(place, self._key, self._alive)
            if entry.path in self._read and entry.kind == "file":
                said["read"] = file_sum(place, self._read_key, self._alive)
        except OSError as error:
            self._differs(entry.path, f"what was restored cannot be read: {error.strerror}")
            return
        said |= {"path": entry.path, "uid": entry.uid, "gid": entry.gid}
        if self._caller.engine.traits.keeps_seconds:
            said["whole_seconds"] = True
            if entry.kind == "symlink":
                del said["mtime"]
        assert self._complaints is not None, "it was restored"
        if entry.path in self._complaints.bare:
            said.pop("attributes", None)
        without = self._complaints.unset.get(entry.path, [])
        if "CAP_SETFCAP" not in self._room.brief.room.grant.capabilities:
            without = [*without, CAPABILITY]
        said["without"] = without
        self._telling.append(said)
        self._told_size += len(encode(said))  # a file may have thousands of attributes
        if self._told_size > BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._telling:
            self._room.tell({"event": "restored", "files": self._telling})
        self._telling, self._told_size = [], 0

    def _differs(self, path: str, detail: str) -> None:
        self.differing += 1
        if self.differing <= DIFFERENCES_TOLD:
            self._room.tell({"event": "difference", "path": path, "detail": detail})

    def _does_not_load(self, path: str, detail: str) -> None:
        """A dump that is restored as it was, and is not what its dumper noted."""
        self.unsound += 1
        self._first = self._first or f"{path}: {detail}"
        if self.unsound <= DIFFERENCES_TOLD:
            self._room.tell({"event": "difference", "path": path, "detail": detail, "dump": True})

    # -- result

    def facts(self) -> Message:
        """What was done, in numbers."""
        assert self._choice is not None, "the snapshot was listed"
        apart = {k: v + self._choice.apart.get(k, 0) for k, v in self._apart.items()}
        return {
            "seed": self._seed, "depth": "all" if self._whole else "sample",
            "entries": self._entries, "files": self._files, "bytes": self._bytes,
            "held": self._choice.held, "apart": {k: v for k, v in apart.items() if v},
            "dumps": self._loaded.facts(), "differing": self.differing,
            "unsound": self.unsound,
            "restore_seconds": round(self._restoring, 3),
        }  # fmt: skip

    def sentence(self) -> str:
        """The same for people."""
        assert self._choice is not None, "the snapshot was listed"
        if self.differing:
            return f"{self.differing} of {self._entries + self.differing} files are not as in the snapshot"
        held, loaded = self._choice.held["entries"], self._loaded
        text = f"{self._entries} of {held} entries were restored as in the snapshot"
        if self.unsound:
            more = f" (and {self.unsound - 1} more)" if self.unsound > 1 else ""
            text += f", but {self._first}{more}"
        if loaded.databases:
            text += f"; {loaded.databases} databases with {loaded.rows} rows were loaded"
        if loaded.unproven:
            text += f"; not proven: {', '.join(map(self._named, loaded.unproven))}"
        return text

    def _named(self, path: str) -> str:
        """A dump by the name that it has in the configuration, and why nothing is known of it."""
        places = self._room.brief.places
        names = (n for n in self._job.dumps if f"{path}/".startswith(f"{places.staging(n)}/"))
        return f"dump {next(names, path)} ({self._loaded.unproven[path]})"


class _Owners:
    """Which owners this room can give to files."""

    def __init__(self, brief: Brief) -> None:
        self._grant = brief.room.grant

    def can_be(self, entry: Entry) -> bool:
        """Whether a restored file has the owner and group that it should have."""
        own = (self._grant.uid, self._grant.gid)
        count = self._grant.subordinate[1]
        return (entry.uid < count or entry.uid == own[0]) and (
            entry.gid < count or entry.gid == own[1]
        )


class _Complaints:
    """What an engine could not restore: what nobody can here, and what is a difference."""

    def __init__(self, reader: RestoreReader, devices: set[str], *, own_ids: bool = True) -> None:
        """`own_ids`: this room can give files to others."""
        self._reader = reader
        self._devices = devices
        self._own_ids = own_ids
        self.bare: set[str] = set()  # paths that may lack any attribute
        self.unset: dict[str, list[str]] = {}  # attributes, by path, that nobody can give here
        self.excused = 0
        self.others: list[tuple[str, str]] = []

    @property
    def tail(self) -> tuple[str, ...]:
        return self._reader.tail

    def explains(self, exit_code: int) -> bool:
        """Whether what is excused is why the engine failed: it came to its end all the same.

        An engine that was killed, or gave up, has not verified what it restored.
        """
        return bool(self.excused) and self._reader.only_lacks(exit_code)

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        """The events of a line that are no complaints."""
        events = self._reader.feed(stream, line)
        for event in events:
            if isinstance(event, Unreadable):
                self._complaint(event.path, event.detail)
            elif isinstance(event, Unset):
                self._lacks(event)
        return tuple(e for e in events if not isinstance(e, Unreadable | Unset))

    def _complaint(self, path: str, detail: str) -> None:
        foreign = FOREIGN_OWNER.search(detail) or (not self._own_ids and NO_OWNER.search(detail))
        if FOREIGN_ATTRIBUTE.search(detail):
            self.bare.add(path)
            self.excused += 1
        elif foreign or path in self._devices:
            self.excused += 1
        elif len(self.others) < DIFFERENCES_TOLD:
            self.others.append((path, detail))

    def _lacks(self, event: Unset) -> None:
        """An attribute by its name: the others of that file are compared."""
        detail = f"{event.attribute}: {event.detail}"
        if not FOREIGN_ATTRIBUTE.search(detail):
            if len(self.others) < DIFFERENCES_TOLD:
                self.others.append((event.path, detail))
            return
        self.excused += 1
        if event.attribute == CAPABILITY or event.attribute.startswith("system."):
            self.unset.setdefault(event.path, []).append(event.attribute)
