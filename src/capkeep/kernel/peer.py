"""Who is on the other end of a unix socket, as the kernel knows him: never what he says himself."""

import socket
import struct
from typing import Final, NamedTuple

from capkeep.errors import RefusedError
from capkeep.kernel.facts import OVERFLOW_ID

_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; Python 3.11 has no name for it
_MOST: Final = 1024  # bytes that Python asks a socket for: 256 groups


class Peer(NamedTuple):
    """The user that connected, at the moment when he did."""

    uid: int
    gid: int
    groups: frozenset[int]  # all of them, the first included


def peer_of(sock: socket.socket) -> Peer:
    """Who connected (SO_PEERCRED, SO_PEERGROUPS of unix(7)). Raises RefusedError, OSError.

    Whoever has an id that this process has no number for is refused: he would look like somebody
    else, or like somebody who is not in a group that is denied something.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("iII", raw)
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST)
    except OSError as error:
        raise RefusedError(f"the kernel does not tell the caller's groups: {error}") from error
    groups = frozenset((gid, *struct.unpack(f"{len(packed) // 4}I", packed)))
    if OVERFLOW_ID in (uid, *groups):
        raise RefusedError("a user or group of the caller's has no number in this room")
    return Peer(uid, gid, groups)
