"""The viewer: shows root what snapshots hold. No capability, and a wire that only adds.

It reads as slowly as whoever looks does. So it leaves no lock where the engine can do without: nobody
who only looks keeps retention from removing anything. What is removed meanwhile makes the look fail.
"""

from typing import Final

from capkeep.engines.base import Change, DiffTotals
from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.rooms.base import PATIENCE_SECONDS, EngineRoom, option, option_list, serve
from capkeep.rooms.calls import Caller, done
from capkeep.rooms.listing import chosen, snapshot_for, word_for
from capkeep.rooms.probe import probe
from capkeep.rooms.protocol import Message, ProtocolError
from capkeep.values import is_at_or_below

HOURS: Final = 12 * 3600


def main() -> int:
    """A viewer's whole life."""
    actions = {
        "ls": ls, "find": find, "diff": diff, "holds": holds, "mount": mount, "probe": probe,
        "snapshots": snapshots, "check": check,
    }  # fmt: skip
    return serve(actions, seccomp.Profile.READ, patience=PATIENCE_SECONDS)


def snapshot_name(request: Message, name: str) -> str:
    """A snapshot's id or `latest`: nothing that an engine could take for an option."""
    text = option(request, name, default="")
    if text != "latest" and not (text and set(text) <= set("0123456789abcdef") and len(text) <= 64):
        raise ProtocolError(f"{text!r} is not a snapshot's id, nor latest")
    return text


def ls(room: EngineRoom, request: Message) -> Message:
    """Every entry of a snapshot, or of what is at and below some paths in it."""
    snapshot = snapshot_name(request, "snapshot")
    paths = option_list(request, "paths")
    caller = Caller(room, unlocked=True)
    tail: list[str] = []
    count = 0

    def take(stream: str, line: bytes) -> None:
        nonlocal count
        entry = caller.engine.parse_ls_line(line) if stream == "stdout" else None
        if entry is None:
            if stream == "stderr":
                tail.append(line.decode(errors="replace"))
        elif not paths or any(is_at_or_below(entry.path, p) for p in paths):
            count += 1
            room.tell({"event": "entry", **entry._asdict()})

    room.await_vault()
    word = word_for(caller, snapshot, paths)
    code = caller.run(caller.engine.ls(caller.call, word), take, HOURS)
    caller.raise_for(code, tuple(tail[-40:]))
    return done(caller, f"{count} entries", {"entries": count})


def holds(room: EngineRoom, request: Message) -> Message:
    """Which snapshot is meant, as `snapshot` of the summary, and that each of the paths is in it.

    Raises StepError where one is not.
    """
    asked = snapshot_name(request, "snapshot")
    missing = set(option_list(request, "paths"))
    caller = Caller(room, unlocked=True)
    room.await_vault()
    snapshot = snapshot_for(caller, asked, sorted(missing))
    tail: list[str] = []

    def take(stream: str, line: bytes) -> None:
        entry = caller.engine.parse_ls_line(line) if stream == "stdout" else None
        if entry is not None:
            missing.discard(entry.path)
        elif stream == "stderr":
            tail.append(line.decode(errors="replace"))

    command = caller.engine.ls(caller.call, snapshot.word, tuple(sorted(missing)))
    caller.raise_for(caller.run(command, take, HOURS), tuple(tail[-40:]))
    if missing:
        text = f"snapshot {snapshot.id[:8]} does not hold {min(missing)}"
        raise StepError(Failure.CONFLICT, text, hint="`capkeep ls` shows what it holds")
    return done(caller, "", {"snapshot": snapshot.id})


def snapshots(room: EngineRoom, request: Message) -> Message:
    """What the repository holds, where there is no keeper."""
    from capkeep.rooms import keeper

    return keeper.snapshots(room, request)


def check(room: EngineRoom, request: Message) -> Message:
    """Whether the repository is whole, where there is no keeper."""
    from capkeep.rooms import keeper

    return keeper.check(room, request)


def mount(room: EngineRoom, request: Message) -> Message:
    """Answer for a filesystem that shows a snapshot, until the caller leaves."""
    from capkeep.rooms.showing import show  # which names snapshots as is done here

    return show(room, request)


def find(room: EngineRoom, request: Message) -> Message:
    """Where names or paths occur, in one snapshot or in all."""
    patterns = option_list(request, "patterns")
    if not patterns or any(p.startswith("-") for p in patterns):
        raise ProtocolError("patterns must be names or paths")
    one = (snapshot_name(request, "snapshot"),) if option(request, "snapshot", default="") else ()
    caller = Caller(room, unlocked=True)
    room.await_vault()
    engine = caller.engine
    if engine.traits.finds_everywhere:
        searches = [("", tuple(word_for(caller, name) for name in one))]
    else:
        listed = engine.parse_snapshots(caller.output(engine.snapshots(caller.call), HOURS))
        only = {chosen(listed, name, room.brief.jobs).word for name in one}
        searches = [(s.id, (s.word,)) for s in listed if not only or s.word in only]
    for pattern, (searched, where) in ((p, s) for p in patterns for s in searches):
        command = engine.find(caller.call, pattern, snapshots=where)
        for match in engine.parse_find(caller.output(command, HOURS)):
            snapshot = match.snapshot or searched
            room.tell({"event": "entry", "snapshot": snapshot, **match.entry._asdict()})
    return done(caller, "")


def diff(room: EngineRoom, request: Message) -> Message:
    """What changed from one snapshot to another."""
    names = snapshot_name(request, "first"), snapshot_name(request, "second")
    caller = Caller(room, unlocked=True)
    tail: list[str] = []
    totals: Message = {}

    def take(stream: str, line: bytes) -> None:
        found = caller.engine.parse_diff_line(line) if stream == "stdout" else None
        if isinstance(found, Change):
            room.tell({"event": "entry", **found._asdict()})
        elif isinstance(found, DiffTotals):
            totals.update(found._asdict())
        elif stream == "stderr":
            tail.append(line.decode(errors="replace"))

    room.await_vault()
    first, second = names
    if "latest" in names or not caller.engine.traits.named_by_id:
        # Not every engine's diff knows `latest`.
        listed = caller.engine.parse_snapshots(
            caller.output(caller.engine.snapshots(caller.call), HOURS)
        )
        first, second = (chosen(listed, name, room.brief.jobs).word for name in names)
    code = caller.run(caller.engine.diff(caller.call, first, second), take, HOURS)
    caller.raise_for(code, tuple(tail[-40:]))
    return done(caller, "", totals)
