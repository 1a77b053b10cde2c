"""A client of HTTP/2 on a pair of pipes: as proper or as improper as a test wants it."""

import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

from capkeep.rooms.rest import frames
from capkeep.rooms.rest.frames import Code, Head, Kind, Setting
from capkeep.rooms.rest.hpack import Decoder

SECONDS = 40.0
HELLO = frames.PREFACE + frames.settings({Setting.ENABLE_PUSH: 0})
Fields = Iterable[tuple[str, str]]


def literal(name: str, value: str) -> bytes:
    """A field that is neither packed nor to be remembered."""
    return b"\0" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode("latin-1", "replace")
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest = len(data) - 127
    size = b"\x7f"
    while rest >= 128:
        size += bytes([rest & 127 | 128])
        rest >>= 7
    return size + bytes([rest]) + data


def pseudo(method: str, target: str) -> list[tuple[str, str]]:
    return [
        (":authority", "localhost"), (":method", method), (":path", target), (":scheme", "http"),
    ]  # fmt: skip


def headers(
    stream: int, fields: Fields, *, end: bool = True, flags: int = frames.END_HEADERS
) -> bytes:
    block = b"".join(literal(n, v) for n, v in fields)
    return frames.frame(Kind.HEADERS, flags | (frames.END_STREAM if end else 0), stream, block)


def data(stream: int, content: bytes, *, end: bool = True) -> bytes:
    return frames.frame(Kind.DATA, frames.END_STREAM if end else 0, stream, content)


def request(
    method: str, target: str, body: bytes | None = None, more: Fields = (), stream: int = 1
) -> bytes:
    """A whole request."""
    length = [] if body is None else [("content-length", str(len(body)))]
    fields = [*pseudo(method, target), *length, *more]
    if not body:
        return headers(stream, fields)
    return headers(stream, fields, end=False) + data(stream, body)


def hand_over(handover: socket.socket) -> tuple[int, int]:
    """What a relay does: (to be written, to be read)."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    socket.send_fds(handover, [b"p"], [their_in, their_out])
    os.close(their_in)
    os.close(their_out)
    return our_out, our_in


def say(handover: socket.socket, content: bytes) -> bytes:
    """Send bytes and leave; everything that came back."""
    out, into = hand_over(handover)
    os.set_blocking(out, False)
    answer = b""
    deadline = time.monotonic() + SECONDS
    try:
        poll = select.poll()
        poll.register(into, select.POLLIN)
        left = memoryview(content)
        while time.monotonic() < deadline:
            if left:
                try:
                    left = left[os.write(out, left) :]
                except BlockingIOError:
                    pass
                except BrokenPipeError:
                    left = left[:0]
                if not left:
                    # Whoever is served must not see us leave before it has answered.
                    quiet = time.monotonic() + 0.3
            elif out >= 0 and time.monotonic() > quiet:
                os.close(out)
                out = -1
            if poll.poll(20):
                part = os.read(into, 65536)
                if not part:
                    return answer
                answer += part
                quiet = time.monotonic() + 0.05
        raise TimeoutError("the vault does not end a pair")
    finally:
        os.close(into)
        if out >= 0:
            os.close(out)


def split(answer: bytes) -> list[tuple[Head, bytes]]:
    """The frames in what a vault has said."""
    found = []
    while len(answer) >= frames.HEAD_SIZE:
        head = frames.parse_head(answer[: frames.HEAD_SIZE])
        found.append((head, answer[frames.HEAD_SIZE : frames.HEAD_SIZE + head.length]))
        answer = answer[frames.HEAD_SIZE + head.length :]
    return found


def status_of(block: bytes) -> int:
    return int(dict(Decoder().decode(block))[b":status"])


class Client:
    """One proper request after the other. Close it."""

    def __init__(self, handover: socket.socket, window: int = frames.WINDOW) -> None:
        self.out, self.into = hand_over(handover)
        fcntl.fcntl(self.out, 1031, 1 << 20)
        self._poll = select.poll()
        self._poll.register(self.into, select.POLLIN)
        self._next = 1
        self.initial = frames.WINDOW
        self.connection = frames.WINDOW
        self.windows: dict[int, int] = {}
        self.answers: dict[int, tuple[int, bytearray, bool]] = {}
        self.resets: dict[int, int] = {}
        self.goaway: Code | None = None
        self.send(frames.PREFACE + frames.settings({Setting.INITIAL_WINDOW_SIZE: window}))

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.out)
        os.close(self.into)

    def send(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(self.out, left) :]

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            if not self._poll.poll(SECONDS * 1000):
                raise TimeoutError("the vault says nothing")
            part = os.read(self.into, count - len(found))
            if not part:
                raise EOFError
            found += part
        return found

    def hear(self) -> None:
        """Take in one frame. Raises EOFError."""
        head = frames.parse_head(self._exactly(frames.HEAD_SIZE))
        content = self._exactly(head.length)
        match head.kind:
            case Kind.SETTINGS if not head.flags & frames.ACK:
                for name, value in struct.iter_unpack(">HI", content):
                    if name == Setting.INITIAL_WINDOW_SIZE:
                        for stream in self.windows:
                            self.windows[stream] += value - self.initial
                        self.initial = value
                self.send(frames.frame(Kind.SETTINGS, frames.ACK, 0))
            case Kind.WINDOW_UPDATE:
                (size,) = struct.unpack(">I", content)
                if head.stream:
                    self.windows[head.stream] = self.windows.get(head.stream, self.initial) + size
                else:
                    self.connection += size
            case Kind.HEADERS:
                end = bool(head.flags & frames.END_STREAM)
                self.answers[head.stream] = (status_of(content), bytearray(), end)
            case Kind.DATA:
                status, body, _ = self.answers[head.stream]
                body += content
                end = bool(head.flags & frames.END_STREAM)
                self.answers[head.stream] = (status, body, end)
                if content:
                    self.send(frames.window_update(0, len(content)))
                    if not end:
                        self.send(frames.window_update(head.stream, len(content)))
            case Kind.RST_STREAM:
                self.resets[head.stream] = struct.unpack(">I", content)[0]
            case Kind.GOAWAY:
                self.goaway = Code(struct.unpack(">I", content[4:8])[0])

    def begin(self, method: str, target: str, length: int | None = None, **more: str) -> int:
        """The head of a request; the number of its stream."""
        stream = self._next
        self._next += 2
        given = [(n.replace("_", "-"), v) for n, v in more.items()]
        size = [] if length is None else [("content-length", str(length))]
        self.windows[stream] = self.initial
        self.send(headers(stream, [*pseudo(method, target), *size, *given], end=not length))
        return stream

    def upload(self, stream: int, body: bytes, *, end: bool = True) -> None:
        """Some of its body, within the windows; stops when it is answered before its end."""
        left = memoryview(body)  # slices of bytes would be copies of all that is left
        while left:
            while min(self.windows[stream], self.connection) <= 0:
                if self.answered(stream):
                    return
                self.hear()
            part = left[: min(len(left), self.windows[stream], self.connection, 16384)]
            left = left[len(part) :]
            self.windows[stream] -= len(part)
            self.connection -= len(part)
            self.send(data(stream, bytes(part), end=end and not left))

    def answered(self, stream: int) -> bool:
        return stream in self.resets or (stream in self.answers and self.answers[stream][2])

    def answer(self, stream: int) -> tuple[int, bytes]:
        """Its status and body; (0, b"") if it never comes."""
        with suppress(EOFError, OSError):
            while not self.answered(stream):
                self.hear()
        status, body, end = self.answers.get(stream, (0, bytearray(), False))
        return (status, bytes(body)) if end else (0, b"")

    def ask(self, method: str, target: str, body: bytes = b"", **more: str) -> tuple[int, bytes]:
        stream = self._next
        with suppress(OSError, EOFError):
            self.begin(method, target, len(body) or None, **more)
            self.upload(stream, body)
        return self.answer(stream)
