"""A room's own request to its vault, of one small object, over a pair of pipes as an engine's.

HTTP/2 as in `http2.py`, from the other side: one request, its answer, and that was the connection.
"""

import os
import select
import time
from typing import Final

from capkeep.rooms.rest import frames
from capkeep.rooms.rest.frames import Head, Kind
from capkeep.rooms.rest.hpack import Decoder, PackingError, encode_request

SECONDS: Final = 60  # until it is answered
SIZE_LIMIT: Final = frames.FRAME_SIZE  # bytes: one frame, and every window is larger at first


def ask(
    incoming: int, outgoing: int, method: str, path: str, content: bytes = b""
) -> tuple[int, str]:
    """The status of the answer, as HTTP has them, and its text. Raises OSError, TimeoutError.

    `incoming` is read from and `outgoing` written to; both stay the caller's.
    """
    assert len(content) <= SIZE_LIMIT
    block = encode_request(method, path, len(content))
    request = frames.frame(Kind.HEADERS, frames.END_HEADERS, 1, block)
    body = frames.frame(Kind.DATA, frames.END_STREAM, 1, content)
    message = memoryview(frames.PREFACE + frames.settings({}) + request + body)
    while message:
        message = message[os.write(outgoing, message) :]
    return _answer(_Frames(incoming, time.monotonic() + SECONDS))


class _Frames:
    """What comes in, by the deadline."""

    def __init__(self, fd: int, deadline: float) -> None:
        self._fd = fd
        self._deadline = deadline
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def next(self) -> tuple[Head, bytes]:
        """The next frame. Raises OSError, TimeoutError."""
        head = frames.parse_head(self._read(frames.HEAD_SIZE))
        if head.length > SIZE_LIMIT:
            raise ConnectionError("the vault says more than it should")
        return head, self._read(head.length)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            left = self._deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                raise TimeoutError("the vault does not answer")
            part = os.read(self._fd, count - len(data))
            if not part:
                raise ConnectionError("the vault left")
            data += part
        return data


def _answer(incoming: _Frames) -> tuple[int, str]:
    status, text = 0, b""
    decoder = Decoder()
    while True:
        head, content = incoming.next()
        if head.kind in (Kind.GOAWAY, Kind.RST_STREAM):
            raise ConnectionError("the vault broke off")
        if head.stream != 1 or head.kind not in (Kind.HEADERS, Kind.DATA):
            continue
        if head.kind == Kind.HEADERS:
            try:
                status = int(dict(decoder.decode(content))[b":status"])
            except (PackingError, KeyError, ValueError) as error:
                raise ConnectionError("the vault gives no status") from error
        else:
            text += content
        if head.flags & frames.END_STREAM:
            return status, text.decode(errors="replace").strip()
