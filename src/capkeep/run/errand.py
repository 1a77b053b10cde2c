"""What a run consists of: one errand after another, each to one room."""

from collections.abc import Callable, Generator
from typing import Final, NamedTuple

from capkeep.plan.model import Room
from capkeep.records.model import Step
from capkeep.rooms.protocol import Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.records.queries import Records
    from capkeep.run.manifest import Shelf
    from capkeep.run.turns import Turn

AFTER_PULLS: Final = "after-pulls"  # what comes when no target is left to be pulled from
SLACK_SECONDS: Final = 120  # in which a room that is late says so itself


class Errand(NamedTuple):
    """A step to be made: what is asked of which room."""

    kind: str  # of the step: "backup", "check", …
    room: Room
    request: Message
    seconds: float  # that it may take
    parts: tuple[str, ...] = ()  # kinds of the steps that one visit makes, if there are several
    optional: bool = False  # its failure is told, and does not fail the run
    feeder: "Feeder | None" = None  # the room that writes what this one reads
    live: Room | None = None  # a reader, with whose files what was restored is compared
    shelf: "Shelf | None" = None  # of what was read at backup time
    on_result: Callable[[Message], None] | None = None  # hears the room's own result
    always: bool = False  # also when the run has been stopped
    turn: "Turn | None" = None  # of a target's: waited for, and held while the room is asked
    warn: "Callable[[Records], str] | None" = None  # what is to be found with its step, if anything


class Feeder(NamedTuple):
    """Who writes into the pipe from which an errand's room reads, and what is asked of it."""

    room: Room
    request: Message


# The steps of a run, each chosen when it is known how the one before has ended.
Errands = Generator[Errand, Step, None]
