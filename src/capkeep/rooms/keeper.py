"""The keeper: makes, checks and lists repositories; sees none of the files.

Its wire alone may remove things from the repository.
"""

from typing import Final

from capkeep.engines.base import Snapshot
from capkeep.kernel import seccomp
from capkeep.kernel.clock import is_kept_right
from capkeep.rooms.base import EngineRoom, serve
from capkeep.rooms.calls import HOUR, Caller, done, pass_on
from capkeep.rooms.calls import init as make
from capkeep.rooms.probe import probe
from capkeep.rooms.protocol import Message
from capkeep.rooms.upkeep import checked, damaged, read_data_of, upkeep

WEEK: Final = 7 * 24 * HOUR
LONG: Final = 1 << 10  # characters of a snapshot's host, time and the like
SHOWN: Final = 64 << 10  # characters of its paths, and of its tags; each may take six bytes to tell


def main() -> int:
    """A keeper's whole life."""
    is_kept_right()  # asked before this program filters its own calls, and remembered
    actions = {
        "check": check, "init": init, "snapshots": snapshots, "upkeep": upkeep, "keys": keys,
        "probe": probe,
    }  # fmt: skip
    return serve(actions, seccomp.Profile.READ)


def check(room: EngineRoom, request: Message) -> Message:
    """Whether the repository is whole; with `read_data` part of the data is read as well."""
    part = read_data_of(request)
    caller = Caller(room)
    reader = caller.engine.read_check()
    room.await_vault()
    code = caller.run(caller.engine.check(caller.call, read_data=part), pass_on(room, reader), WEEK)
    found = reader.result()
    if found.errors:
        raise damaged(found.errors, found.broken_packs, found.words)
    caller.raise_for(code, reader.tail)
    return done(caller, checked(part))


def keys(room: EngineRoom, request: Message) -> Message:
    """Work on the keys, for root alone."""
    from capkeep.rooms import keys as work

    return work.answer(room, request)


def init(room: EngineRoom, _request: Message) -> Message:
    """Make the repository, with a key that opens it without delay if its password allows that."""
    from capkeep.rooms.new_key import exchange_key

    return make(room, exchange_key)


def snapshots(room: EngineRoom, _request: Message) -> Message:
    """What the repository holds, oldest first, as events: there may be more than a message holds."""
    caller = Caller(room)
    room.await_vault()
    found = caller.engine.parse_snapshots(caller.output(caller.engine.snapshots(caller.call), HOUR))
    for snapshot in found:
        room.tell({"event": "snapshot", "snapshot": in_a_message(snapshot)})
    return done(caller, f"{len(found)} snapshots")


def in_a_message(snapshot: Snapshot) -> Message:
    """A snapshot to be told of: whoever may add one may have labelled it with more than fits."""
    texts = {k: v[:LONG] if isinstance(v, str) else v for k, v in snapshot._asdict().items()}
    return {**texts, "paths": _first(snapshot.paths), "tags": _first(snapshot.tags)}


def _first(texts: tuple[str, ...]) -> list[str]:
    """As many as are told, and how many are not."""
    length = 0
    for i, text in enumerate(texts):
        length += len(text) + len('"",')
        if length > SHOWN:
            return [*texts[:i], f"… and {len(texts) - i} more"]
    return list(texts)
