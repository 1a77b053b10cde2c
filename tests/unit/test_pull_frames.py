"""The connection between a puller and an answerer: nothing is lost, nobody sends more than the credit."""

from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.rooms.pull.frames import (
    CHANNELS,
    FIRST,
    HEAD,
    HELLO,
    PAYLOAD,
    PIPE_WINDOW,
    TALK,
    TALK_WINDOW,
    WIRE,
    Data,
    Ended,
    Event,
    FrameError,
    Opened,
    Session,
    StrangerError,
    Type,
    Unwanted,
)

NUMBERS = st.integers(0, FIRST + 3)


class Side:
    """A session, and what its owner has heard and has not taken yet."""

    def __init__(self, *, opens: bool) -> None:
        self.session = Session(opens=opens)
        self.sent: dict[int, bytes] = defaultdict(bytes)
        self.heard: dict[int, bytes] = defaultdict(bytes)
        self.untaken: dict[int, int] = defaultdict(int)
        self.over: set[int] = set()
        self.refused: set[int] = set()

    def take(self, events: Iterator[Event]) -> None:
        for event in events:
            if isinstance(event, Data):
                assert event.channel not in self.refused
                self.heard[event.channel] += event.data
                self.untaken[event.channel] += len(event.data)
                window = TALK_WINDOW if event.channel < FIRST else PIPE_WINDOW
                assert self.untaken[event.channel] <= window
            elif isinstance(event, Ended):
                self.over.add(event.channel)


def deliver(giver: Side, taker: Side, size: int) -> None:
    data = bytes(giver.session.outgoing[:size])
    del giver.session.outgoing[:size]
    taker.take(taker.session.feed(data))


STEP = st.tuples(
    st.sampled_from(["open", "send", "took", "end", "refuse", "deliver", "ping"]),
    st.booleans(), NUMBERS, st.integers(1, 3 * PAYLOAD),
)  # fmt: skip


@given(st.lists(STEP, max_size=80))
def test_what_is_sent_arrives_however_it_is_cut(steps: list[tuple[str, bool, int, int]]) -> None:
    sides = (Side(opens=True), Side(opens=False))
    for what, whose, channel, size in steps:
        side, other = sides[whose], sides[not whose]
        if what == "open" and not whose and side.session.open_channels() < CHANNELS:
            side.session.open()
        elif what == "send":
            data = bytes([channel]) * min(size, side.session.room(channel))
            if data:
                side.session.send(channel, data)
                side.sent[channel] += data
        elif what == "took":
            some = min(size, side.untaken[channel])
            side.untaken[channel] -= some
            side.session.took(channel, some)
        elif what == "end":
            side.session.end(channel)
        elif what == "refuse":
            before = len(side.session.outgoing)
            side.session.refuse(channel)
            side.refused |= {channel} if len(side.session.outgoing) > before else set()
        elif what == "deliver":
            deliver(side, other, size)
        else:
            side.session.ping()
    for _ in range(3):  # an end may be the answer to a reset
        for side, other in (sides, sides[::-1]):
            deliver(side, other, len(side.session.outgoing))
    for side, other in (sides, sides[::-1]):
        for channel, data in side.sent.items():
            heard = other.heard[channel]
            assert heard == data or (channel in other.refused and data.startswith(heard))
    assert sides[0].session.open_channels() == sides[1].session.open_channels()


@given(st.binary(max_size=400))
def test_whoever_is_no_capkeep_is_told_from_one(words: bytes) -> None:
    session = Session(opens=False)
    if HELLO.startswith(words[: len(HELLO)]):
        return
    with pytest.raises(StrangerError) as caught:
        list(session.feed(words))
    assert str(caught.value).isprintable()


def test_a_banner_is_shown_and_no_frame() -> None:
    with pytest.raises(StrangerError, match="Welcome to web1"):
        list(Session(opens=False).feed(b"Welcome to web1!\nLast login: today\n"))


FRAME = st.tuples(
    st.one_of(st.sampled_from(list(Type)).map(int), st.integers(0, 255)),
    st.integers(0, FIRST + CHANNELS + 2),
    st.one_of(st.just(b""), st.binary(max_size=8), st.just(b"x" * PAYLOAD)),
)


@given(st.lists(FRAME, max_size=60), st.booleans(), st.integers(1, 70_000))
def test_a_liar_is_left_and_holds_nobody_up(
    frames: list[tuple[int, int, bytes]], opens: bool, cut: int
) -> None:
    """Whatever it sends ends in one kind of error, or in no more than what was offered."""
    said = HELLO + b"".join(HEAD.pack(k, n, len(p)) + p for k, n, p in frames)
    session = Session(opens=opens)
    held: dict[int, int] = defaultdict(int)
    opened: set[int] = set()
    with_error = False
    try:
        for at in range(0, len(said), cut):
            for event in session.feed(said[at : at + cut]):
                if isinstance(event, Opened):
                    opened.add(event.channel)
                elif isinstance(event, Data):
                    held[event.channel] += len(event.data)
                    assert event.channel in opened | {TALK, WIRE}
                else:
                    assert isinstance(event, (Ended, Unwanted))
    except FrameError:
        with_error = True
    assert with_error or session.open_channels() <= CHANNELS
    assert not (opens and opened)
    for channel, size in held.items():
        assert size <= (TALK_WINDOW if channel < FIRST else PIPE_WINDOW)


@pytest.mark.parametrize(
    "frames",
    [
        [(Type.OPEN, FIRST + 1, b"")],
        [(Type.OPEN, TALK, b"")],
        [(Type.OPEN, FIRST + n, b"") for n in range(CHANNELS + 1)],
        [(Type.DATA, FIRST, b"x")],
        [(Type.DATA, TALK, b"")],
        [(Type.DATA, TALK, b"x" * PAYLOAD)] * (TALK_WINDOW // PAYLOAD + 1),
        [(Type.END, TALK, b""), (Type.DATA, TALK, b"x")],
        [(Type.END, TALK, b""), (Type.END, TALK, b"")],
        [(Type.CREDIT, TALK, b"\0\0\0\1")],
        [(Type.CREDIT, TALK, b"1")],
        [(Type.PING, 0, b"x")],
        [(99, 0, b"")],
    ],
)
def test_each_lie_is_one(frames: list[tuple[int, int, bytes]]) -> None:
    session = Session(opens=False)
    said = HELLO + b"".join(HEAD.pack(k, n, len(p)) + p for k, n, p in frames)
    with pytest.raises(FrameError):
        list(session.feed(said))


def test_a_frame_is_not_waited_for_that_nobody_would_hold() -> None:
    with pytest.raises(FrameError):
        list(Session(opens=False).feed(HELLO + HEAD.pack(Type.DATA, TALK, PAYLOAD + 1)))


def test_channels_end_and_others_follow() -> None:
    """A number is used once; as many as one likes come one after the other, up to a limit."""
    near, far = Side(opens=True), Side(opens=False)
    for number in range(FIRST, FIRST + 3 * CHANNELS):
        assert near.session.open() == number
        near.session.end(number)
        deliver(near, far, 1 << 20)
        far.session.refuse(number)  # it has been ended already: nothing is sent
        far.session.end(number)
        deliver(far, near, 1 << 20)
        assert near.session.open_channels() == far.session.open_channels() == 0


def test_a_channel_that_nobody_reads_stops_alone() -> None:
    near, far = Side(opens=True), Side(opens=False)
    stuck, free = near.session.open(), near.session.open()
    near.session.send(stuck, bytes(near.session.room(stuck)))
    assert near.session.room(stuck) == 0
    for _ in range(4):
        near.session.send(free, bytes(PIPE_WINDOW))
        deliver(near, far, len(near.session.outgoing))
        far.session.took(free, far.untaken.pop(free))
        deliver(far, near, len(far.session.outgoing))
        assert near.session.room(free) == PIPE_WINDOW
    assert near.session.room(stuck) == 0
