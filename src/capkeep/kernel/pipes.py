"""Pipes that hold much (pipe(7))."""

import fcntl
from contextlib import suppress
from typing import Final

PIPE_SIZE: Final = 1 << 20  # bytes; the most that anybody may ask for (pipe-max-size, proc(5))


def enlarge(pipe: int) -> None:
    """Let a pipe hold more, so that its two ends wait less for each other."""
    with suppress(OSError):  # the user's pipes may have reached their limit; small ones do too
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
