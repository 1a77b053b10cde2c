"""An sftp-server that lies: all is the real one's, but what the first argument says; run as a program.

Its own program and arguments follow.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

VERSION, READDIR, LSTAT, STATUS, NAME = 2, 12, 7, 101, 104
LAST_WORD = b".capkeep-"
MANY, LONG = (
    250,
    200,
)  # names in an answer, and characters of each: sshfs takes no more than 128 KiB


def packets(stream: IO[bytes]) -> Iterator[bytes]:
    """Each without its length."""
    while len(head := stream.read(4)) == 4:
        yield stream.read(int.from_bytes(head, "big"))


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def names(number: bytes, count: int) -> bytes:
    """An answer with files of these names, which are all alike."""
    text = framed(b"n" * LONG)
    attributes = (4).to_bytes(4, "big") + (0o100644).to_bytes(4, "big")
    body = bytes((NAME,)) + number + count.to_bytes(4, "big") + (text + text + attributes) * count
    return framed(body)


def main(lie: str, *argv: str) -> None:
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    asking, answering = server.stdin, server.stdout
    listing: set[bytes] = set()

    def ask() -> None:
        for body in packets(sys.stdin.buffer):
            if body[0] == READDIR:
                listing.add(body[1:5])
            if lie == "cut-at-the-end" and LAST_WORD in body:
                server.kill()
                os._exit(0)
            asking.write(framed(body))
            asking.flush()
        server.kill()
        os._exit(0)

    threading.Thread(target=ask, daemon=True).start()
    out = sys.stdout.buffer
    for body in packets(answering):
        said = framed(body)
        if body[0] == VERSION and lie == "cut-at-the-end":
            said = framed(body[:5])  # no extension: sshfs makes up what it would have asked for
        elif body[0] == VERSION and lie == "half":
            said = said[:20]
        elif body[0] == VERSION and lie == "unasked":
            said += framed(bytes((STATUS,)) + b"\xff" * 4 + bytes(12)) * 60
        elif body[0] in (NAME, STATUS) and body[1:5] in listing and lie.startswith("endless"):
            said = names(body[1:5], 1 if lie == "endless-slow" else MANY)
            time.sleep(0.5 if lie == "endless-slow" else 0)
        out.write(said)
        out.flush()
        if body[0] == VERSION and lie in ("half", "unasked"):
            time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
