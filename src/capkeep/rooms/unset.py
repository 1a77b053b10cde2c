"""Which extended attributes a restore could not set: counted by name, so that many are few lines.

A host with SELinux has an attribute on every file, and nobody who lacks CAP_SYS_ADMIN, as each room
does, may set that on a host without (xattr(7), "Extended security attributes").
"""

from typing import Final

from capkeep.engines.base import Abilities, Event, LineReader, Traits, Unset
from capkeep.rooms.base import EngineRoom

LENGTHS: Final = (
    4096,
    255,
    200,
)  # characters of a path, a name and a reason: PATH_MAX, XATTR_NAME_MAX
PATHS_TOLD: Final = 3  # of each attribute
NAMES_TOLD: Final = 20
OTHERS: Final = "other attributes"  # a snapshot's maker gives them any names
SELINUX: Final = "security.selinux"


class UnsetReader:
    """Takes from an engine's words what they say of attributes."""

    def __init__(self, reader: LineReader, target: str) -> None:
        self._reader = reader
        self._target = target
        self._counts: dict[str, int] = {}
        self._first: list[Unset] = []

    @property
    def tail(self) -> tuple[str, ...]:
        return self._reader.tail

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        events = self._reader.feed(stream, line)
        for event in events:
            if isinstance(event, Unset):
                self._count(Unset(*(t[:most] for t, most in zip(event, LENGTHS, strict=True))))
        return tuple(e for e in events if not isinstance(e, Unset))

    def _count(self, one: Unset) -> None:
        known = one.attribute in self._counts or len(self._counts) < NAMES_TOLD
        name = one.attribute if known else OTHERS
        self._counts[name] = self._counts.get(name, 0) + 1
        if self._counts[name] <= PATHS_TOLD:
            self._first.append(one)

    def tell(self, room: EngineRoom) -> None:
        """The first few of each attribute."""
        for path, attribute, why in self._first:
            detail = f"attribute {attribute} could not be set: {why.lower()}"
            room.tell({"event": "difference", "path": path, "detail": detail})

    @property
    def words(self) -> str:
        """How many there were of each; "" for none."""
        if not self._counts:
            return ""
        found = sorted(self._counts.items())
        each = ", ".join(f"{name} of {count} {_files(count)}" for name, count in found)
        return f"attributes could not be set: {each}"

    @property
    def hint(self) -> str:
        """What to do about it."""
        if SELINUX in self._counts:
            return f"label what was restored by this host's policy: `restorecon -R {self._target}`"
        return "the first of each are listed above; all else is in place"


def left_out(traits: Traits, abilities: Abilities, *, capable: bool) -> str:
    """What is not restored, and not named either; "" for nothing. `capable` of file capabilities."""
    if traits.names_unset:
        return ""
    found = "`security.` attributes (SELinux's, IMA's)"
    found += " other than file capabilities" if capable else ", file capabilities too"
    found += ", `trusted.` ones, and attributes or access lists that no file can have there"
    whole = abilities.plain_restore and capable
    return found if whole else f"{found}, and more attributes of the same files"


def _files(count: int) -> str:
    return "file" if count == 1 else "files"
