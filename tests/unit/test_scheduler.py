"""`capkeep schedule` goes on whatever fails for a moment."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.host import scheduler
from capkeep.host.scheduler import Event, Scheduler
from capkeep.plan import codec
from capkeep.plan.model import Plan
from tests.unit.test_aftermath import plan as plan

HOURLY = ("*:00",)


def apply(plan: Plan, schedule: tuple[str, ...]) -> Plan:
    """A plan in its place, as another file than the one before."""
    made = plan._replace(jobs=(plan.jobs[0]._replace(schedule=schedule),))
    draft = Path(plan.places.plan + ".new")
    draft.write_text(codec.dumps(made))
    draft.rename(plan.places.plan)
    return made


@pytest.fixture
def said() -> list[Event]:
    return []


@pytest.fixture
def scheduling(plan: Plan, said: list[Event]) -> Iterator[Scheduler]:
    """A scheduler whose doors somebody else keeps open."""
    apply(plan, HOURLY)
    Path(plan.places.runner_socket).touch()
    with Scheduler(plan.places, (), said.append) as made:
        made._take_plan()
        yield made


def refuse(*_: object, **__: object) -> None:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_doors_that_cannot_be_opened_just_now_end_nothing(
    plan: Plan, said: list[Event], scheduling: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.unlink(plan.places.runner_socket)
    monkeypatch.setattr(scheduler, "spawn", refuse)
    (entry,) = scheduling._entries.values()
    entry.last = 0
    scheduling._see_to(entry, time.time())
    assert "cannot be started" in str(said[-1]["text"])
    apply(plan, ("*:30",))
    scheduling._follow_plan()
    assert "not used yet" in str(said[-1]["text"])


def test_a_plan_that_is_removed_while_it_is_taken_ends_nothing(
    plan: Plan, said: list[Event], scheduling: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = scheduler._load
    new = apply(plan, ("*:30",))

    def load_and_remove(places: object) -> Plan:
        assert places == plan.places
        found = load(plan.places)
        os.unlink(plan.places.plan)
        return found

    monkeypatch.setattr(scheduler, "_load", load_and_remove)
    scheduling._follow_plan()
    assert "not used yet" in str(said[-1]["text"])
    monkeypatch.undo()
    apply(plan, ("*:45",))
    scheduling._follow_plan()
    assert scheduling.plan.jobs[0].schedule == ("*:45",)
    assert scheduling.plan != new
    (entry,) = scheduling._entries.values()
    assert entry.table.calendar == ("*:45",)
