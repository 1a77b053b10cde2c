"""The frames that an engine sends, one after the other, each looked at before it is let in."""

import time
from typing import Final

from capkeep.rooms.rest import frames
from capkeep.rooms.rest.ends import Inlet, Times
from capkeep.rooms.rest.frames import Code, Head, Kind, Mistake
from capkeep.rooms.rest.hpack import LIST_LIMIT, Decoder, Field, PackingError

FRAME_SIZE: Final = 1 << 20  # bytes; Go sends at most 512 KiB (x/net/http2, frameScratchBufferLen)
BLOCK_LIMIT: Final = LIST_LIMIT  # bytes of a packed header
SETTINGS_LIMIT: Final = 64 * 6  # bytes
# What leads to nothing may be sent so often between two answers (CVE-2023-44487, CVE-2019-9512…).
USELESS_LIMIT: Final = 1000

# How long the content of a frame must or may be: RFC 9113, section 6.
_EXACT: Final[dict[int, int]] = {
    Kind.PRIORITY: 5,
    Kind.RST_STREAM: 4,
    Kind.PING: 8,
    Kind.WINDOW_UPDATE: 4,
}
_LIMITS: Final[dict[int, int]] = {
    Kind.SETTINGS: SETTINGS_LIMIT, Kind.GOAWAY: frames.FRAME_SIZE,
    Kind.HEADERS: BLOCK_LIMIT, Kind.CONTINUATION: BLOCK_LIMIT,
}  # fmt: skip
_OF_CONNECTION: Final = (Kind.SETTINGS, Kind.PING, Kind.GOAWAY)
_OF_STREAM: Final = (
    Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.CONTINUATION,
)  # fmt: skip


class Incoming:
    """Frames out of an inlet. All that waits raises Gone, all that looks raises Mistake."""

    def __init__(self, inlet: Inlet, times: Times) -> None:
        self._inlet = inlet
        self._times = times
        self._decoder = Decoder()
        self._useless = 0

    def preface(self) -> None:
        """What a connection begins with, before its first frame."""
        data = self._inlet.read(
            len(frames.PREFACE), idle=self._times.hello, whole=self._times.hello
        )
        if data != frames.PREFACE:
            raise Mistake(Code.PROTOCOL_ERROR, "not HTTP/2")

    def head(self, *, idle: float | None) -> Head:
        """What the next frame begins with, within `idle` seconds, or whenever it comes."""
        data = self._inlet.read(frames.HEAD_SIZE, idle=idle, whole=self._times.head)
        head = frames.parse_head(data)
        if head.length > FRAME_SIZE:
            raise Mistake(Code.FRAME_SIZE_ERROR, "a frame over 1 MiB")
        if head.length != _EXACT.get(head.kind, head.length):
            raise Mistake(Code.FRAME_SIZE_ERROR, "a frame of a wrong size")
        if head.length > _LIMITS.get(head.kind, FRAME_SIZE):
            raise Mistake(Code.ENHANCE_YOUR_CALM, "a frame that says too much")
        if (head.kind in _OF_CONNECTION and head.stream) or (
            head.kind in _OF_STREAM and not head.stream
        ):
            raise Mistake(Code.PROTOCOL_ERROR, "a frame in a wrong place")
        return head

    def content(self, head: Head) -> bytes:
        """The whole content of a frame that is to be read."""
        if not head.length:
            return b""
        return self._inlet.read(head.length, idle=self._times.head, whole=self._times.head)

    def fields(self, head: Head) -> list[Field]:
        """What is in a header, which may go on in further frames."""
        try:
            return self._decoder.decode(self._block(head))
        except PackingError as error:
            raise Mistake(Code.COMPRESSION_ERROR, str(error)) from error

    def _block(self, head: Head) -> bytes:
        """A header block, put together."""
        block = frames.unpad(head, self.content(head))
        deadline = time.monotonic() + self._times.head
        flags = head.flags
        while not flags & frames.END_HEADERS:
            more = self.head(idle=max(0.0, deadline - time.monotonic()))
            if more.kind != Kind.CONTINUATION or more.stream != head.stream:
                raise Mistake(Code.PROTOCOL_ERROR, "a header that is not continued")
            self.count_useless()
            block += self.content(more)
            flags = more.flags
            if len(block) > BLOCK_LIMIT:
                raise Mistake(Code.ENHANCE_YOUR_CALM, "a header over 8 KiB")
        return block

    def count_useless(self) -> None:
        """Another frame that leads to nothing. Raises Mistake."""
        self._useless += 1
        if self._useless > USELESS_LIMIT:
            raise Mistake(Code.ENHANCE_YOUR_CALM, "frames that lead to nothing")

    def useful(self) -> None:
        """Something has been answered: what leads to nothing is counted anew."""
        self._useless = 0
