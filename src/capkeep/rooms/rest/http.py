"""The server's side of HTTP/1.1, as much as restic speaks and not a byte more.

RFC 9112. Every restic from 0.14 to 0.19 sends the length of what it uploads; 0.18 and 0.19 send the
empty body of their request to create a repository as a chunked one. So a chunked body must be
empty: two ways to say where a request ends are the root of request smuggling. Written here because
importing `http.server` costs a vault 40 ms of its start.
"""

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.rooms.rest.store import Blob, StoreError

BUFFER: Final = 256 << 10  # bytes read at a time
HEAD_LIMIT: Final = 8 << 10  # bytes of a request line with its header
HEADERS_LIMIT: Final = 32
NO_CHUNKS: Final = b"0\r\n\r\n"
DRAIN_LIMIT: Final = 1 << 20  # bytes read of a broken request so that its sender sees the answer

REASONS: Final = {
    200: "OK", 206: "Partial Content", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 413: "Content Too Large", 416: "Range Not Satisfiable",
    417: "Expectation Failed", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
    507: "Insufficient Storage",
}  # fmt: skip

_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,255}) HTTP/1\.1")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([ -~\t]{0,1024}?)[ \t]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_RANGE: Final = re.compile(rb"bytes=([0-9]{1,15})-([0-9]{1,15})?")


class Times(NamedTuple):
    """How long an engine may take, in seconds."""

    head: float = 30  # from a request's first byte to the end of its header
    # An idle connection is kept longer than Go's client keeps it (90 s, net/http
    # DefaultTransport.IdleConnTimeout): so it is never us who close it under a new request.
    idle: float = 300
    stall: float = 120  # for each 256 KiB of a body: a minimum rate of about 2 KiB/s


class Refusal(Exception):
    """A request that is answered with an error. `broken`: where it ends is unknown."""

    def __init__(self, status: int, text: str, *, broken: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.broken = broken


class Gone(Exception):
    """The client left or took too long; there is nobody to answer."""


class Request(NamedTuple):
    """A request's head."""

    method: str
    target: str
    length: int = 0
    range: tuple[int, int | None] | None = None  # first and last byte
    accept: str = ""
    expects: bool = False  # waits for "100 Continue"
    close: bool = False
    chunked: bool = False  # with an empty body


def parse_head(head: bytes) -> Request:
    """Parse a request's line and header, without the empty line. Raises Refusal."""
    first, *lines = head.split(b"\r\n")
    match = _LINE.fullmatch(first)
    if match is None:
        raise Refusal(400, "not a request line of HTTP/1.1", broken=True)
    if len(lines) > HEADERS_LIMIT:
        raise Refusal(431, "too many header fields", broken=True)
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Refusal(400, "not a header field", broken=True)
        name = field[1].lower()
        if name in fields:
            raise Refusal(400, "a header field twice", broken=True)
        fields[name] = field[2]
    return _request(match[1].decode(), match[2].decode(), fields)


def _request(method: str, target: str, fields: dict[bytes, bytes]) -> Request:
    if not fields.get(b"host"):
        raise Refusal(400, "no host", broken=True)
    coding = fields.get(b"transfer-encoding", b"")
    if coding not in (b"", b"chunked") or (coding and b"content-length" in fields):
        raise Refusal(501, "a body must have a known length", broken=True)
    length = fields.get(b"content-length", b"0")
    if _LENGTH.fullmatch(length) is None:
        raise Refusal(400, "not a length", broken=True)
    if (int(length) or coding) and method != "POST":
        raise Refusal(400, "only uploads have a body", broken=True)
    expect = fields.get(b"expect", b"").lower()
    if expect not in (b"", b"100-continue"):
        raise Refusal(417, "unknown expectation", broken=True)
    return Request(
        method, target, int(length), _byte_range(fields.get(b"range")),
        fields.get(b"accept", b"").decode(), bool(expect),
        b"close" in fields.get(b"connection", b"").lower(), bool(coding),
    )  # fmt: skip


def _byte_range(value: bytes | None) -> tuple[int, int | None] | None:
    if value is None:
        return None
    match = _RANGE.fullmatch(value)
    if match is None:
        raise Refusal(400, "only one range from the start is served", broken=True)
    first, last = int(match[1]), int(match[2]) if match[2] else None
    if last is not None and last < first:
        raise Refusal(400, "a range that ends before it begins", broken=True)
    return first, last


class Connection:
    """One client's connection: requests in, answers out. Owned by one thread."""

    def __init__(self, sock: socket.socket, times: Times) -> None:
        self.sock = sock
        self._times = times
        self._pending = b""
        self._unread = 0  # bytes of the current request's body
        self._buffer: bytearray | None = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._limit(socket.SO_SNDTIMEO, times.stall)

    def _limit(self, option: int, seconds: float) -> None:
        """In the kernel: a timeout of Python's costs a poll(2) before every call."""
        whole = int(seconds)
        timeval = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, option, timeval)

    def requests(self) -> Iterator[Request]:
        """Requests until the client leaves. Raises Refusal, Gone."""
        while (head := self._head()) is not None:
            request = parse_head(head)
            self._unread = request.length
            if request.chunked:
                self._end_of_chunks()
            yield request

    def _end_of_chunks(self) -> None:
        """The end of a chunked body, which must be all of it. Raises Refusal, Gone."""
        self._unread = len(NO_CHUNKS)
        if b"".join(bytes(piece) for piece in self.body()) != NO_CHUNKS:
            raise Refusal(501, "a body must have a known length", broken=True)

    def _head(self) -> bytes | None:
        """The next request's head; None when the client leaves between two requests."""
        deadline = None
        while True:
            if self._pending and deadline is None:
                deadline = time.monotonic() + self._times.head
                self._limit(socket.SO_RCVTIMEO, self._times.head)
            head, found, rest = self._pending.partition(b"\r\n\r\n")
            if len(head) > HEAD_LIMIT:
                raise Refusal(431, "a header over 8 KiB", broken=True)
            if found:
                self._pending = rest
                self._limit(socket.SO_RCVTIMEO, self._times.stall)
                return head
            if deadline is None:
                self._limit(socket.SO_RCVTIMEO, self._times.idle)
            elif time.monotonic() > deadline:
                raise Gone("a header took too long")
            try:
                data = self.sock.recv(HEAD_LIMIT)
            except OSError as error:
                raise Gone("no request") from error
            if not data:
                return None
            self._pending += data

    def body(self) -> Iterator[memoryview]:
        """The rest of the current request's body, in pieces that are valid until the next one."""
        while self._unread:
            if self._pending:
                piece = self._pending[: self._unread]
                self._pending = self._pending[len(piece) :]
                self._unread -= len(piece)
                yield memoryview(piece)
                continue
            if self._buffer is None:
                self._buffer = bytearray(BUFFER)
            wanted = min(self._unread, BUFFER)
            try:
                got = self.sock.recv_into(self._buffer, wanted, socket.MSG_WAITALL)
            except OSError as error:
                raise Gone("no body") from error
            if got != wanted:
                raise Gone("a body that ended early or took too long")
            self._unread -= got
            yield memoryview(self._buffer)[:got]

    def proceed(self) -> None:
        """Tell a client that waits for it to send its body. Raises Gone."""
        self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer(
        self,
        status: int,
        body: bytes = b"",
        *,
        length: int | None = None,
        kind: str = "text/plain",
        more: str = "",
        close: bool = False,
    ) -> None:
        """Send an answer, or only its head if `length` says what follows. Raises Gone."""
        if close:
            more += "Connection: close\r\n"
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n{more}\r\n"
        )
        self._send(head.encode() + body)

    def _send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Gone("nobody listens") from error

    def send_blob(self, blob: Blob, failed: Callable[[StoreError], None]) -> None:
        """Send an announced body. If its store fails halfway, cutting it off is all that is left.

        Raises Gone.
        """
        try:
            blob.send(self.sock)
        except StoreError as error:
            failed(error)
            raise Gone("the store failed inside an answer") from error
        except OSError as error:
            raise Gone("nobody listens") from error

    def refuse(self, refusal: Refusal) -> None:
        """Answer a request whose end is unknown; the connection is over then. Raises Gone."""
        self.answer(refusal.status, (refusal.text + "\n").encode(), close=True)
        self.linger()

    def linger(self) -> None:
        """Take in a little of what was still sent, or a reset would destroy our answer."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            self._limit(socket.SO_RCVTIMEO, 1)
            left = DRAIN_LIMIT
            while left > 0 and (data := self.sock.recv(BUFFER)):
                left -= len(data)
