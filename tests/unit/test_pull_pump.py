"""What moves the bytes: two of them, joined by a socket, in one thread."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping

import pytest

from capkeep.rooms.pull import pump as pumps
from capkeep.rooms.pull.frames import FIRST, PIPE_WINDOW, TALK, FrameError, Session
from capkeep.rooms.pull.pump import LostError, Pump

TURNS = 2000


class Side:
    """An owner with nothing of its own but what is said to it."""

    def __init__(self, end: socket.socket, *, opens: bool) -> None:
        self.end = end
        self.session = Session(opens=opens)
        self.pump = Pump(end.fileno(), end.fileno(), self.session, self)
        self.heard = b""
        self.over: list[int] = []
        self.ours: dict[int, tuple[int, int]] = {}  # our ends of a channel's pipes

    def pipes(self, channel: int) -> None:
        """Have a channel lead to two pipes."""
        out, sink = os.pipe()
        source, into = os.pipe()
        self.ours[channel] = (out, into)
        os.set_blocking(out, False)
        os.set_blocking(into, False)
        self.pump.lead(channel, source=source, sink=sink)

    def opened(self, channel: int) -> None:
        self.pipes(channel)

    def said(self, channel: int, data: bytes) -> None:
        self.heard += data
        self.session.took(channel, len(data))

    def ended(self, channel: int) -> None:
        self.over.append(channel)

    def watched(self) -> Mapping[int, Callable[[], None]]:
        return {}

    def tick(self) -> None: ...


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    one, other = socket.socketpair()
    with one, other:
        made = Side(one, opens=True), Side(other, opens=False)
        yield made
        for side in made:
            side.pump.close()
            for fd in (fd for ends in side.ours.values() for fd in ends if fd >= 0):
                os.close(fd)


def turn(sides: tuple[Side, Side], until: Callable[[], bool]) -> None:
    for _ in range(TURNS):
        if until():
            return
        for side in sides:
            side.pump.turn(0.001)
    raise AssertionError("it did not come to that")


def taken(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_bytes_go_through_both_ways_and_ends_are_ends(sides: tuple[Side, Side]) -> None:
    near, far = sides
    channel = near.session.open()
    near.pipes(channel)
    turn(sides, lambda: channel in far.ours)
    for one, other in (sides, sides[::-1]):
        sent = os.urandom(3 * PIPE_WINDOW)
        left, got = memoryview(sent), b""

        def moved(one: Side = one, other: Side = other, whole: bytes = sent) -> bool:
            nonlocal left, got
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(one.ours[channel][1], left[: 1 << 16]) :] if left else left
            got += taken(other.ours[channel][0])
            return len(got) == len(whole)

        turn(sides, moved)
        assert got == sent
    os.close(near.ours[channel][1])
    near.ours[channel] = (near.ours[channel][0], -1)
    ended: list[bytes] = []

    def is_over() -> bool:
        try:
            ended.append(os.read(far.ours[channel][0], 1))
        except BlockingIOError:
            return False
        return ended[-1] == b""

    turn(sides, is_over)
    assert near.session.open_channels() == 1, "the other direction goes on"


def test_who_takes_nothing_is_not_waited_for_and_fills_no_memory(sides: tuple[Side, Side]) -> None:
    near, far = sides
    channel = near.session.open()
    near.pipes(channel)
    turn(sides, lambda: channel in far.ours)
    sent = 0

    def more() -> bool:
        nonlocal sent
        try:
            sent += os.write(near.ours[channel][1], bytes(1 << 16))
        except BlockingIOError:
            return near.session.room(channel) == 0
        return False

    turn(sides, more)
    turn(sides, lambda: not near.session.outgoing)
    held = len(far.pump._lanes[channel].pending)
    assert held <= PIPE_WINDOW
    assert sent <= PIPE_WINDOW + (1 << 18)  # what its pipe holds, and what the other's does
    near.pump.say(TALK, b"still heard")
    turn(sides, lambda: far.heard == b"still heard")


def test_whoever_is_not_read_any_more_is_told(sides: tuple[Side, Side]) -> None:
    near, far = sides
    channel = near.session.open()
    near.pipes(channel)
    turn(sides, lambda: channel in far.ours)
    os.close(far.ours[channel][0])
    far.ours[channel] = (-1, far.ours[channel][1])

    def is_told() -> bool:
        try:
            os.write(near.ours[channel][1], b"x")
        except BrokenPipeError:
            return True
        return False

    turn(sides, is_told)


def test_words_longer_than_the_credit_arrive(sides: tuple[Side, Side]) -> None:
    near, far = sides
    words = os.urandom(1 << 20)
    near.pump.say(TALK, words)
    turn(sides, lambda: far.heard == words)


def test_a_connection_that_is_closed_or_silent_is_lost(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = sides
    turn(sides, lambda: near.session.greeted and far.session.greeted)
    monkeypatch.setattr(pumps, "SILENCE_SECONDS", -1.0)
    with pytest.raises(LostError, match="nothing was heard"):
        far.pump.turn(0.001)
    monkeypatch.undo()
    near.end.shutdown(socket.SHUT_RDWR)
    with pytest.raises(LostError):
        turn(sides, lambda: False)


def test_silence_is_broken_by_a_ping(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, _ = sides
    turn(sides, lambda: all(s.session.greeted for s in sides))
    before = near.pump._told
    monkeypatch.setattr(pumps, "PING_SECONDS", 0.0)
    turn(sides, lambda: near.pump._told > before)


def test_what_no_capkeep_says_ends_it(sides: tuple[Side, Side]) -> None:
    near, far = sides
    near.session.outgoing += b"\x02\x00\x05\x00\x00\x00\x01x"
    with pytest.raises(FrameError):
        turn((near, far), lambda: False)
    assert FIRST not in far.ours


def test_a_flood_of_frames_that_say_nothing_ends_it(sides: tuple[Side, Side]) -> None:
    near, far = sides
    for _ in range(5000):
        near.session.ping()
    with pytest.raises(FrameError, match="flood"):
        turn((near, far), lambda: False)
