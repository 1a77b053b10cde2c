"""How the dumps of each kind of server are loaded into one of its own: a file for each."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from capkeep.rooms.ground import Ground, Tally
    from capkeep.rooms.protocol import Message

    # Where it lies, what its dumper has noted, and whom to tell of a file that is not as was noted.
    Trial = Callable[[Ground, str, Message, Callable[[str, str], None]], Tally]


def _postgresql() -> "Trial":
    from capkeep.rooms.trials.postgresql import load

    return load


def _mariadb() -> "Trial":
    from capkeep.rooms.trials.mariadb import load

    return load


TRIALS: Final[dict[str, Callable[[], "Trial"]]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
    "mysql": _mariadb,
}
