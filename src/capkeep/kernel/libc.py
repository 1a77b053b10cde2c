"""System calls that Python has no function for, through the C library.

Numbers from 424 on are the same on every architecture (include/uapi/asm-generic/unistd.h).
"""

import ctypes
import errno
import os
import struct
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_CAPABILITY_VERSION_3: Final = 0x20080522  # linux/capability.h
_PR_CAP_AMBIENT, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 47, 2, 4  # prctl(2)

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


def raise_ambient(capability: int) -> None:
    """Let what this process starts have a capability as well, by its number. Raises OSError."""
    number = ctypes.c_void_p(capability)
    prctl("PR_CAP_AMBIENT_RAISE", _PR_CAP_AMBIENT, _AMBIENT_RAISE, number)


def clear_ambient() -> None:
    """Let what this process starts have no capability. Raises OSError."""
    prctl("PR_CAP_AMBIENT_CLEAR_ALL", _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2). Raises OSError."""
    if _libc.setns(fd, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> None:
    """mount(2) without data. Raises OSError naming the target."""
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(target))


def umount(target: bytes, flags: int) -> None:
    """umount2(2). Raises OSError naming the target."""
    if _libc.umount2(target, flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(target))


def fallocate(fd: int, length: int) -> None:
    """Get the space for a file's content at once, in one piece where there is one (fallocate(2)).

    Not by posix_fallocate(3), which writes zeros where the filesystem cannot. Raises OSError where there
    is no space; all else does without.
    """
    if _libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(length)) == -1:
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number))


def rename_noreplace(folder: int, old: str, new: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE, of names in a directory. Raises OSError.

    FAT and SMB have no hard links, but this; some filesystems know neither (EINVAL).
    """
    result = _libc.renameat2(
        folder, os.fsencode(old), folder, os.fsencode(new), ctypes.c_uint(_RENAME_NOREPLACE)
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this thread, of masks with 64 bits. Raises OSError."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    halves = [mask >> shift & 0xFFFFFFFF for shift in (0, 32)
              for mask in (effective, permitted, inheritable)]  # fmt: skip
    if _libc.capset(header, struct.pack("=6I", *halves)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")
