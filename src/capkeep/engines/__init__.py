"""The engines that capkeep drives: one file, and one line here, for each.

A room needs one engine and loads no other: each is imported when it is asked for.
"""

import sys
from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import Engine

# The module whose ENGINE it is.
MODULES: Final = {
    "restic": "capkeep.engines.restic",
    "borg": "capkeep.engines.borg",
    "rdiff-backup": "capkeep.engines.rdiff",
}


class Engines:
    """Engines by the name that a configuration gives them."""

    def __getitem__(self, name: str) -> Engine:
        module = MODULES[name]
        __import__(module)
        engine: Engine = sys.modules[module].ENGINE
        return engine

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)


ENGINES: Final = Engines()
