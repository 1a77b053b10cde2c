"""What the directories are like that a job's sources lie in, for an engine that does not keep them."""

import os
import stat
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import suppress

from capkeep.engines.base import Above
from capkeep.rooms.base import EngineRoom

_LISTS = "system."  # access control lists, of whatever kind


def above_of(room: EngineRoom, sources: Iterable[str]) -> tuple[Above, ...]:
    """Each once, but for the root directory. One that cannot be looked at is left out, and so closed."""
    found = []
    for path in sorted({parent for source in sources for parent in _parents(source)}):
        with suppress(OSError):
            found.append(_above(room.seen(path), path))
    return tuple(found)


def _parents(path: str) -> Iterator[str]:
    while (path := os.path.dirname(path)) not in ("/", ""):
        yield path


def _above(seen: str, path: str) -> Above:
    """Raises OSError."""
    fd = os.open(seen, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = os.fstat(fd)
        lists = [name for name in os.listxattr(fd) if name.startswith(_LISTS)]
        attributes = tuple((name, b64encode(os.getxattr(fd, name)).decode()) for name in lists)
    finally:
        os.close(fd)
    return Above(path, stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid, attributes)
