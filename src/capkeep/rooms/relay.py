"""Hands the pipes that its engine talks to over to the vault, and lives as long as they do.

An engine starts it as the program that reaches its repository. What the two say to each other
never passes through here: the vault is given this program's own standard input and output through
the socket whose number is the first argument (SCM_RIGHTS, unix(7)), and talks to the engine itself.
Of an engine that copies it is the second argument's if the engine names the origin, as its last word.
It is its own program, without any import that is not compiled in: this is the start of every run.
"""

import _socket
import posix
import select
import sys


def main(handover: _socket.socket) -> None:
    """Hand over, then wait until the engine has closed its end, or died."""
    ends = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1))
    handover.sendmsg([b"p"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, ends)])
    posix.close(1)  # the vault's is the last one then, and the engine sees it leave
    gone = select.poll()
    gone.register(0, 0)  # POLLHUP is always told
    gone.poll()


if __name__ == "__main__":
    main(_socket.socket(fileno=int(sys.argv[2 if sys.argv[-1] == "origin:" else 1])))
    posix._exit(0)  # noqa: SLF001 os._exit(2), whose module would be an import more
