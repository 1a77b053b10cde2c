"""The form of the contract: what is promised of every engine, and where one differs.

Every behaviour is run with every engine and version, through real rooms. One that is declared to
differ must differ, and in exactly the declared words: a version that has learned something, or
forgotten it, is noticed. `docs/reference/engines.md` shows them all (tests/contract/table.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tests.contract.scenes import Scenes

OLD_RESTIC: Final = ("restic 0.14",)
NEW_RESTIC: Final = ("restic 0.18", "restic 0.19")
RESTIC: Final = (*OLD_RESTIC, *NEW_RESTIC)
BORG: Final = ("borg 1.2", "borg 1.4")
RDIFF: Final = ("rdiff-backup 2.2",)
CONTESTANTS: Final = (*RESTIC, *BORG, *RDIFF)

YES: Final = "yes"

# What was seen: YES, or what was seen instead.
Observe = Callable[["Scenes"], str]


class Differs(NamedTuple):
    """What some engines do instead; the same words are observed, and shown in the table."""

    engines: tuple[str, ...]
    instead: str


class Behaviour(NamedTuple):
    """One promise."""

    group: str
    sentence: str
    differences: tuple[Differs, ...]
    observe: Observe

    def expected(self, engine: str) -> str:
        """What must be observed."""
        found = (d.instead for d in self.differences if engine in d.engines)
        return next(found, YES)


BEHAVIOURS: Final[dict[str, Behaviour]] = {}  # by the name of the function that observes it


def behaviour(group: str, sentence: str, *differences: Differs) -> Callable[[Observe], Observe]:
    """Declare a promise; what is below looks whether it is kept."""

    def declare(observe: Observe) -> Observe:
        name = observe.__name__
        assert name not in BEHAVIOURS, f"{name} is declared twice"
        BEHAVIOURS[name] = Behaviour(group, sentence, differences, observe)
        return observe

    return declare


def yes(kept: object, instead: object = "no") -> str:
    """What was observed, where a promise is kept or is not."""
    return YES if kept else str(instead)
