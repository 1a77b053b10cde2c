"""Landlock: writing (and reading) only below given paths, no TCP, no reaching out of the room.

Read-only mounts do not stop writing to a world-writable FIFO that lies on them, and nothing but a
scope stops a signal to another process of the same user; both were measured.
Sources: landlock(7), linux/landlock.h, Documentation/userspace-api/landlock.rst.
"""

import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.kernel import libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION: Final = 1
_RULE_PATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_WRITE_FILE, _TRUNCATE, _IOCTL_DEV = 1 << 1, 1 << 14, 1 << 15
_FILE_RIGHTS: Final = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
# WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, _DIR, _REG, _SOCK, _FIFO, _BLOCK, _SYM
_WRITE_V1: Final = _WRITE_FILE | 0b1_1111_1111 << 4
_REFER: Final = 1 << 13
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2


class Reading(NamedTuple):
    """What may be read. A link that stands at the end of a path is not followed."""

    whole: tuple[str, ...]  # files, and directories with all in them
    names: tuple[str, ...] = ()  # directories of which only the names in them, and below, may be


def abi() -> int:
    """Which Landlock the kernel offers; 0 for none."""
    try:
        return libc.syscall("landlock", _CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0  # not built in (ENOSYS), switched off (EOPNOTSUPP), or filtered (EPERM)


def write_rights(version: int) -> int:
    """All rights of that ABI that change something."""
    rights = _WRITE_V1
    rights |= _REFER if version >= 2 else 0
    rights |= _TRUNCATE if version >= 3 else 0
    rights |= _IOCTL_DEV if version >= 5 else 0
    return rights


def restrict(
    writable: Sequence[str],
    *,
    network: bool,
    special: Sequence[str] = ("/dev/null",),
    reading: Reading | None = None,
) -> int:
    """Confine this process and its children for ever; returns the ABI in force, 0 for none.

    `writable` are directories or files; `special` are device files that may be written where they
    exist. Without `network` no TCP (from ABI 4): neither bind nor connect.
    From ABI 6: no abstract sockets and no signals to processes outside.
    With `reading` what is neither named there nor writable is not to be read either.
    Raises OSError when a path of `writable` is missing, or when the kernel has Landlock and
    refuses.
    """
    version = abi()
    if not version:
        return 0
    handled = write_rights(version)
    handled |= _READ_FILE | _READ_DIR if reading else 0
    ruleset = _create(version, handled, tcp=not network)
    try:
        for path in reading.whole if reading else ():
            with suppress(FileNotFoundError, PermissionError):  # gone, or another user's FUSE
                _allow_path(ruleset, path, _READ_FILE | _READ_DIR, follow=False)
        for path in reading.names if reading else ():
            with suppress(FileNotFoundError, PermissionError):
                _allow_path(ruleset, path, _READ_DIR, follow=False)
        for path in writable:
            _allow_path(ruleset, path, handled)
        for path in special:
            if os.path.exists(path):
                _allow_path(ruleset, path, handled)
        libc.prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
        libc.syscall("landlock", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _create(version: int, handled: int, *, tcp: bool) -> int:
    attributes = struct.pack("Q", handled)
    if version >= 4:
        attributes += struct.pack("Q", _BIND_TCP | _CONNECT_TCP if tcp else 0)
    if version >= 6:
        attributes += struct.pack("Q", _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL)
    return libc.syscall("landlock", _CREATE_RULESET, attributes, len(attributes), 0)


def _allow_path(ruleset: int, path: str, rights: int, *, follow: bool = True) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        rule = struct.pack("=Qi", rights if directory else rights & _FILE_RIGHTS, fd)
        libc.syscall(path, _ADD_RULE, ruleset, _RULE_PATH, rule, 0)
    finally:
        os.close(fd)
