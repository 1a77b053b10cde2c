"""Why a path was not read: from the kernel's number, or from an engine's words for it."""

import errno
import os
from typing import Final

from capkeep.engines.base import Cause

# Go's texts for these are the C library's.
_CAUSES: Final = {
    errno.EACCES: Cause.DENIED,
    errno.EPERM: Cause.DENIED,
    errno.ENOENT: Cause.VANISHED,
    errno.ENOTDIR: Cause.CHANGED,
    errno.EISDIR: Cause.CHANGED,
    errno.ELOOP: Cause.CHANGED,  # O_NOFOLLOW on what has become a symbolic link
    errno.ENXIO: Cause.CHANGED,  # a socket or fifo where a file was
    errno.EIO: Cause.IO,
    errno.ESTALE: Cause.IO,  # of NFS: one file that is gone, or all that a server does not show now
    errno.EUCLEAN: Cause.IO,
    errno.ENOTCONN: Cause.IO,  # a FUSE filesystem whose program has died
    errno.EREMOTEIO: Cause.IO,
    errno.ETIMEDOUT: Cause.IO,
}
_TEXTS: Final = {os.strerror(number).lower(): cause for number, cause in _CAUSES.items()}


def cause_of_errno(number: int) -> Cause:
    """Why the kernel refused, for whoever looks at a path whose cause an engine does not say."""
    return _CAUSES.get(number, Cause.UNKNOWN)


def cause_of_text(text: str) -> Cause:
    """Why, from the text of a Go error, which ends in the kernel's reason."""
    lowered = text.lower()
    for reason, cause in _TEXTS.items():
        if lowered.endswith(reason):
            return cause
    if "changed type" in lowered or "not a regular file" in lowered:
        return Cause.CHANGED
    return next((cause for reason, cause in _TEXTS.items() if reason in lowered), Cause.UNKNOWN)
