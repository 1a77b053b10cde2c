"""What is said on a room's socket: JSON lines, one request in, events out, one result last.

A request names an action from a fixed vocabulary and options of fixed types; never a command,
and a path only where the action is about paths inside a snapshot. A socket that closes without a
result is a failed step. Closing the socket towards a room stops what the room does.
"""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Final

from capkeep.errors import CapkeepError

MAX_LINE: Final = 1 << 20  # bytes; a longer line is refused, not buffered

Message = dict[str, object]


class ProtocolError(CapkeepError):
    """The other side said something that is not a message, or too much at once."""


def encode(message: Message) -> bytes:
    """One message as one line. Names that are not UTF-8 travel as surrogate escapes."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """One line as one message. Raises ProtocolError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("not a JSON message") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message must be an object")
    return message


def whole_lines(begun: bytearray, data: bytes) -> list[bytes]:
    """The lines that are whole with these bytes; `begun` keeps what belongs to the next one."""
    first, found, rest = data.partition(b"\n")
    begun += first
    if not found:
        return []
    *lines, left = rest.split(b"\n")
    whole = [bytes(begun), *lines]
    begun[:] = left
    return whole


def is_file_name(text: str) -> bool:
    """Whether it is a name in a directory, and nothing else."""
    return text.isprintable() and "/" not in text and text not in ("", ".", "..")


class Channel:
    """A socket that carries messages. Owns the socket; close it or use it as a context."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lines: list[bytes] = []  # whole messages, the next one last
        self._begun = bytearray()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select(2)."""
        return self.sock.fileno()

    def close(self) -> None:
        """Ends the conversation; safe to call again."""
        self.sock.close()

    def send(self, message: Message) -> None:
        """Send one message. Raises OSError when the other side is gone."""
        self.sock.sendall(encode(message))

    def receive(self) -> Message | None:
        """The next message, or None at the end. Raises ProtocolError, TimeoutError, OSError."""
        while not self._lines:
            if len(self._begun) > MAX_LINE:
                raise ProtocolError(f"a message is longer than {MAX_LINE} bytes")
            data = self.sock.recv(65536)
            if not data:
                if self._begun:
                    raise ProtocolError("the conversation ended inside a message")
                return None
            self._take(data)
        return decode(self._lines.pop())

    def take(self, data: bytes) -> None:
        """Bytes that came on the socket, and that somebody else has received."""
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Every byte is looked at once, however small the pieces in which a message comes."""
        if lines := whole_lines(self._begun, data):
            self._lines = lines[::-1]

    def hear(self, take: Callable[[Message], None]) -> bool:
        """Take what is there now, without waiting for the rest of a message.

        False when the other side has left, or says what is no message. The socket waits for nothing
        any more.
        """
        self.sock.setblocking(False)
        try:
            while (message := self.receive()) is not None:
                take(message)
                if not self.pending():
                    return True
        except BlockingIOError:
            return True
        except (OSError, ProtocolError):
            pass
        return False

    def pending(self) -> bool:
        """Whether a whole message is already buffered (select would not show it)."""
        return bool(self._lines)

    def __iter__(self) -> Iterator[Message]:
        while (message := self.receive()) is not None:
            yield message
