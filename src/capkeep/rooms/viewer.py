"""The viewer: shows root what snapshots hold. No capability, and a wire that only adds."""

from typing import Final

from capkeep.engines.base import Change, DiffTotals
from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.rooms.base import EngineRoom, option, option_list, serve
from capkeep.rooms.calls import Caller, done
from capkeep.rooms.protocol import Message, ProtocolError

HOURS: Final = 12 * 3600


def main() -> int:
    """A viewer's whole life."""
    return serve({"ls": ls, "find": find, "diff": diff}, seccomp.Profile.READ)


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
    caller = Caller(room)
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
    code = caller.run(caller.engine.ls(caller.call, snapshot), take, HOURS)
    caller.raise_for(code, tuple(tail[-40:]))
    return done(caller, f"{count} entries", {"entries": count})


def is_at_or_below(path: str, top: str) -> bool:
    """Whether a path is `top` or lies in it."""
    top = top.rstrip("/")
    return path == top or path.startswith(top + "/")


def find(room: EngineRoom, request: Message) -> Message:
    """Where names or paths occur, in one snapshot or in all."""
    patterns = option_list(request, "patterns")
    if not patterns or any(p.startswith("-") for p in patterns):
        raise ProtocolError("patterns must be names or paths")
    one = (snapshot_name(request, "snapshot"),) if option(request, "snapshot", default="") else ()
    caller = Caller(room)
    room.await_vault()
    for pattern in patterns:
        command = caller.engine.find(caller.call, pattern, snapshots=one)
        for match in caller.engine.parse_find(caller.output(command, HOURS)):
            room.tell({"event": "entry", "snapshot": match.snapshot, **match.entry._asdict()})
    return done(caller, "")


def _newest(caller: Caller) -> str:
    """The id of the newest snapshot: not every engine's diff knows `latest`."""
    listed = caller.engine.parse_snapshots(
        caller.output(caller.engine.snapshots(caller.call), HOURS)
    )
    if not listed:
        raise StepError(Failure.CONFLICT, "the repository holds no snapshot yet")
    return listed[-1].id


def diff(room: EngineRoom, request: Message) -> Message:
    """What changed from one snapshot to another."""
    names = snapshot_name(request, "first"), snapshot_name(request, "second")
    caller = Caller(room)
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
    first, second = (_newest(caller) if name == "latest" else name for name in names)
    code = caller.run(caller.engine.diff(caller.call, first, second), take, HOURS)
    caller.raise_for(code, tuple(tail[-40:]))
    return done(caller, "", totals)
