"""Moves bytes between descriptors and one connection, and waits for nobody but all of them at once.

What is held in memory is bounded by the credit that frames give (`frames.py`), whatever the other side
or a program here does: a descriptor that takes nothing stops its own channel.
"""

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from capkeep.errors import CapkeepError
from capkeep.rooms.pull.frames import PAYLOAD, Data, Ended, FrameError, Opened, Session, Unwanted

IDLE_MOST: Final = 1000  # frames a second that change nothing
READ_SIZE: Final = 1 << 18
FULL: Final = 1 << 20  # bytes that wait to be sent: no descriptor is read meanwhile
CHOKED: Final = 2 << 20  # the same: the connection is not read either
TICK_SECONDS: Final = 1.0
PING_SECONDS: Final = 5.0  # at most, between two signs of life
SILENCE_SECONDS: Final = 30.0  # after which the other side counts as gone
GREETING_SECONDS: Final = 60.0  # the same before its hello: logins may look names up


class LostError(CapkeepError):
    """The connection is closed, or the other side has said nothing for too long."""


class Owner(Protocol):
    """Who decides; it is told of what concerns no descriptor."""

    def opened(self, channel: int) -> None:
        """The other side has opened a channel."""

    def said(self, channel: int, data: bytes) -> None:
        """Bytes on a channel that leads to no descriptor; the owner tells the session that it took them."""

    def ended(self, channel: int) -> None:
        """No more will come on such a channel."""

    def watched(self) -> Mapping[int, Callable[[], None]]:
        """Descriptors to be heard meanwhile, each with what to do when it has something to say."""

    def tick(self) -> None:
        """Once a second, roughly."""


class Lane:
    """A channel that leads to descriptors, which are its own; -1 where there is none any more."""

    def __init__(self, channel: int, source: int, sink: int) -> None:
        self.channel = channel
        self.source = source
        self.sink = sink
        self.pending = bytearray()  # what the sink has not taken yet
        self.ending = False  # nothing comes after that

    def close_source(self) -> None:
        """Nothing more is read."""
        if self.source >= 0:
            os.close(self.source)
            self.source = -1

    def close_sink(self) -> None:
        """Whoever reads there sees an end."""
        if self.sink >= 0:
            _close_for_writing(self.sink)
            self.sink = -1
            self.pending.clear()


def _close_for_writing(fd: int) -> None:
    """Of a socket only this direction ends: the other one is another descriptor of it."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        return
    with socket.socket(fileno=fd) as sock, suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


class Pump:
    """One connection, and the descriptors that its channels lead to. Close it."""

    def __init__(self, source: int, sink: int, session: Session, owner: Owner) -> None:
        """`source` and `sink` are the connection's, and may be the same; they stay their owner's."""
        self._source, self._sink = source, sink
        self._session = session
        self._owner = owner
        self._lanes: dict[int, Lane] = {}
        self._words: dict[int, bytearray] = {}  # the owner's own, by channel
        self._heard = self._told = time.monotonic()
        self._ticked = 0.0
        self.stopped = False
        for fd in (source, sink):
            os.set_blocking(fd, False)

    def lead(self, channel: int, *, source: int = -1, sink: int = -1) -> None:
        """Have a channel lead from one descriptor, or to one, or both; they are the pump's from now on.

        Without a sink what comes on it is the owner's.
        """
        for fd in filter(lambda fd: fd >= 0, (source, sink)):
            os.set_blocking(fd, False)
        lane = self._lanes.setdefault(channel, Lane(channel, -1, -1))
        lane.source = source if source >= 0 else lane.source
        lane.sink = sink if sink >= 0 else lane.sink

    def say(self, channel: int, words: bytes) -> None:
        """Send words of the owner's own, as the other side takes them."""
        self._words.setdefault(channel, bytearray()).extend(words)
        self._utter()

    def _utter(self) -> None:
        for channel, words in self._words.items():
            if size := min(len(words), self._session.room(channel), PAYLOAD):
                self._session.send(channel, bytes(words[:size]))
                del words[:size]

    def close(self) -> None:
        """Whoever is at the other end of a lane sees us leave."""
        for lane in self._lanes.values():
            lane.close_source()
            lane.close_sink()
        self._lanes.clear()

    def run(self) -> None:
        """Until the owner has `stopped` it. Raises LostError, FrameError and what the owner raises."""
        while not self.stopped:
            self.turn(TICK_SECONDS)

    def turn(self, seconds: float) -> None:
        """Wait for something to do, at most so long, and do it. Raises as `run`."""
        watched = self._owner.watched()
        poll = select.poll()
        for fd, bits in (*self._wanted().items(), *((fd, select.POLLIN) for fd in watched)):
            poll.register(fd, bits)
        found = dict(poll.poll(seconds * 1000))
        for fd in watched.keys() & found.keys():
            watched[fd]()
        self._move(found)
        self._be_alive()

    def _wanted(self) -> dict[int, int]:
        """What to wait for, by descriptor."""
        waiting = len(self._session.outgoing)
        wanted: dict[int, int] = {}
        if waiting < CHOKED:
            wanted[self._source] = select.POLLIN
        if waiting:
            wanted[self._sink] = wanted.get(self._sink, 0) | select.POLLOUT
        for lane in self._lanes.values():
            if lane.source >= 0 and waiting < FULL and self._session.room(lane.channel):
                wanted[lane.source] = select.POLLIN
            if lane.sink >= 0:
                # Without anything to write: a reader that leaves is told all the same (POLLERR).
                wanted[lane.sink] = select.POLLOUT if lane.pending else 0
        return wanted

    def _move(self, found: Mapping[int, int]) -> None:
        for lane in list(self._lanes.values()):
            if lane.sink >= 0 and (bits := found.get(lane.sink, 0)):
                self._write(lane, broken=bool(bits & (select.POLLERR | select.POLLHUP)))
            if lane.source >= 0 and lane.source in found:
                self._read(lane)
            self._let_go(lane)
        if self._source in found and len(self._session.outgoing) < CHOKED:
            self._receive()
        self._utter()
        if self._session.outgoing:
            self._send()

    # -- the connection

    def _receive(self) -> None:
        try:
            data = os.read(self._source, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            raise LostError(f"the connection broke: {error.strerror}") from error
        if not data:
            raise LostError("the connection was closed")
        self._heard = time.monotonic()
        for event in self._session.feed(data):
            if isinstance(event, Opened):
                self._owner.opened(event.channel)
            elif (lane := self._lanes.get(event.channel)) is None:
                self._to_owner(event)
            else:
                self._to_lane(lane, event)
        if self._session.idle > IDLE_MOST:
            raise FrameError("a flood of frames that say nothing")

    def _to_lane(self, lane: Lane, event: Data | Ended | Unwanted) -> None:
        if isinstance(event, Unwanted):
            lane.close_source()
        elif lane.sink < 0:
            self._to_owner(event)
        elif isinstance(event, Data):
            self._write(lane, more=event.data)
        else:
            lane.ending = True
            self._write(lane)
        self._let_go(lane)

    def _to_owner(self, event: Data | Ended | Unwanted) -> None:
        if isinstance(event, Data):
            self._owner.said(event.channel, event.data)
        elif isinstance(event, Ended):
            self._owner.ended(event.channel)

    def _send(self) -> None:
        waiting = self._session.outgoing
        try:
            with memoryview(waiting) as view:
                done = os.write(self._sink, view[:READ_SIZE])
        except BlockingIOError:
            return
        except OSError as error:
            raise LostError(f"the connection broke: {error.strerror}") from error
        del waiting[:done]
        self._told = time.monotonic()

    def _be_alive(self) -> None:
        now = time.monotonic()
        patience = SILENCE_SECONDS if self._session.greeted else GREETING_SECONDS
        if now - self._heard > patience:
            raise LostError(f"nothing was heard for {patience:.0f} seconds")
        if now - self._told > PING_SECONDS and not self._session.outgoing:
            self._session.ping()
        if now - self._ticked >= TICK_SECONDS:
            self._ticked = now
            self._session.idle = 0
            self._owner.tick()

    # -- lanes

    def _read(self, lane: Lane) -> None:
        size = min(READ_SIZE, self._session.room(lane.channel))
        if not size:
            return
        try:
            data = os.read(lane.source, size)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                raise
            data = b""
        if data:
            self._session.send(lane.channel, data)
        else:
            self._session.end(lane.channel)
            lane.close_source()

    def _write(self, lane: Lane, *, more: bytes = b"", broken: bool = False) -> None:
        """Have the sink take what it takes; one that is gone wants no more."""
        if lane.sink < 0:
            return
        try:
            if more and not lane.pending:  # mostly all of it is taken at once
                done = os.write(lane.sink, more)
                self._session.took(lane.channel, done)
                more = more[done:]
            elif lane.pending:
                with memoryview(lane.pending) as view:
                    done = os.write(lane.sink, view[:READ_SIZE])
                del lane.pending[:done]
                self._session.took(lane.channel, done)
            broken = broken and not lane.ending
        except BlockingIOError:
            pass
        except OSError:
            broken = True
        lane.pending += more
        if broken:
            self._session.refuse(lane.channel)
            lane.close_sink()
        elif lane.ending and not lane.pending:
            lane.close_sink()

    def _let_go(self, lane: Lane) -> None:
        if lane.source < 0 and lane.sink < 0:
            self._lanes.pop(lane.channel, None)
