"""One request of an engine's and its answer: a stream of HTTP/2, served by a thread of its own.

What an engine sends comes through a pipe that belongs to the stream. It may send as much as fits
in there, and more whenever some of it has been taken out: a slow place stops its own stream alone.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from capkeep.kernel.pipes import PIPE_SIZE, enlarge
from capkeep.rooms.rest import frames
from capkeep.rooms.rest.ends import Gone, Outlet, Times, wait, watch
from capkeep.rooms.rest.frames import Code, Kind, Mistake
from capkeep.rooms.rest.hpack import encode
from capkeep.rooms.rest.requests import Request
from capkeep.rooms.rest.store import Blob, StoreError

# A pipe has place for 256 pages (pipe(7)), and a frame may leave its first and last page half empty.
STREAM_WINDOW: Final = PIPE_SIZE // 4 * 3
BUFFER: Final = 256 << 10  # bytes of a body that are taken at a time, and the measure of a stall
CHUNK: Final = 512 << 10  # bytes of an answer that are read at a time


class Windows:
    """How much may be sent: on the connection, and on each stream. Used by all threads."""

    def __init__(self, stall: float) -> None:
        self._stall = stall
        self._changed = threading.Condition()
        self._connection = frames.WINDOW
        self.initial = frames.WINDOW
        self.frame = frames.FRAME_SIZE  # bytes of a frame's content at most

    def take(self, stream: "Stream", wanted: int) -> int:
        """Leave to send at most `wanted` bytes, as soon as there is some. Raises Gone."""
        with self._changed:
            while (got := min(wanted, self._connection, stream.send_window)) <= 0:
                if stream.reset or not self._changed.wait(self._stall):
                    raise Gone("nobody reads")
            if stream.reset:
                raise Gone("not wanted any more")
            self._connection -= got
            stream.send_window -= got
            return got

    def grow(self, stream: "Stream | None", size: int) -> None:
        """The peer can take more, on a stream or on the connection. Raises Mistake."""
        with self._changed:
            if stream is None:
                self._connection += size
            else:
                stream.send_window += size
            now = self._connection if stream is None else stream.send_window
            if now > frames.WINDOW_LIMIT:
                raise Mistake(Code.FLOW_CONTROL_ERROR, "too large a window")
            self._changed.notify_all()

    def set_initial(self, size: int, streams: Iterable["Stream"]) -> None:
        """Every stream's window changes by as much as the first one does. Raises Mistake."""
        with self._changed:
            for stream in streams:
                stream.send_window += size - self.initial
                if stream.send_window > frames.WINDOW_LIMIT:
                    raise Mistake(Code.FLOW_CONTROL_ERROR, "too large a window")
            self.initial = size
            self._changed.notify_all()

    def cut(self, streams: Iterable["Stream"]) -> None:
        """Nothing more may be sent on these."""
        with self._changed:
            for stream in streams:
                stream.reset = True
            self._changed.notify_all()


class Stream:
    """What is known of a stream. The thread that reads the connection fills and closes `into`."""

    def __init__(self, number: int, send_window: int) -> None:
        self.number = number
        self.send_window = send_window
        self.declared = 0  # bytes of its body
        self.got = 0  # bytes of it that have come
        self.received = 0  # bytes that count for its window: padding too
        self.granted = STREAM_WINDOW  # bytes that may count for it in all
        self.ended = False  # the engine has sent all
        self.reset = False  # the engine, or the connection, gave it up
        self.done = False  # nothing more is sent or taken by its thread
        self.out = self.into = -1

    def open_body(self) -> None:
        """Make its pipe. Raises OSError."""
        self.out, self.into = os.pipe()
        enlarge(self.out)

    def close_into(self) -> None:
        """No more of its body comes; safe to call again."""
        if self.into >= 0:
            os.close(self.into)
            self.into = -1


class Exchange:
    """A request and its answer, in the hands of the thread that serves it."""

    def __init__(
        self, stream: Stream, request: Request, outlet: Outlet, windows: Windows, times: Times
    ) -> None:
        self.request = request
        self._stream = stream
        self._outlet = outlet
        self._windows = windows
        self._times = times
        self._left = request.length  # bytes of the body that have not been taken
        self._taken = 0  # bytes that the engine has not been told of
        self._answered = False

    def close(self) -> None:
        """The end of it, whatever has become of it. Raises Gone."""
        stream = self._stream
        if stream.out >= 0:
            os.close(stream.out)
            stream.out = -1
        try:
            if not self._answered and not stream.reset:
                self._outlet.put([frames.reset(stream.number, Code.INTERNAL_ERROR)])
            elif stream.got < stream.declared and not stream.reset:
                # The answer was early; a client that is still sending may stop (RFC 9113, 8.1).
                self._outlet.put([frames.reset(stream.number, Code.NO_ERROR)])
        finally:
            stream.done = True

    # -- the body

    def body(self) -> Iterator[memoryview]:
        """The rest of the body, in pieces that are valid until the next one. Raises Gone."""
        if not self._left:
            return
        buffer = memoryview(bytearray(min(BUFFER, self._left)))
        while self._left:
            wanted = min(self._left, len(buffer))
            self._fill(buffer[:wanted])
            yield buffer[:wanted]

    def _fill(self, buffer: memoryview) -> None:
        deadline = time.monotonic() + self._times.stall
        poll = watch((self._stream.out, select.POLLIN))
        have = 0
        while have < len(buffer):
            wait(poll, -1, deadline)
            got = os.readv(self._stream.out, [buffer[have:]])
            self._took(got)
            have += got

    def pour(self, take: Callable[[int, int], int]) -> None:
        """The rest of the body, unread. Raises Gone, StoreError.

        `take` is told of a pipe that has something, and how much to take out at most; it says how
        much that was.
        """
        deadline, mark = time.monotonic() + self._times.stall, self._left - BUFFER
        poll = watch((self._stream.out, select.POLLIN))
        while self._left:
            wait(poll, -1, deadline)
            self._took(take(self._stream.out, self._left))
            if self._left <= mark:
                deadline, mark = time.monotonic() + self._times.stall, self._left - BUFFER

    def drain(self) -> None:
        """Take the rest in for nothing, whatever has been lost of it. Raises Gone."""
        buffer = bytearray(BUFFER)
        poll = watch((self._stream.out, select.POLLIN)) if self._stream.out >= 0 else None
        while poll is not None:
            wait(poll, -1, time.monotonic() + self._times.stall)
            got = os.readv(self._stream.out, [buffer])
            if not got:
                return
            self._left = max(self._left, got)
            self._took(got)

    def _took(self, size: int) -> None:
        """The engine may send as much again, unless it has announced no more. Raises Gone."""
        if not size:
            raise Gone("a body that ended early")
        self._left -= size
        self._taken += size
        stream = self._stream
        if self._taken >= STREAM_WINDOW // 3 and stream.granted < stream.declared:
            stream.granted += self._taken
            self._outlet.put([frames.window_update(stream.number, self._taken)])
            self._taken = 0

    # -- the answer

    def answer(
        self,
        status: int,
        body: bytes = b"",
        *,
        length: int | None = None,
        kind: str = "text/plain",
        content_range: str = "",
    ) -> None:
        """Send an answer, or only its head if `length` says what follows. Raises Gone."""
        size = len(body) if length is None else length
        last = not body and (not length or self.request.method == "HEAD")
        self._outlet.put([answer_head(
            self._stream.number, encode(status, kind, size, content_range), last=last
        )])  # fmt: skip
        self._answered = True
        if body:
            self._send(memoryview(body), last=True)

    def send_blob(self, blob: Blob, failed: Callable[[StoreError], None]) -> None:
        """Send an announced body. If its store fails halfway, cutting it off is all that is left.

        Raises Gone.
        """
        left = blob.length
        buffer = memoryview(bytearray(min(CHUNK, left)))
        while left:
            try:
                got = blob.read_into(buffer[: min(left, len(buffer))])
            except StoreError as error:
                failed(error)
                self._answered = False  # so it is reset
                raise Gone("the store failed inside an answer") from error
            left -= got
            self._send(buffer[:got], last=not left)

    def _send(self, data: memoryview, *, last: bool) -> None:
        number, limit = self._stream.number, self._windows.frame
        while data:
            got = self._windows.take(self._stream, len(data))
            pieces: list[bytes | memoryview] = []
            for begin in range(0, got, limit):
                part = data[begin : min(begin + limit, got)]
                end = last and begin + len(part) == len(data)
                flags = frames.END_STREAM if end else 0
                pieces += [frames.frame_head(Kind.DATA, flags, number, len(part)), part]
            self._outlet.put(pieces)
            data = data[got:]


def answer_head(stream: int, block: bytes, *, last: bool) -> bytes:
    """The frame that begins an answer, and is all of it if `last`."""
    flags = frames.END_HEADERS | (frames.END_STREAM if last else 0)
    return frames.frame(Kind.HEADERS, flags, stream, block)
