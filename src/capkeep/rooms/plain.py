"""Files whose place somebody else may have put anything in: read them only if they are plain ones."""

import errno
import os
import stat
from typing import BinaryIO


def opened(path: str) -> BinaryIO:
    """A plain file, to be read; whatever else is there is not waited for. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no plain file", path)
        return open(fd, "rb")
    except BaseException:
        os.close(fd)
        raise
