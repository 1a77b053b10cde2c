"""Many streams in one connection: frames, credit, and what makes the other side a liar; pure.

Each side says hello first, so that a shell's banner is told from frames. Then frames: a type (one
byte), a channel (two), a length (four; big-endian), and so many bytes. Two channels are there from the
beginning; the side that has the engine opens more, each for one pair of pipes. Nobody sends more on a
channel than the other side has given credit for, so whoever does not take what comes stops that
channel alone, and no side ever holds more than it has offered.
"""

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from capkeep.errors import CapkeepError

HELLO: Final = b"capkeep pull 1\n"
TALK: Final = 0  # the conversation with the reader: lines of JSON
WIRE: Final = 1  # the reader's wire: lines of JSON
FIRST: Final = 2  # the first channel for a pair of pipes
CHANNELS: Final = 8  # that may be open at a time, beside the first two
OPENS: Final = 4096  # in one session: no number is used twice
PAYLOAD: Final = 1 << 16
TALK_WINDOW: Final = 1 << 18  # bytes on their way, of each of the first two
PIPE_WINDOW: Final = 4 << 20  # enough for 1 Gbit/s at 30 ms
HEAD: Final = struct.Struct(">BHI")
_CREDIT: Final = struct.Struct(">I")
WORDS: Final = 200  # of somebody who is not capkeep, for people


class FrameError(CapkeepError):
    """The other side said something that no capkeep says."""


class StrangerError(FrameError):
    """The other side is no capkeep, or one that speaks otherwise; the message has its words."""


class Type(IntEnum):
    """What a frame is."""

    OPEN = 1
    DATA = 2
    END = 3  # no more will be sent on that channel
    RESET = 4  # no more is wanted on that channel
    CREDIT = 5  # so many bytes more may be sent on it
    PING = 6  # we are there


class Opened(NamedTuple):
    """There is a channel more."""

    channel: int


class Data(NamedTuple):
    """Bytes that came; what has been done with them is to be told (`Session.took`)."""

    channel: int
    data: bytes


class Ended(NamedTuple):
    """No more will come on that channel."""

    channel: int


class Unwanted(NamedTuple):
    """The other side takes no more on that channel; our end of it is over."""

    channel: int


Event = Opened | Data | Ended | Unwanted


class _Channel:
    """Both directions of one. Each is over with its END."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.credit = window  # bytes that we may still send
        self.offered = window  # bytes that we still have to expect
        self.ended = False  # we have sent our END
        self.over = False  # theirs has come
        self.refused = False  # we have sent RESET: what still comes is thrown away
        self.owed = 0  # bytes taken, for which no credit has been given yet


class Session:
    """One side of a connection. What is to be sent gathers in `outgoing`, which the owner empties."""

    def __init__(self, *, opens: bool) -> None:
        """`opens`: whether this side opens channels; the other one then may not."""
        self.outgoing = bytearray(HELLO)
        self.greeted = False  # the other side's hello has come
        self.idle = 0  # frames that came and changed nothing; the owner may set it back
        self._opens = opens
        self._next = FIRST
        self._incoming = bytearray()
        self._channels = {n: _Channel(TALK_WINDOW) for n in (TALK, WIRE)}

    # -- what comes

    def feed(self, data: bytes) -> Iterator[Event]:
        """What the bytes mean, in order. Raises FrameError; nothing may be fed after that."""
        self._incoming += data
        if not self.greeted:
            self._greet()
        at = 0
        try:
            while self.greeted and len(self._incoming) - at >= HEAD.size:
                kind, channel, length = HEAD.unpack_from(self._incoming, at)
                if length > PAYLOAD:
                    raise FrameError(f"a frame of {length} bytes")
                if len(self._incoming) - at - HEAD.size < length:
                    break
                start = at + HEAD.size
                at = start + length
                with memoryview(self._incoming) as view:
                    payload = bytes(view[start:at])
                event = self._frame(kind, channel, payload)
                if event is not None:
                    yield event
        finally:
            del self._incoming[:at]

    def _greet(self) -> None:
        said = bytes(self._incoming[: len(HELLO)])
        if not HELLO.startswith(said):
            words = bytes(self._incoming[:WORDS]).decode(errors="replace").split("\n")[0]
            shown = "".join(c for c in words if c.isprintable()).strip()
            raise StrangerError(f"it says {shown!r} instead of capkeep's hello")
        if len(said) == len(HELLO):
            self.greeted = True
            del self._incoming[: len(HELLO)]

    def _frame(self, kind: int, number: int, payload: bytes) -> Event | None:
        if kind == Type.PING:
            if number or payload:
                raise FrameError("a ping that says something")
            self.idle += 1
            return None
        if kind == Type.OPEN:
            return self._opened(number, payload)
        channel = self._channels.get(number)
        if channel is None:
            # What was sent before our last word on that channel had come.
            if number < self._next and kind in (Type.CREDIT, Type.RESET):
                self.idle += 1
                return None
            raise FrameError(f"a frame of type {kind} on a channel that is not open")
        act = _ACTS.get(kind)
        if act is None:
            raise FrameError(f"a frame of type {kind}")
        return act(self, number, channel, payload)

    def _opened(self, number: int, payload: bytes) -> Event:
        if self._opens or payload or number != self._next or number >= FIRST + OPENS:
            raise FrameError("a channel that may not be opened")
        if self.open_channels() >= CHANNELS:
            raise FrameError(f"more than {CHANNELS} channels at a time")
        self._channels[number] = _Channel(PIPE_WINDOW)
        self._next += 1
        return Opened(number)

    def _data(self, number: int, channel: _Channel, payload: bytes) -> Event | None:
        if channel.over or not payload:
            raise FrameError("data where none can be")
        if len(payload) > channel.offered:
            raise FrameError("more data than was asked for")
        channel.offered -= len(payload)
        return None if channel.refused else Data(number, payload)

    def _credited(self, _number: int, channel: _Channel, payload: bytes) -> None:
        if len(payload) != _CREDIT.size:
            raise FrameError("credit of no size")
        (more,) = _CREDIT.unpack(payload)
        if not 0 < more <= channel.window - channel.credit:
            raise FrameError("credit for what was never sent")
        channel.credit += more

    def _over(self, number: int, channel: _Channel, payload: bytes) -> Event | None:
        if channel.over or payload:
            raise FrameError("a second end of a channel, or one with words")
        channel.over = True
        refused = channel.refused
        self._forget(number, channel)
        return None if refused else Ended(number)

    def _unwanted(self, number: int, channel: _Channel, payload: bytes) -> Event | None:
        if payload:
            raise FrameError("a reset with words")
        if channel.ended:
            self.idle += 1
            return None
        self.end(number)
        return Unwanted(number)

    # -- what is sent

    def open(self) -> int:
        """Another channel. Raises FrameError where there are too many."""
        if not self._opens or self.open_channels() >= CHANNELS or self._next >= FIRST + OPENS:
            raise FrameError(f"more than {CHANNELS} channels at a time")
        number = self._next
        self._next += 1
        self._channels[number] = _Channel(PIPE_WINDOW)
        self._send(Type.OPEN, number)
        return number

    def open_channels(self) -> int:
        """How many pairs of pipes are open."""
        return sum(number >= FIRST for number in self._channels)

    def room(self, number: int) -> int:
        """Bytes that may be sent on a channel now; 0 where it is over."""
        channel = self._channels.get(number)
        return 0 if channel is None or channel.ended else channel.credit

    def send(self, number: int, data: bytes) -> None:
        """Send bytes, no more than there is `room` for, in frames."""
        channel = self._channels[number]
        assert len(data) <= self.room(number), "nobody sends more than the credit"
        channel.credit -= len(data)
        with memoryview(data) as view:
            for at in range(0, len(data), PAYLOAD):
                self._send(Type.DATA, number, view[at : at + PAYLOAD])

    def took(self, number: int, count: int) -> None:
        """So many bytes that came have been passed on: as many more may come."""
        channel = self._channels.get(number)
        if channel is None or channel.over or channel.refused:
            return
        channel.owed += count
        if channel.owed >= channel.window // 4:
            self._send(Type.CREDIT, number, _CREDIT.pack(channel.owed))
            channel.offered += channel.owed
            channel.owed = 0

    def end(self, number: int) -> None:
        """Nothing more will be sent on a channel; safe to call again."""
        channel = self._channels.get(number)
        if channel is not None and not channel.ended:
            channel.ended = True
            self._send(Type.END, number)
            self._forget(number, channel)

    def refuse(self, number: int) -> None:
        """Nothing more is wanted on a channel; safe to call again."""
        channel = self._channels.get(number)
        if channel is not None and not channel.over and not channel.refused:
            channel.refused = True
            self._send(Type.RESET, number)

    def ping(self) -> None:
        """Be heard."""
        self._send(Type.PING, 0)

    def _send(self, kind: Type, number: int, payload: bytes | memoryview = b"") -> None:
        self.outgoing += HEAD.pack(kind, number, len(payload))
        self.outgoing += payload

    def _forget(self, number: int, channel: _Channel) -> None:
        """A channel whose two directions are over may be followed by another one."""
        if number >= FIRST and channel.ended and channel.over:
            del self._channels[number]


_Act = Callable[[Session, int, _Channel, bytes], Event | None]
_ACTS: Final[dict[int, _Act]] = {
    Type.DATA: Session._data,  # noqa: SLF001 its own, by the type of a frame
    Type.CREDIT: Session._credited,  # noqa: SLF001
    Type.END: Session._over,  # noqa: SLF001
    Type.RESET: Session._unwanted,  # noqa: SLF001
}
