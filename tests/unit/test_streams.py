"""The end of a pipe must not come before its reader has left."""

import errno
import os
import socket
import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Room
from capkeep.rooms.pipe import Pump, await_unread
from capkeep.rooms.protocol import Channel
from capkeep.run import stream
from capkeep.run.ask import Visit
from capkeep.run.errand import Errand
from capkeep.run.heard import Heard
from capkeep.run.step import Ledger

SECONDS = 0.3


def test_a_writer_waits_until_nobody_reads() -> None:
    out, into = os.pipe()
    begun = time.monotonic()
    threading.Timer(SECONDS, os.close, (out,)).start()
    await_unread(into, 10)
    assert SECONDS <= time.monotonic() - begun < 5
    await_unread(into, 10)  # there is nobody any more
    os.close(into)


def test_a_writer_waits_no_longer_than_it_is_told() -> None:
    out, into = os.pipe()
    begun = time.monotonic()
    await_unread(into, 0.1)
    assert 0.1 <= time.monotonic() - begun < 5
    os.close(out)
    os.close(into)


def test_a_silent_reader_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "END_SECONDS", 0.05)
    near, far = socket.socketpair()
    with near, far:
        visit = SimpleNamespace(channel=SimpleNamespace(sock=near))
        reader = cast("stream._Side", SimpleNamespace(visit=visit, result=None))
        begun = time.monotonic()
        threading.Timer(SECONDS, far.shutdown, (socket.SHUT_RDWR,)).start()
        stream._part((reader, reader))
        assert SECONDS <= time.monotonic() - begun < 5


def test_what_is_taken_slowly_is_waited_for_until_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("capkeep.rooms.pipe.TICK_SECONDS", 0.05)
    out, into = os.pipe()
    pump = Pump(into)
    os.set_blocking(into, False)
    with suppress(BlockingIOError):
        while True:
            os.write(into, bytes(4096))
    os.set_blocking(into, True)
    os.write(pump.inlet, b"the end")
    pump.begin()
    ticks: list[float] = []
    with pytest.raises(StepError) as caught:
        pump.end(lambda: ticks.append(time.monotonic()), time.monotonic() + SECONDS)
    assert caught.value.failure is Failure.TIMEOUT
    assert len(ticks) > 1
    drained = threading.Thread(target=_drained, args=(out,))
    drained.start()
    pump.end(lambda: None, time.monotonic() + 10)
    assert pump.tail == b"the end"
    assert not pump.broken
    pump.close()
    os.close(into)
    drained.join(10)


def _drained(end: int) -> None:
    while os.read(end, 1 << 16):
        pass
    os.close(end)


def test_without_a_pipe_a_step_fails_and_nothing_is_left_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe", none_left)
    assert failed_to_feed() is Failure.INTERRUPTED


def test_a_room_that_takes_no_request_fails_the_step_and_leaves_no_pipe() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert failed_to_feed() is Failure.INTERRUPTED
    assert len(os.listdir("/proc/self/fd")) == before


class Deaf(Visit):
    """A visit to a room whose socket fails."""

    def __init__(self, room: str) -> None:
        self.room = cast("Room", SimpleNamespace(name=room))
        near, far = socket.socketpair()
        near.close()  # to send into it is EBADF
        far.close()
        self._channel = Channel(near)


def failed_to_feed() -> Failure:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "Visit", Deaf)
        heard = SimpleNamespace(proofs={}, findings=())
        patch.setattr(stream, "Heard", lambda *_: SimpleNamespace(proofs={}, findings=()))
        errand = SimpleNamespace(feeder=SimpleNamespace(room="dumper", request={}), request={})
        ledger = SimpleNamespace(tell=None)
        with pytest.raises(StepError) as caught:
            stream.fed(
                cast("Errand", errand), Deaf("reader"), cast("Heard", heard),
                cast("Ledger", ledger), time.monotonic() + 10,
            )  # fmt: skip
        return caught.value.failure
