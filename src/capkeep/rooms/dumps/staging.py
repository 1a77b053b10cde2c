"""Where a dump is written: aside, and put in the place of the last good one only as a whole.

Source: rename(2), RENAME_EXCHANGE: at every moment `last` is one dump or the other.
"""

import errno
import os
from contextlib import suppress
from typing import Final

from capkeep.kernel import libc
from capkeep.plan.model import BEFORE, UNFINISHED, Dump

LAST: Final = "last"
_RENAMEAT2: Final = {"x86_64": 316, "aarch64": 276}
_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100


class Staging:
    """A dump's own directory. `begin`, make files in `folder`, then `keep` or `drop`."""

    def __init__(self, root: str) -> None:
        self.last = f"{root}/{LAST}"
        self.folder = f"{root}/{UNFINISHED}"
        self._before = f"{root}/{BEFORE}"
        self._root = root

    def begin(self) -> None:
        """Forget what a run that died has left, the last good dump excepted. Raises OSError."""
        if os.path.lexists(self._before) and not os.path.lexists(self.last):
            os.rename(self._before, self.last)
        remove(self._before)
        remove(self.folder)
        os.mkdir(self.folder, 0o700)

    def make(self, name: str) -> int:
        """A new file in it, open to write and to nobody else. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(f"{self.folder}/{name}", flags, 0o600)

    def keep(self) -> None:
        """Make it durable, and the last good one. Raises OSError; then the one before is still it."""
        for entry in os.scandir(self.folder):
            _flush(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        _flush(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        if not os.path.lexists(self.last):
            os.rename(self.folder, self.last)
        else:
            self._exchange()
        _flush(self._root, os.O_RDONLY | os.O_DIRECTORY)
        self.drop()

    def _exchange(self) -> None:
        number = _RENAMEAT2.get(os.uname().machine, -1)
        old, new = os.fsencode(self.folder), os.fsencode(self.last)
        try:
            libc.syscall(self.last, number, _AT_FDCWD, old, _AT_FDCWD, new, _EXCHANGE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # A filesystem without it (some on networks): for a moment there is no last one.
            remove(self._before)
            os.rename(self.last, self._before)
            os.rename(self.folder, self.last)
            remove(self._before)

    def drop(self) -> None:
        """Take away what is not, or no longer, the last good one."""
        with suppress(OSError):  # told by the next `begin`
            remove(self.folder)


def remove(path: str) -> None:
    """A directory and all that is in it, following no link; gone already is fine. Raises OSError."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(f"{folder}/{name}")
        for name in folders:
            inner = f"{folder}/{name}"
            os.unlink(inner) if os.path.islink(inner) else os.rmdir(inner)
    with suppress(FileNotFoundError):
        os.rmdir(path)


def _flush(path: str, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def size(path: str) -> int:
    """Bytes of a file. Raises OSError."""
    return os.stat(path, follow_symlinks=False).st_size


def described(
    dump: Dump, server: str, taken: str, items: list[dict[str, object]]
) -> dict[str, object]:
    """What is written beside the dump, for whoever restores it or compares."""
    return {"dump": dump.name, "kind": dump.kind, "server": server, "taken": taken, "files": items}
