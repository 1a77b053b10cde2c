"""The SFTP protocol, version 3, as a client: draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL.

Many requests are under way at a time; a thread of its own hands the answers to those who wait.
"""

import itertools
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT = 1, 2, 3, 4, 5, 6, 7
OPENDIR, READDIR, REMOVE, MKDIR, STAT, RENAME, EXTENDED = 11, 12, 13, 14, 17, 18, 200
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 101, 102, 103, 104, 105, 201
OK, EOF, NO_SUCH_FILE, DENIED, FAILURE = 0, 1, 2, 3, 4
READING, CREATE_NEW = 0x01, 0x02 | 0x08 | 0x20  # SSH_FXF_WRITE | CREAT | EXCL
HAS_SIZE, HAS_OWNER, HAS_MODE, HAS_TIMES, HAS_MORE = 0x1, 0x2, 0x4, 0x8, 0x80000000
PACKET_LIMIT: Final = 1 << 20  # bytes of an answer; OpenSSH's own are at most 256 KiB

FSYNC: Final = b"fsync@openssh.com"
STATVFS: Final = b"statvfs@openssh.com"


class SftpError(Exception):
    """The server refused one request."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class LostError(Exception):
    """The connection is gone, or says nothing any more."""


class Attributes(NamedTuple):
    """What is known of a file."""

    size: int = 0
    mode: int = 0
    mtime: int = 0


class Answer(NamedTuple):
    """One answer's kind and content."""

    kind: int
    data: bytes


class Waiting:
    """A request under way."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: Answer | None = None


def text(value: bytes | memoryview) -> bytes:
    """A string as the protocol writes it."""
    return struct.pack(">I", len(value)) + bytes(value)


class Reader:
    """Takes an answer's content apart. Raises LostError where it ends early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int = 4) -> int:
        """An unsigned integer of that many bytes."""
        return int.from_bytes(self._take(size), "big")

    def text(self) -> bytes:
        """A string."""
        return self._take(self.number())

    def more(self) -> bool:
        """Whether something is left."""
        return self._at < len(self._data)

    def attributes(self) -> Attributes:
        """A file's attributes."""
        flags = self.number()
        size = self.number(8) if flags & HAS_SIZE else 0
        if flags & HAS_OWNER:
            self._take(8)
        mode = self.number() if flags & HAS_MODE else 0
        mtime = 0
        if flags & HAS_TIMES:
            self._take(4)
            mtime = self.number()
        if flags & HAS_MORE:
            for _ in range(2 * self.number()):
                self.text()
        return Attributes(size, mode, mtime)

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise LostError("the server sent a broken answer")
        part = self._data[self._at : end]
        self._at = end
        return part


class SftpWire:
    """A connection. Owns the socket; close it. Used by several threads at a time."""

    def __init__(self, sock: socket.socket, stall_seconds: float) -> None:
        self._sock = sock
        self._stall = stall_seconds
        self._numbers = itertools.count(1)
        self._ready = False
        self._sending = threading.Lock()  # never held by the one who listens
        self._lock = threading.Lock()
        self._waiting: dict[int, Waiting] = {}
        self._lost = ""
        self.extensions: frozenset[bytes] = frozenset()

    def hello(self, seconds: float) -> None:
        """Agree on the version. Raises LostError."""
        self._sock.settimeout(seconds)
        try:
            self._sock.sendall(struct.pack(">IBI", 5, INIT, 3))
            answer = Reader(self._packet())
        except OSError as error:
            raise LostError(str(error) or "no answer") from error
        if answer.number(1) != VERSION or answer.number() < 3:
            raise LostError("the server does not speak SFTP version 3")
        found: set[bytes] = set()
        while answer.more():
            found.add(answer.text())
            answer.text()
        self.extensions = frozenset(found)
        self._sock.settimeout(self._stall)
        self._ready = True
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """End the connection, and the waiting of all who wait."""
        self._lose("the connection was closed")
        with suppress(OSError):  # it may be gone already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def send(self, kind: int, *parts: bytes) -> Waiting:
        """Begin a request. Raises LostError."""
        waiting = Waiting()
        with self._lock:
            if self._lost:
                raise LostError(self._lost)
            number = next(self._numbers)
            self._waiting[number] = waiting
        head = struct.pack(">IBI", 5 + sum(len(p) for p in parts), kind, number)
        try:
            with self._sending:
                self._sock.sendall(b"".join((head, *parts)))
        except OSError as error:
            self._lose(str(error) or "the server takes nothing")
            raise LostError(self._lost) from error
        return waiting

    def wait(self, waiting: Waiting) -> Answer:
        """A request's answer. Raises SftpError for any status but OK, LostError."""
        if not waiting.done.wait(self._stall):
            self._lose("the server does not answer")
        answer = waiting.answer
        if answer is None:
            raise LostError(self._lost or "the server does not answer")
        if answer.kind == STATUS:
            reader = Reader(answer.data)
            code = reader.number()
            if code != OK:
                words = reader.text().decode(errors="replace") if reader.more() else ""
                raise SftpError(code, words or f"status {code}")
        return answer

    def ask(self, kind: int, *parts: bytes) -> Answer:
        """A request and its answer. Raises SftpError, LostError."""
        return self.wait(self.send(kind, *parts))

    def ask_all(self, requests: Iterable[tuple[int, bytes]]) -> list[Answer | SftpError]:
        """Many requests under way together, and their answers in order. Raises LostError."""
        under_way = [self.send(kind, content) for kind, content in requests]
        answers: list[Answer | SftpError] = []
        for waiting in under_way:
            try:
                answers.append(self.wait(waiting))
            except SftpError as error:
                answers.append(error)
        return answers

    def _listen(self) -> None:
        try:
            while True:
                packet = self._packet()
                number = int.from_bytes(packet[1:5], "big")
                with self._lock:
                    waiting = self._waiting.pop(number, None)
                if waiting is None:
                    raise LostError("an answer that nobody asked for")
                waiting.answer = Answer(packet[0], packet[5:])
                waiting.done.set()
        except (OSError, LostError) as error:
            self._lose(str(error) or "the connection broke")

    def _lose(self, why: str) -> None:
        with self._lock:
            self._lost = self._lost or why
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for one in waiting:
            one.done.set()

    def _packet(self) -> bytes:
        size = int.from_bytes(self._exactly(4, idle=True), "big")
        if not 5 <= size <= PACKET_LIMIT:
            raise LostError("the server sent a packet of impossible size")
        return self._exactly(size, idle=False)

    def _exactly(self, size: int, *, idle: bool) -> bytes:
        """That many bytes; silence between answers is for those to judge who wait for one."""
        data = b""
        while len(data) < size:
            try:
                part = self._sock.recv(size - len(data))
            except TimeoutError:
                if data or not idle or not self._ready:
                    raise
                continue
            if not part:
                raise LostError("the connection ended")
            data += part
        return data
