"""Writing to a local disk past the kernel's cache of files (O_DIRECT, open(2)).

Nobody reads a pack again soon. In the cache it would drive out what the machine's own programs read, and
bringing it there costs three times the processor time: a page for every 4 KiB, each written for the
first time. So it is gathered in a buffer that stays, and goes to the disk from there.
"""

import errno
import fcntl
import mmap
import os
from typing import Final

from capkeep.kernel.libc import fallocate

SIZE: Final = 1 << 20  # bytes that are written at a time
BLOCK: Final = 4096  # bytes in which a disk can be written, or several of its own blocks


class Uncached:
    """Takes a file's content out of a pipe, from its beginning to its end. All that writes raises OSError."""

    def __init__(self, fd: int, length: int) -> None:
        """`fd` is an empty file's, and stays its owner's; `length` is how much will come."""
        self._fd = fd
        self._size = min(SIZE, -(-length // BLOCK) * BLOCK)
        self._buffer = memoryview(mmap.mmap(-1, self._size))  # which begins at a page, as it must
        self._have = 0
        self._direct = length >= SIZE and _set_direct(fd, on=True)
        if self._direct:
            fallocate(fd, length)

    def pour(self, pipe: int, count: int) -> int:
        """Take at most so many bytes out of a pipe that has some; how many that were, 0 at its end."""
        got = os.readv(pipe, [self._buffer[self._have : min(self._size, self._have + count)]])
        self._have += got
        if self._have == self._size:
            self._write(self._buffer)
            self._have = 0
        return got

    def finish(self) -> None:
        """Write the rest. What is less than a block only the cache can take."""
        whole = self._have // BLOCK * BLOCK
        self._write(self._buffer[:whole])
        if whole < self._have:
            self._cache()
            self._write(self._buffer[whole : self._have])

    def _write(self, data: memoryview) -> None:
        """Whole blocks, unless the cache takes them."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                # This filesystem has larger blocks, only says that it can, or has taken half a block.
                self._cache()

    def _cache(self) -> None:
        """From now on write as everybody does."""
        if self._direct:
            _set_direct(self._fd, on=False)
            self._direct = False


def _set_direct(fd: int, *, on: bool) -> bool:
    """Whether its writes go past the cache now; many filesystems cannot."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags)
    except OSError:
        return False
    return on
