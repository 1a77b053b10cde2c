"""Whose turn it is to be pulled from."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Job, Mode, Places, Plan
from capkeep.records.model import Run, new_run_id
from capkeep.rooms.protocol import Channel, Message
from capkeep.run.caller import Caller
from capkeep.run.step import Ledger
from capkeep.run.turns import Turn


class Told:
    """As much of a ledger as whoever waits for a turn needs."""

    def __init__(self, caller: Caller) -> None:
        now = time.time()
        self.run = Run(id=new_run_id(now), job="j", started=now, action="backup", trigger_user="me")
        self.caller = caller
        self.told: list[Message] = []

    def tell(self, message: Message) -> None:
        self.told.append(message)


@pytest.fixture
def ledger() -> Iterator[Told]:
    near, far = socket.socketpair()
    with near, far:
        yield Told(Caller(Channel(near)))


def turn(tmp_path: Path, target: str, parallel: int = 0) -> Turn:
    (tmp_path / "records").mkdir(exist_ok=True)
    places = Places("", str(tmp_path), "", "", "")
    plan = Plan(
        mode=Mode.USER, places=places, group=0, interpreter="", package="", repositories=(),
        jobs=(), rooms=(), capkeep_version="", parallel_pulls=parallel,
    )  # fmt: skip
    return Turn(plan, Job(f"job.{target}", (), (), target=target))


@contextmanager
def taken(one: Turn, ledger: Told, seconds: float) -> Iterator[None]:
    with one.taken(cast(Ledger, ledger), time.monotonic() + seconds):
        yield


def test_a_target_is_pulled_from_once_at_a_time(tmp_path: Path, ledger: Told) -> None:
    with (
        taken(turn(tmp_path, "web"), ledger, 5),
        pytest.raises(StepError, match="a pull from web is being run already, by me") as refused,
        taken(turn(tmp_path, "web"), ledger, 0),
    ):
        pass
    assert refused.value.failure is Failure.LOCKED
    with taken(turn(tmp_path, "web"), ledger, 0):
        pass


def test_so_many_are_pulled_from_at_a_time(tmp_path: Path, ledger: Told) -> None:
    def of(name: str) -> Turn:
        return turn(tmp_path, name, parallel=2)

    with taken(of("a"), ledger, 5), taken(of("b"), ledger, 5):
        with (
            pytest.raises(StepError, match="2 targets are being pulled from"),
            taken(of("c"), ledger, 0),
        ):
            pass
        with taken(turn(tmp_path, "d"), ledger, 0):
            pass
    with taken(of("c"), ledger, 0):
        pass


def test_who_waits_says_so_once_and_has_its_turn(tmp_path: Path, ledger: Told) -> None:
    begun, end = threading.Event(), threading.Event()

    def other() -> None:
        with taken(turn(tmp_path, "a", parallel=1), ledger, 5):
            begun.set()
            end.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(20)
    threading.Timer(0.5, end.set).start()
    with taken(turn(tmp_path, "b", parallel=1), ledger, 60):
        assert end.is_set()
    thread.join(20)
    (told,) = ledger.told
    assert "1 targets are being pulled from: waits for" in str(told["text"])
