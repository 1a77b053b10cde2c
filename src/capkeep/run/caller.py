"""The person or program that asked for a run, who may be slow, leave, or ask to stop."""

import socket

from capkeep.errors import CapkeepError
from capkeep.rooms.protocol import Channel, Message, ProtocolError, encode

BUFFER_LIMIT = 4 << 20  # bytes kept for a caller that does not read; then it is let go


def refusal(error: CapkeepError, exit_code: int) -> Message:
    """The end of what was asked for, where there was not even a run."""
    return {
        "event": "end",
        "outcome": None,
        "exit_code": exit_code,
        "text": str(error),
        "hint": error.hint,
    }


class Caller:
    """Sends events without ever waiting for the caller: a frozen terminal must not stop a backup."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting = b""
        self.here = True
        self.asked_to_stop = False
        channel.sock.setblocking(False)
        if channel.pending():  # it came together with the request, and select(2) will not show it
            self.hear()

    def sockets(self) -> list[socket.socket]:
        """What to watch for news from the caller."""
        return [self._channel.sock] if self.here else []

    def tell(self, message: Message) -> None:
        """Send an event; progress is dropped while the caller is slow, nothing else is."""
        if not self.here or (self._waiting and message.get("event") == "progress"):
            return
        self._waiting += encode(message)
        self._flush()
        if len(self._waiting) > BUFFER_LIMIT:
            self.leave()

    def _flush(self) -> None:
        try:
            sent = self._channel.sock.send(self._waiting)
            self._waiting = self._waiting[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.leave()

    def hear(self) -> None:
        """Take what the caller says now: the wish to stop, or that it is gone."""
        try:
            more = True
            while more:
                message = self._channel.receive()
                if message is None:
                    self.leave()
                elif message.get("action") == "stop":
                    self.asked_to_stop = True
                more = self._channel.pending()
        except BlockingIOError:
            pass
        except (OSError, ProtocolError):
            self.leave()

    def leave(self) -> None:
        """The caller is gone; the run goes on."""
        self.here = False
        self._waiting = b""

    def drain(self, seconds: float) -> None:
        """Before the end: give a slow caller a moment to take the last words."""
        if not self.here or not self._waiting:
            return
        self._channel.sock.settimeout(seconds)
        try:
            self._channel.sock.sendall(self._waiting)
        except OSError:
            self.leave()
