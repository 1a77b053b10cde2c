"""The engines that capkeep drives: one file, and one line here, for each.

A room needs one engine and loads no other: each is imported when it is asked for.
"""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from capkeep.engines.base import Engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.engines.giving import Gives

# The module whose ENGINE it is.
MODULES: Final = {
    "restic": "capkeep.engines.restic",
    "borg": "capkeep.engines.borg",
    "rdiff-backup": "capkeep.engines.rdiff",
}
# Of those of whose snapshots single files can be given: the module whose GIVES it is.
GIVING: Final = {
    "restic": "capkeep.engines.restic_giving",
    "borg": "capkeep.engines.borg_giving",
}


class Engines:
    """Engines by the name that a configuration gives them."""

    def __getitem__(self, name: str) -> Engine:
        engine: Engine = _loaded(MODULES[name]).ENGINE
        return engine

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)


ENGINES: Final = Engines()


def gives(name: str) -> "Gives":
    """How single files of that engine's snapshots are given. Raises KeyError if they are not."""
    found: Gives = _loaded(GIVING[name]).GIVES
    return found


def _loaded(module: str) -> ModuleType:
    __import__(module)
    return sys.modules[module]
