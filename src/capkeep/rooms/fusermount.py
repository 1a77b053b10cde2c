"""What an engine that shows a filesystem runs as `fusermount`: hands on the device that it was given.

Mounting is done already, by whoever gave the device. The engine expects it on the socket whose number
is in _FUSE_COMMFD (SCM_RIGHTS, as of fusermount3(1)); unmounting, `-u`, is not its business. It runs
below the engine's own filter, and is its own program like the relay.
"""

import _socket
import posix
import sys


def main(device: int, engine: _socket.socket) -> None:
    """Hand over the device."""
    content = device.to_bytes(4, sys.byteorder)
    engine.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, content)])


if __name__ == "__main__":
    if "-u" not in sys.argv:
        main(int(sys.argv[1]), _socket.socket(fileno=int(posix.environ[b"_FUSE_COMMFD"])))
    posix._exit(0)  # noqa: SLF001 os._exit(2), whose module would be an import more
