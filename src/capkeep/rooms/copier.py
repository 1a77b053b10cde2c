"""The copier: copies snapshots from one repository into another; sees none of the files.

It has two vaults. The wire to the one that it copies from reads, the one to the other adds, and neither
removes anything, whatever its engine does. It holds both passwords, and reaches no network.
"""

import time
from collections.abc import Callable
from typing import Final

from capkeep.engines.base import Call, Command, Snapshot
from capkeep.engines.retention import decide, held
from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.plan.model import Copy, Job, job_tag, stream_tag
from capkeep.rooms.base import EngineRoom, option, option_list, serve
from capkeep.rooms.calls import HOUR, Caller, done, make_unless_there
from capkeep.rooms.probe import probe
from capkeep.rooms.protocol import Message

WEEK: Final = 7 * 24 * HOUR
AT_ONCE: Final = 1000  # snapshots that are named in one call of the engine
TAIL: Final = 40
TELL_SECONDS: Final = 10.0  # between two words about how far it is
ORIGIN_PASSWORD: Final = "origin-password"  # noqa: S105 the name of the secret

Mark = tuple[str, str, str, str, tuple[str, ...], tuple[str, ...]]


def main() -> int:
    """A copier's whole life."""
    return serve({"copy": copy, "init": init, "probe": probe}, seccomp.Profile.READ)


def copy(room: EngineRoom, request: Message) -> Message:
    """Copy what the job wants and the other repository has not, and see that it is there."""
    job, settings = room.brief.job, room.brief.job.copies if room.brief.job else None
    if job is None or settings is None:
        raise StepError(Failure.REFUSED, "no job copies anything here")
    complete = frozenset(option_list(request, "complete"))
    dry_run = option(request, "dry_run", default=False)
    caller = Caller(room)
    origin = _origin(caller)
    room.await_vault()
    groups = snapshots_of(job, _listed(caller, origin))
    wanted = wanted_of(groups, settings, complete)
    there = set(map(mark, _listed(caller, caller.call)))
    missing = tuple(s for s in wanted if mark(s) not in there)
    if dry_run:
        return _told(caller, missing, len(wanted), settings.origin)
    progress = _Progress(caller, len(missing))
    for at in range(0, len(missing), AT_ONCE):
        names = tuple(s.word for s in missing[at : at + AT_ONCE])
        _carry_out(caller, caller.engine.copy(caller.call, origin, names), progress.take)
    if missing:
        there = set(map(mark, _listed(caller, caller.call)))
    lost = [s for s in missing if mark(s) not in there]
    facts: Message = {
        "from": settings.origin, "copied": len(missing) - len(lost), "wanted": len(wanted),
        "all": sum(map(len, groups)),
    }  # fmt: skip
    ended = done(caller, sentence(facts), facts=facts)
    if lost:
        raise StepError(
            Failure.ENGINE,
            f"the engine ended well, and {len(lost)} of {len(missing)} snapshots are not there,"
            f" {lost[0].id[:8]} among them",
        )
    _compare(ended, len(missing))
    return ended


def _told(caller: Caller, missing: tuple[Snapshot, ...], wanted: int, origin: str) -> Message:
    """What would be copied, a line for each."""
    for one in missing:
        text = f"would be copied: {one.id[:8]} of {one.time[:19]}, {', '.join(one.paths)}"
        caller.room.tell({"event": "message", "text": text})
    return done(
        caller, f"{len(missing)} snapshots would be copied, of {wanted} that are wanted of {origin}"
    )


class _Progress:
    """Tells now and then how far it is: a first copy may take days."""

    def __init__(self, caller: Caller, count: int) -> None:
        self._caller, self._count = caller, count
        self._saved, self._last = 0, time.monotonic()

    def take(self, line: bytes) -> None:
        """A line of the engine's."""
        saved, share = self._caller.engine.copy_line(line)
        self._saved += saved
        now = time.monotonic()
        if (saved or share) and now - self._last >= TELL_SECONDS:
            self._last = now
            text = f"{self._saved} of {self._count} snapshots are copied"
            text += f", {share} of what the next ones need" if share else ""
            self._caller.room.tell({"event": "message", "text": text})


def mark(snapshot: Snapshot) -> Mark:
    """What a copy has in common with its original, and with nothing else.

    Not the original's id alone: whoever may add snapshots can add one that claims to be a copy of
    another, which would then never be copied itself. restic compares the same.
    """
    s = snapshot
    return (s.original or s.id, s.tree, s.time, s.host, s.paths, s.tags)


def _compare(ended: Message, count: int) -> None:
    """The vault's word against the engine's: it names the first that it has taken in."""
    names = ended.get("snapshots_stored")
    taken = len(names) if isinstance(names, list) else 0
    if count and not taken:
        raise StepError(
            Failure.ENGINE,
            f"the engine says that it has copied {count} snapshots, and the vault got none",
        )


def sentence(facts: Message) -> str:
    """What became of a copy, for people."""
    return (
        f"{facts['copied']} snapshots were copied;"
        f" {facts['wanted']} of the {facts['all']} in {facts['from']} are there now"
    )


def init(room: EngineRoom, _request: Message) -> Message:
    """Make the repository, like the one that it is a copy of; one that opens is left alone."""
    caller = Caller(room)
    origin = _origin(caller)
    room.await_vault()
    alike = caller.engine.init_alike(caller.call, origin)
    if make_unless_there(caller, lambda: _carry_out(caller, alike)):
        return done(caller, "the repository was made, to cut files as the one that it is a copy of")
    return done(caller, "the repository was there already")


def _origin(caller: Caller) -> Call:
    """How the engine is called on the repository that is copied from."""
    secrets, repository = dict(caller.room.brief.secrets), caller.room.brief.origin
    assert repository is not None, "a copier has two repositories"
    return caller.call._replace(
        origin=True, repository=repository.location, password=secrets.get(ORIGIN_PASSWORD, "")
    )


def _listed(caller: Caller, call: Call) -> tuple[Snapshot, ...]:
    said = caller.output(caller.engine.snapshots(call), HOUR, tell=not call.origin)
    return caller.engine.parse_snapshots(said)


def _carry_out(
    caller: Caller, command: Command | None, hear: Callable[[bytes], None] = lambda _line: None
) -> None:
    """Run it to its end. Raises StepError."""
    if command is None:
        raise StepError(Failure.REFUSED, f"{caller.engine.name} cannot copy")
    tail: list[str] = []

    def take(_stream: str, line: bytes) -> None:
        hear(line)
        tail.append(line.decode(errors="replace")[:2000])
        del tail[:-TAIL]

    code = caller.run(command, take, WEEK)
    caller.raise_for(code, tuple(tail))


def snapshots_of(job: Job, listed: tuple[Snapshot, ...]) -> tuple[tuple[Snapshot, ...], ...]:
    """The job's own, and those of each file that its dumps stream: rules are for each of them apart."""
    own = [s for s in listed if s.host == job.host]
    groups = [tuple(s for s in own if job_tag(job.name) in s.tags)]
    for name in job.dumps:
        found = [s for s in own if stream_tag(job.name, name) in s.tags]
        paths = sorted({s.paths for s in found})
        groups += [tuple(s for s in found if s.paths == one) for one in paths]
    return tuple(group for group in groups if group)


def wanted_of(
    groups: tuple[tuple[Snapshot, ...], ...], settings: Copy, complete: frozenset[str]
) -> tuple[Snapshot, ...]:
    """Those that the rules would keep; all where there are none. Raises ValueError for odd times."""
    if not settings.keep.chooses():
        return tuple(s for group in groups for s in group)
    kept = {
        one.id
        for group in groups
        for one in decide(held(group, complete), settings.keep)
        if one.keep
    }
    return tuple(s for group in groups for s in group if s.id in kept)
