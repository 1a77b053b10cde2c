"""The reader: may read every file of its job, has no network, and writes only its cache."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.engines.base import (
    Above,
    Cause,
    Engine,
    Event,
    Named,
    Progress,
    Said,
    Seen,
    Summary,
    Unreadable,
    Warned,
)
from capkeep.engines.causes import cause_of_errno
from capkeep.errors import EXIT_PARTIAL, Failure, StepError
from capkeep.kernel import mounts, seccomp
from capkeep.kernel.facts import OVERFLOW_ID
from capkeep.plan.model import Brief, Job, Mode, Starter, job_tag, stream_path, stream_tag
from capkeep.rooms.base import EngineRoom, option, serve
from capkeep.rooms.brief import read_brief
from capkeep.rooms.calls import HOUR, Caller
from capkeep.rooms.plain import opened
from capkeep.rooms.probe import probe
from capkeep.rooms.protocol import Message, is_file_name
from capkeep.values import is_at_or_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.rooms.manifest import Turn

PROGRESS_SECONDS: Final = 0.1  # at least, between two progress events
# An engine names some files for less than a look into the snapshot costs: a start, and its index.
NAMED_LIMIT: Final = 5_000
OWNERS_NAMED: Final = 3
UNSEEN: Final = "mounted since `capkeep apply`, and not seen in this room: apply again"
WRONG_OWNER: Final = "kept with a wrong owner, as its own is above 65535 or nobody: apply again"
CLOCK_TOLERANCE: Final = 5 * 10**9  # nanoseconds by which a clock may be put right in a backup
KINDS: Final = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "link"}


def main(read: Callable[[], Brief] = read_brief) -> int:
    """A reader's whole life; `read` finds its brief."""
    actions = {
        "backup": backup, "stream": stream, "sums": sums, "init": init, "probe": look_around,
    }  # fmt: skip
    return serve(actions, seccomp.Profile.READ, read=read)


def _tell_kept(room: EngineRoom, job: Job) -> None:
    """Tell a server that pulls what this host's own plan keeps: it may have another idea of that."""
    if room.brief.pulled:
        room.tell({
            "event": "kept", "include": list(job.include), "exclude": list(job.exclude),
            "one_file_system": job.one_file_system, "canary": bool(job.canary),
        })  # fmt: skip


def look_around(room: EngineRoom, request: Message) -> Message:
    """Show what this room can do, reading the canary included, without a backup."""
    job = room.brief.job
    assert job is not None, "a reader has a job"
    _tell_kept(room, job)
    if job.canary:
        _read_canary(room, job.canary)
    return probe(room, request)


def backup(room: EngineRoom, request: Message) -> Message:
    """Run the engine over the job's sources and report all that it said, for the gate to judge."""
    asked = boot_time()
    job = room.brief.job
    assert job is not None, "a reader has a job"
    dry_run = option(request, "dry_run", default=False)
    turn = option(request, "turn", default=-1)  # where it begins; none below 0
    seconds = option(request, "seconds", default=0)  # that all may take
    # About how much it will be, as the last time; 0 where nobody knows.
    expected = Expected(option(request, "files", default=0), option(request, "bytes", default=0))
    _tell_kept(room, job)
    _report_sources(room, job)
    if job.canary:
        _read_canary(room, job.canary)
    caller = Caller(room)
    reader = caller.engine.read_backup((job.canary,) if job.canary else ())
    hearing = _Hearing(room, expected)
    drills = job.drill is not None or room.brief.pulled  # of a server's drills it alone knows
    kept = _Kept(caller.engine, turn) if turn >= 0 and drills and not dry_run else None
    few = 0 < expected.files <= NAMED_LIMIT
    name = bool(kept or dry_run or few or not caller.engine.traits.names_dearly)

    def take(stream: str, line: bytes) -> None:
        for event in reader.feed(stream, line):
            hearing.take(event)
        if kept and stream == "stdout":
            kept.take(line)

    room.await_vault()
    visible = _visible(room, caller.engine, job)
    watch = (job.canary,) if job.canary else ()
    count = not expected.files or not _can_do_uncounted(caller)
    above = _above(caller, visible)
    command = caller.engine.backup(
        caller.call, visible, dry_run=dry_run, watch=watch, name=name, count=count, above=above,
        turn=turn if kept else -1,
    )  # fmt: skip
    program = caller.program()
    begun, steady = time.time_ns(), boot_time()
    code = caller.run(command, take, job.timeout_seconds)
    room.steady()
    if room.brief.mode is Mode.USER:
        _tell_foreign_owners(room, job)
    elif "user" in room.brief.walls.namespaces and not _knows_all_ids():
        _tell_lost_owners(room, job)
    found = caller.engine.diagnose(code, reader.tail, backup=True)
    if job.canary and hearing.snapshot and not name:
        hearing.look_up(caller, job.canary)
    engine = hearing.name(caller, program)
    result = {
        "exit_code": EXIT_PARTIAL if found is None and caller.engine.partial(code) else code,
        "failure": found.failure if found else None,
        "text": found.sentence if found else "",
        "engine_words": found.words if found else "",
        "engine": engine,
        **hearing.result(),
        **room.finish_wire(),
    }
    if kept and found is None and not caller.engine.partial(code):
        clock_kept = abs(time.time_ns() - begun - (boot_time() - steady)) < CLOCK_TOLERANCE
        if clock_kept:  # else times of change say nothing
            kept.tell(room, begun, asked + int(seconds * 10**9))
    return result


def boot_time() -> int:
    """Nanoseconds since the machine was started, by a clock that nobody sets (clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Kept:
    """The files that the engine names as kept, of which some are summed for drills.

    What that needs is loaded when the engine is at work.
    """

    def __init__(self, engine: Engine, begin: int) -> None:
        self._engine, self._begin = engine, begin
        self._turn: Turn | None = None

    def take(self, line: bytes) -> None:
        """A line of the engine's."""
        if name := self._engine.kept_file(line):
            if self._turn is None:
                from capkeep.rooms.manifest import Turn

                self._turn = Turn(self._begin)
            self._turn.take(name)

    def tell(self, room: EngineRoom, begun: int, until: int) -> None:
        """Sum those whose turn it is, if there is time.

        The engine began at `begun` (nanoseconds since 1970); all is to be over at the boot time `until`.
        """
        if self._turn is not None:
            from capkeep.rooms.manifest import SECONDS, tell_manifest

            if boot_time() + int(2 * SECONDS * 10**9) < until:
                tell_manifest(room, self._turn, begun)


def init(room: EngineRoom, _request: Message) -> Message:
    """Make the repository, for a server that has no password for it; its vault lets that be once."""
    from capkeep.rooms.calls import init as make

    job = room.brief.job
    if job is None or not room.brief.pulled:
        raise StepError(Failure.REFUSED, "a keeper makes this host's repositories")
    _tell_kept(room, job)
    return make(room)


def stream(room: EngineRoom, request: Message) -> Message:
    """Make a snapshot of what a dump's room writes into a pipe that the caller hands over.

    Whoever holds that pipe open until the dump is known to be whole, and leaves if it is not,
    sees to it that there is no snapshot of half a dump.
    """
    from capkeep.rooms.pipe import take_pipe

    job = room.brief.job
    assert job is not None, "a reader has a job"
    name, file = option(request, "dump", default=""), option(request, "file", default="")
    if name not in job.dumps or not is_file_name(file):
        raise StepError(Failure.REFUSED, "the job has no such dump to stream")
    tags = (*(t for t in job.tags if t != job_tag(job.name)), stream_tag(job.name, name))
    caller = Caller(room)
    reader = caller.engine.read_backup()
    hearing = _Hearing(room, Expected(0, 0))

    def take(stream: str, line: bytes) -> None:
        for event in reader.feed(stream, line):
            hearing.take(event)

    room.await_vault()
    source = take_pipe(room)
    command = caller.engine.backup_stream(
        caller.call, stream_path(name, file), job._replace(tags=tags)
    )
    try:
        code = caller.run(command, take, job.timeout_seconds, source=source)
    finally:
        os.close(source)
    found = caller.engine.diagnose(code, reader.tail)
    return {
        "exit_code": code,
        "failure": found.failure if found else None,
        "text": found.sentence if found else "",
        "engine_words": found.words if found else "",
        "engine": caller.name(),
        **hearing.result(),
        **room.finish_wire(),
    }


def sums(room: EngineRoom, request: Message) -> Message:
    """What some files of the job are now, without a word of what is in them (`rooms/sums.py`)."""
    from capkeep.rooms.live import tell_live

    job = room.brief.job
    assert job is not None, "a reader has a job"
    _tell_kept(room, job)
    tell_live(room, job, request)
    room.steady()
    return {"exit_code": 0, "failure": None, "text": "", "engine": "", "engine_words": "",
            "summary": {}, **room.finish_wire()}  # fmt: skip


def _visible(room: EngineRoom, engine: Engine, job: Job) -> Job:
    """The job as the engine gets it: sources that exist, the canary among them.

    Where no view leaves mounts out (user mode, launchers) excludes do.
    """
    include = [p for p in job.include if os.path.lexists(room.seen(p))]
    if not include:
        raise StepError(
            Failure.ENGINE, f"none of the job's sources exists: {', '.join(job.include)}"
        )
    if job.canary and not any(is_at_or_below(job.canary, p) for p in include):
        include.append(job.canary)
    whole = room.brief.mode is Mode.USER or room.brief.walls.starter is Starter.LAUNCHER
    shown = room.brief.left_out if whole else ()
    exclude = (
        *job.exclude,
        *(f"{engine.literal(point)}/*" for point, _ in shown),
        *(engine.literal(path) for path in _hidden(room, job)),
    )
    return job._replace(include=tuple(include), exclude=exclude)


def _above(caller: Caller, job: Job) -> tuple[Above, ...]:
    """The directories that the sources lie in, for an engine that does not keep them."""
    if caller.engine.traits.keeps_above:
        return ()
    from capkeep.rooms.above import above_of

    return above_of(caller.room, job.include)


def _hidden(room: EngineRoom, job: Job) -> list[str]:
    """What lies below a source and is hidden from this room: secrets, repositories, caches.

    Left out of the snapshot altogether, so that it never claims to hold them.
    """
    return [p for p in room.brief.room.grant.hide if any(is_at_or_below(p, i) for i in job.include)]


def _report_sources(room: EngineRoom, job: Job) -> None:
    """Tell what is there before the engine starts, and what lies below it but is not shown."""
    points = {m.point for m in mounts.read_mounts()}
    for path in job.include:
        room.tell({"event": "source", "path": path, **_source(room.seen(path), points)})
    for point in _mounted_since(room, job):
        room.tell({"event": "unreadable", "path": point, "cause": Cause.DENIED, "detail": UNSEEN})
    for point, reason in room.brief.left_out:
        room.tell({"event": "left-out", "path": point, "detail": reason})
    for path in _hidden(room, job):
        if os.path.lexists(room.seen(path)):
            room.tell({"event": "left-out", "path": path, "detail": "hidden from the reader"})


def _mounted_since(room: EngineRoom, job: Job) -> list[str]:
    """Filesystems that hold a source and that a view decided by `apply` does not show."""
    root = room.brief.source_root
    if not root or room.brief.target:
        return []  # the view was put together when this room was started
    grant = room.brief.room.grant
    own = (root, "/run", "/dev", "/proc", "/sys", *grant.hide, *grant.write)
    there = [
        m
        for m in mounts.read_mounts()
        if "/inaccessible/" not in m.root and not any(is_at_or_below(m.point, p) for p in own)
    ]
    points, _ = mounts.source_mounts(there, grant.sources, one_file_system=job.one_file_system)
    return [p for p in points if p not in room.brief.shown]


def _source(path: str, mount_points: set[str]) -> Message:
    try:
        state = os.lstat(path)
    except OSError:
        return {"exists": False, "kind": "", "empty": False, "mount_point": False}
    is_dir = stat.S_ISDIR(state.st_mode)
    empty = is_dir and _is_empty(path)
    kind = KINDS.get(stat.S_IFMT(state.st_mode), "other")
    return {"exists": True, "kind": kind, "empty": empty, "mount_point": path in mount_points}


def _is_empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:
        return False  # unreadable is not empty; the engine will say so


def _tell_foreign_owners(room: EngineRoom, job: Job) -> None:
    """Without root, every other owner looks the same, and so it is kept (user_namespaces(7)).

    Looked at after the engine, when the kernel still remembers what it has read.
    """
    nobody = (_number("/proc/sys/fs/overflowuid"), _number("/proc/sys/fs/overflowgid"))
    hidden = {*_hidden(room, job), *(point for point, _ in room.brief.left_out)}
    count, named = 0, []
    for path, state in _entries(job.include, hidden):
        if state.st_uid == nobody[0] or state.st_gid == nobody[1]:
            count += 1
            if count <= OWNERS_NAMED:
                named.append(path)
    if count:
        more = f" and {count - len(named)} more" if count > len(named) else ""
        text = f"not your own, and kept without owner or group: {', '.join(named)}{more}"
        room.tell({"event": "warning", "text": text})


def _knows_all_ids() -> bool:
    """Whether this room's user namespace has every id (user_namespaces(7), uid_map)."""
    with open("/proc/self/uid_map", "rb") as file:
        return sum(int(line.split()[2]) for line in file) >= (1 << 32) - 1


def _tell_lost_owners(room: EngineRoom, job: Job) -> None:
    """systemd 257 can map the first 65536 ids only. `apply` found no others; now there are some."""
    hidden = {room.seen(p) for p in (*_hidden(room, job), *dict(room.brief.left_out))}
    root = room.brief.source_root
    for path, state in _entries(tuple(map(room.seen, job.include)), hidden):
        if OVERFLOW_ID in (state.st_uid, state.st_gid):
            room.tell({
                "event": "unreadable", "path": path.removeprefix(root) or "/",
                "cause": Cause.DENIED, "detail": WRONG_OWNER,
            })  # fmt: skip


def _number(path: str) -> int:
    with open(path, "rb") as file:
        return int(file.read())


def _entries(paths: tuple[str, ...], hidden: set[str]) -> Iterator[tuple[str, os.stat_result]]:
    """All that can be seen, links unfollowed; keeps no more than the directories still to read."""
    waiting = list(paths)
    for path in paths:
        with suppress(OSError):
            yield path, os.lstat(path)
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.path in hidden:
                    continue
                with suppress(OSError):
                    yield entry.path, entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)


def _read_canary(room: EngineRoom, name: str) -> None:
    """Read the root-only file in this very sandbox: then the capability works, whatever it says."""
    try:
        with opened(room.seen(name)) as file:
            if file.read(1):
                return
        problem = "is empty"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    there = room.brief.target
    hint = (
        f"`capkeep enroll {there.name}` writes it anew"
        if there
        else "`capkeep apply` writes it anew"
    )
    raise StepError(Failure.WEAKENED, f"the canary {name} {problem}", hint=hint)


class Expected(NamedTuple):
    """What a backup will come to, more or less; 0 where nobody knows."""

    files: int
    bytes: int


class _Hearing:
    """What the engine says during a backup, passed on as events, and kept for the result."""

    def __init__(self, room: EngineRoom, expected: Expected) -> None:
        self._room = room
        self._expected = expected
        self._shown = 0.0
        self._canary_seen = False
        self._summary: Summary | None = None
        self._named = ""

    def take(self, event: Event) -> None:
        """One event of the engine."""
        if isinstance(event, Progress):
            self._show(event)
        elif isinstance(event, Unreadable):
            found = event
            if event.cause is Cause.UNKNOWN:
                found = _look(event, self._room.seen(event.path))
            self._room.tell({"event": "unreadable", **found._asdict()})
        elif isinstance(event, Warned):
            self._room.tell({"event": "warning", "text": event.text})
        elif isinstance(event, Said):
            self._room.tell({"event": "message", "text": event.text})
        elif isinstance(event, Seen):
            self._canary_seen = True
        elif isinstance(event, Summary):
            self._summary = event
        elif isinstance(event, Named):
            self._named = event.text

    @property
    def snapshot(self) -> str:
        """What the engine has made; "" for nothing."""
        return self._summary.snapshot if self._summary else ""

    def name(self, caller: Caller, program: bytes) -> str:
        """The engine's, which may have told its version; `program` is its file as it was before."""
        if self._named:
            caller.remember(program, self._named.encode())
        return caller.name()

    def look_up(self, caller: Caller, path: str) -> None:
        """See whether that path is in the snapshot, where the engine has not named what it keeps.

        Raises StepError.
        """
        engine, call = caller.engine, caller.call._replace(unlocked=True)
        found = caller.output(engine.ls(call, self.snapshot, (path,)), HOUR)
        entries = (engine.parse_ls_line(line) for line in found.split(b"\n"))
        self._canary_seen = any(entry and entry.path == path for entry in entries)

    def _show(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown >= PROGRESS_SECONDS:
            self._shown = now
            if not progress.total_files:
                progress = _estimated(progress, self._expected)
            self._room.tell({"event": "progress", **progress._asdict()})

    def result(self) -> Message:
        """The part of the room's result that comes from what was heard."""
        summary = self._summary
        return {
            "canary_seen": self._canary_seen,
            "snapshot": summary.snapshot if summary else "",
            "summary": summary._asdict() if summary else None,
        }


def _can_do_uncounted(caller: Caller) -> bool:
    """Whether the engine need not count ahead, as far as it is known without calling it."""
    try:
        return caller.engine.abilities(caller.remembered()).uncounted
    except ValueError:
        return False


def _estimated(progress: Progress, expected: Expected) -> Progress:
    """With a total as it was the last time, if that is not less than there is already."""
    return progress._replace(
        total_files=max(expected.files, progress.files) if expected.files else 0,
        total_bytes=max(expected.bytes, progress.bytes) if expected.bytes else 0,
    )


def _look(event: Unreadable, path: str) -> Unreadable:
    """Find out why a path was not read, where the engine does not say: try it ourselves."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(path, flags))
    except OSError as error:
        cause = cause_of_errno(error.errno or 0)
        return event._replace(cause=cause, detail=event.detail or error.strerror or "")
    return event
