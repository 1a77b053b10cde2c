"""Where a vault is given the pipes that an engine talks to: what a relay sends, and nothing else.

Whoever sends is as little trusted as the engine: it may be the engine. All that is kept is a pair
of the kernel's own pipes, one to be read and one to be written; everything else is closed at once.
"""

import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from typing import Final, NamedTuple

_CLOEXEC: Final = socket.MSG_CMSG_CLOEXEC
_ACCESS: Final = os.O_ACCMODE | os.O_PATH | os.O_DIRECT  # packets (pipe(7)) are no stream
JUNK_LIMIT: Final = 100  # messages that bring nothing of use, before nobody listens any more
_MANY: Final = 8  # descriptors of a message; the kernel closes what is more than there is place for


class Ends(NamedTuple):
    """Our ends of the two pipes. Close them, or hand them on."""

    incoming: int
    outgoing: int

    def close(self) -> None:
        """The engine sees us leave."""
        os.close(self.incoming)
        os.close(self.outgoing)


class Handover:
    """The vault's end of the socket that relays send through. Owns it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._device = _pipe_device()
        self._junk = 0
        sock.setblocking(False)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._sock.fileno()

    def close(self) -> None:
        """Nothing more is taken."""
        self._sock.close()

    def take(self) -> Ends | None:
        """What one message brings, if that is a pair of pipes. Raises EOFError when no more will come."""
        try:
            data, fds, whole = receive(self._sock, 1, _MANY)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        if not data and not fds:
            raise EOFError
        if whole and len(fds) == 2 and self._fits(*fds):
            return Ends(*fds)
        for fd in fds:
            os.close(fd)
        self._junk += 1
        if self._junk > JUNK_LIMIT:
            raise EOFError
        return None

    def _fits(self, incoming: int, outgoing: int) -> bool:
        """Whether they are two pipes without a name, opened as they should be."""
        try:
            states = [os.fstat(fd) for fd in (incoming, outgoing)]
            modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & _ACCESS for fd in (incoming, outgoing)]
        except OSError:
            return False
        return (
            all(stat.S_ISFIFO(s.st_mode) and s.st_dev == self._device for s in states)
            and states[0].st_ino != states[1].st_ino
            and modes == [os.O_RDONLY, os.O_WRONLY]
        )


def _pipe_device() -> int:
    """The filesystem on which pipes without a name are (pipefs): a FIFO's is another."""
    out, into = os.pipe()
    try:
        return os.fstat(out).st_dev
    finally:
        os.close(out)
        os.close(into)


def receive(sock: socket.socket, size: int, many: int) -> tuple[bytes, list[int], bool]:
    """Bytes, descriptors, and whether those were all. Raises OSError.

    The descriptors are the caller's to close.
    """
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(4 * many), _CLOEXEC)
    found: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = len(content) // 4
            found += struct.unpack(f"={numbers}i", content[: 4 * numbers])
    return data, found, not flags & socket.MSG_CTRUNC


def is_handover(fd: int) -> bool:
    """Whether it is a socket that relays may send through: connected, and of this machine alone."""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        return (
            sock.family == socket.AF_UNIX
            and sock.type == socket.SOCK_STREAM
            and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and sock.getpeername() is not None
        )
    return False
