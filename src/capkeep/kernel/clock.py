"""Whether something keeps this host's clock right (adjtimex(2))."""

import ctypes
from functools import cache
from typing import Final

_TIME_ERROR: Final = 5
_SIZE: Final = 256  # struct timex has 208 bytes


@cache
def is_kept_right() -> bool:
    """False if the kernel calls the clock unsynchronised; True where that cannot be known.

    Asked once in a program's life. A container is told about its host's clock. Only asking is tried
    here: nothing can be set without CAP_SYS_TIME. Where calls that concern the clock are denied, it
    cannot be known.
    """
    return state_of_clock() != _TIME_ERROR


def state_of_clock() -> int:
    """What adjtimex(2) returns; -1 where it may not be called."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_SIZE)))
