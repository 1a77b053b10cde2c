"""Whether a target answers: its puller's room is asked to show itself, which takes the whole way there."""

import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from capkeep.errors import CapkeepError, Failure, StepError
from capkeep.host.direct import converse
from capkeep.host.probe import REQUEST, SECONDS, visit
from capkeep.plan.model import Plan, Room, RoomKind, Starter
from capkeep.rooms.protocol import Message

ENGINE_MOST: Final = 40  # characters


class Reached(NamedTuple):
    """What came of asking one target for one repository."""

    target: str
    job: str
    repository: str
    seconds: float
    engine: str = ""  # what the engine there says of itself, beginning with "restic 0.18.0"
    failure: str = ""  # "": it answers
    text: str = ""
    hint: str = ""


def reach(plan: Plan, names: tuple[str, ...]) -> Iterator[Reached]:
    """One after the other, each as soon as it is known."""
    for room in plan.rooms:
        if room.kind in (RoomKind.PULLER, RoomKind.MOUNTER) and plan.job(room.job).target in names:
            yield _reach(plan, room)


def _reach(plan: Plan, room: Room) -> Reached:
    begun = time.monotonic()
    found = Reached(plan.job(room.job).target, room.job, room.repository, 0.0)
    said = _ask(plan, room)
    seconds, text = time.monotonic() - begun, str(said.get("text") or "")
    if (failure := said.get("failure")) is None:
        return found._replace(seconds=seconds, engine=text[:ENGINE_MOST])
    hint = str(said.get("hint") or "")
    return found._replace(seconds=seconds, failure=str(failure), text=text, hint=hint)


def _ask(plan: Plan, room: Room) -> Message:
    """The room's result; what keeps it from being asked is one too."""
    try:
        if plan.starter is Starter.SYSTEMD and room.door:
            return visit(room.door.path, _pass)
        return converse(plan, room, REQUEST, _pass, seconds=SECONDS)
    except (CapkeepError, OSError) as error:
        failure = error.failure if isinstance(error, StepError) else Failure.INTERRUPTED
        hint = error.hint if isinstance(error, CapkeepError) else ""
        return {"failure": failure, "text": str(error), "hint": hint}


def _pass(_message: Message) -> None:
    """What is proven on the way is for the audit."""
