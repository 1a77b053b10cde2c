"""What a process may not do although its user may: tried, as nothing in /proc tells of Landlock's rules.

Every user of a host may read and write the devices that are tried here, and make a socket. So whoever
is refused has been refused by what was put around this process, and not by owners and modes.
"""

import os
import socket
from typing import Final

WRITE, READ, SOCKET = "write", "read", "socket"
WRITTEN: Final = "/dev/zero"
UNREAD: Final = "/dev/full"  # in nobody's grant, and nobody keeps it


def refused() -> tuple[str, ...]:
    """Of WRITE, READ and SOCKET those that the kernel refuses this process. Nothing is changed."""
    return tuple(
        name
        for name, is_refused in ((WRITE, _write()), (READ, _read()), (SOCKET, _socket()))
        if is_refused
    )


def can_read(path: str) -> bool:
    """Whether that file can be opened for reading. One that is not there cannot."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _write() -> bool:
    return _is_refused(WRITTEN, os.O_WRONLY)


def _read() -> bool:
    return _is_refused(UNREAD, os.O_RDONLY)


def _is_refused(path: str, flags: int) -> bool:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except PermissionError:
        return True
    except OSError:
        return False  # it is not there: nothing is known
    os.close(fd)
    return False


def _socket() -> bool:
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except PermissionError:
        return True
    except OSError:
        return False
    sock.close()
    return False
