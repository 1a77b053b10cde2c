"""Knock at the runner's door before the rest of a command has loaded: it starts meanwhile."""

import socket

# The door of a host's own runner (`plan.places`); a prefix's or a user's is not known this early.
DOOR = "/run/capkeep/run.sock"
FLAGS = frozenset(("--accept-shrink", "--dry-run", "--json", "--proof"))

_knocked: list[socket.socket] = []


def knock(arguments: list[str]) -> None:
    """Connect if the command line asks for a run in the plainest way; what fails is met again."""
    if arguments[:1] != ["run"] or any(w[:1] == "-" and w not in FLAGS for w in arguments):
        return
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(DOOR)
    except OSError:
        sock.close()
    else:
        _knocked.append(sock)


def opened(path: str) -> socket.socket | None:
    """The connection to that door, if it was made early; it is the taker's from now on."""
    if path != DOOR or not _knocked:
        return None
    return _knocked.pop()
