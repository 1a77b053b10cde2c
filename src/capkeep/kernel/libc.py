"""System calls that Python has no function for, through the C library.

Numbers from 424 on are the same on every architecture (include/uapi/asm-generic/unistd.h).
"""

import ctypes
import os
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Argument = int | bytes | ctypes.Array[ctypes.c_char] | ctypes.c_void_p | None


def syscall(what: str, number: int, *args: Argument) -> int:
    """syscall(2): integers go as 64 bits. Raises OSError, whose file name says `what` was tried."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def prctl(what: str, option: int, value: int = 0, pointer: ctypes.c_void_p | None = None) -> int:
    """prctl(2) with up to two arguments. Raises OSError."""
    result = int(_libc.prctl(option, ctypes.c_ulong(value), pointer, None, None))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> None:
    """mount(2) without data. Raises OSError naming the target."""
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(target))
