"""The engines that capkeep drives: one file, and one line here, for each."""

from capkeep.engines.base import Engine
from capkeep.engines.restic import Restic

ENGINES: dict[str, Engine] = {"restic": Restic()}
