"""The frames of HTTP/2, taken apart and put together (RFC 9113, sections 4 and 6)."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_SIZE: Final = 9
WINDOW: Final = 65535  # bytes; every window before anybody has said something else
WINDOW_LIMIT: Final = (1 << 31) - 1
FRAME_SIZE: Final = 16384  # bytes of a frame's content before anybody has said something else
FRAME_LIMIT: Final = (1 << 24) - 1

END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20


class Kind(IntEnum):
    """RFC 9113, section 6."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(IntEnum):
    """Why something is ended: RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Setting(IntEnum):
    """RFC 9113, 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Mistake(Exception):
    """The peer broke the protocol: the connection ends."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Head(NamedTuple):
    """What every frame begins with."""

    length: int
    kind: int
    flags: int
    stream: int


def parse_head(data: bytes) -> Head:
    """Nine bytes as a head."""
    high, low, kind, flags, stream = struct.unpack(">HBBBI", data)
    return Head(high << 8 | low, kind, flags, stream & WINDOW_LIMIT)


def frame(kind: Kind, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A whole frame."""
    return frame_head(kind, flags, stream, len(content)) + content


def frame_head(kind: Kind, flags: int, stream: int, length: int) -> bytes:
    """What comes before `length` bytes of content."""
    return struct.pack(">HBBBI", length >> 8, length & 0xFF, kind, flags, stream)


def settings(values: dict[Setting, int]) -> bytes:
    """What we would like the peer to keep to."""
    content = b"".join(struct.pack(">HI", k, v) for k, v in values.items())
    return frame(Kind.SETTINGS, 0, 0, content)


def window_update(stream: int, size: int) -> bytes:
    """So many bytes more may be sent on a stream, or on the connection (0)."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def reset(stream: int, code: Code) -> bytes:
    """The end of a stream, before its time."""
    return frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", code))


def goaway(last: int, code: Code, text: str = "") -> bytes:
    """The end of a connection, and up to which stream things were done."""
    return frame(Kind.GOAWAY, 0, 0, struct.pack(">II", last, code) + text.encode()[:200])


def parse_settings(content: bytes) -> Iterator[tuple[int, int]]:
    """Each setting and its value, if RFC 9113, 6.5.2 allows it. Raises Mistake."""
    for name, value in struct.iter_unpack(">HI", content):
        if name == Setting.ENABLE_PUSH and value > 1:
            raise Mistake(Code.PROTOCOL_ERROR, "pushing is on or off")
        if name == Setting.INITIAL_WINDOW_SIZE and value > WINDOW_LIMIT:
            raise Mistake(Code.FLOW_CONTROL_ERROR, "too large a window")
        if name == Setting.MAX_FRAME_SIZE and not FRAME_SIZE <= value <= FRAME_LIMIT:
            raise Mistake(Code.PROTOCOL_ERROR, "not a size for frames")
        yield name, value


def parse_window_update(content: bytes) -> int:
    """Bytes to be added to a window. Raises Mistake."""
    size = int(struct.unpack(">I", content)[0]) & WINDOW_LIMIT
    if not size:
        raise Mistake(Code.PROTOCOL_ERROR, "a window that does not grow")
    return size


def unpad(head: Head, content: bytes) -> bytes:
    """The header block in a HEADERS frame. Raises Mistake."""
    padding = 0
    if head.flags & PADDED:
        padding, content = (content[0] if content else 0), content[1:]
    if head.flags & PRIORITIZED:
        if len(content) < 5:
            raise Mistake(Code.FRAME_SIZE_ERROR, "no room for a priority")
        content = content[5:]
    if padding > len(content):
        raise Mistake(Code.PROTOCOL_ERROR, "more padding than content")
    return content[: len(content) - padding]
