"""The keeper: makes, checks and lists repositories; sees none of the files.

Its wire alone may remove things from the repository.
"""

from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.rooms.base import EngineRoom, option, serve
from capkeep.rooms.calls import Caller, done, pass_on
from capkeep.rooms.protocol import Message, ProtocolError

HOUR: Final = 3600
WEEK: Final = 7 * 24 * HOUR
PART_CHARACTERS: Final = frozenset("0123456789./%KMGTkmgt")


def main() -> int:
    """A keeper's whole life."""
    actions = {"check": check, "init": init, "snapshots": snapshots}
    return serve(actions, seccomp.Profile.READ)


def check(room: EngineRoom, request: Message) -> Message:
    """Whether the repository is whole; with `read_data` part of the data is read as well."""
    part = option(request, "read_data", default="")
    if part != "all" and not PART_CHARACTERS.issuperset(part):
        raise ProtocolError("read_data must be a percentage, a size or n/t")
    caller = Caller(room)
    reader = caller.engine.read_check()
    room.await_vault()
    code = caller.run(caller.engine.check(caller.call, read_data=part), pass_on(room, reader), WEEK)
    found = reader.result()
    if found.errors:
        raise StepError(
            Failure.DAMAGED,
            f"the repository is damaged: {found.errors} errors,"
            f" {len(found.broken_packs)} broken packs",
            hint="keep it as it is until you know why; newer snapshots may still be whole",
            engine_words="\n".join(found.words),
        )
    caller.raise_for(code, reader.tail)
    return done(caller, "no errors were found" + (f", {part} of the data was read" if part else ""))


def init(room: EngineRoom, _request: Message) -> Message:
    """Make the repository; one that is there already, and opens, is left alone."""
    caller = Caller(room)
    room.await_vault()
    try:
        caller.output(caller.engine.snapshots(caller.call), HOUR)
    except StepError as error:
        if error.failure is not Failure.NO_REPOSITORY:
            raise
        caller.output(caller.engine.init(caller.call), HOUR)
        text = "the repository was made"
    else:
        text = "the repository was there already"
    return done(caller, text)


def snapshots(room: EngineRoom, _request: Message) -> Message:
    """What the repository holds, oldest first."""
    caller = Caller(room)
    room.await_vault()
    found = caller.engine.parse_snapshots(caller.output(caller.engine.snapshots(caller.call), HOUR))
    return done(caller, "", snapshots=[s._asdict() for s in found])
