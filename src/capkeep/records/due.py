"""Which runs should have happened and did not: pure, from the times of a schedule and the record.

A time is settled once a run began at it or later, or was under way at it; or was left out on
purpose; or once it is missed. Each is waited for by a clock that nobody sets and that stands still
while the machine sleeps. Where the machine was off, asleep or its clock was set, or nobody looked,
one run makes up for all times in between, so only the last of them is waited for.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from capkeep import calendars
from capkeep.records.model import Outcome, Run

LEFT_OUT: Final = "skip-"  # before a kind: the action of a run that was left out on purpose
_TOLERANCE: Final = 60.0  # seconds that two clocks may differ between two looks
_EARLY: Final = 1.0  # a timer is not late by this, nor early
_STARTING: Final = 30.0  # seconds from a plan's being written until its timers run


class Moment(NamedTuple):
    """Now, by three clocks."""

    wall: float  # seconds since 1970; somebody may set it
    steady: float  # seconds since the machine was started, without those it slept (CLOCK_MONOTONIC)
    boot: str  # which start of the machine


class Waiting(NamedTuple):
    """A time at which a run should have begun, and since when it is waited for."""

    due: int
    steady: float
    boot: str


class Watched(NamedTuple):
    """What is remembered of one schedule between two looks."""

    calendar: tuple[str, ...]
    settled: float  # what was due until then needs no run any more, but for what is waited for
    waiting: tuple[Waiting, ...]
    looked: Moment


class Rules(NamedTuple):
    """How patient a look is, in seconds."""

    every: float  # between two looks
    grace: float  # that a run may be late, its spread included


def actions(kind: str) -> tuple[str, ...]:
    """What a run of that kind is called in the record, if it is made and if it is left out."""
    return (kind, LEFT_OUT + kind)


def look(
    calendar: tuple[str, ...],
    before: Watched | None,
    applied: float,
    runs: Iterable[Run],
    now: Moment,
    rules: Rules,
) -> tuple[Watched, tuple[int, ...]]:
    """What to remember, and the times that are missed as of now, each told once.

    `applied` is when the plan was written, in seconds since 1970: nothing was due before its timers
    ran, unless the schedule is an older one. `runs` are the latest ones of the kind.
    """
    watched = _begin(calendar, before, applied, now)
    parsed = tuple(map(calendars.parse, calendar))
    attended = before is not None and _attended(watched.looked, now, rules)
    waiting = [
        *_still_waiting(watched.waiting, now),
        *_new(parsed, watched, now, attended=attended),
    ]
    began = [r for r in runs if r.outcome is not Outcome.MISSED and r.started <= now.wall + _EARLY]
    settled = max([watched.settled, *(w.due for w in waiting)])
    open_ = [w for w in waiting if not any(_covers(run, w.due) for run in began)]
    # What is seen for the first time may be made up for just now: the next look tells.
    seen = {w.due for w in watched.waiting}
    missed = tuple(w.due for w in open_ if w.due in seen and now.steady - w.steady > rules.grace)
    left = tuple(w for w in open_ if w.due not in missed)
    return Watched(calendar, settled, left, now), missed


def overdue(
    calendar: tuple[str, ...],
    watched: Watched | None,
    applied: float,
    runs: Iterable[Run],
    now: Moment,
    rules: Rules,
) -> int | None:
    """The last time, where it is long over, no run stands for it, and no watch looks for that.

    For whoever looks at the record on a host whose watch does not run.
    """
    patience = 3 * rules.every + rules.grace
    same = watched is not None and watched.looked.boot == now.boot
    since = watched.looked.steady if watched is not None and same else 0.0
    if now.steady - since < patience:
        return None  # the watch has looked, or has not had its time yet
    due = calendars.latest(tuple(map(calendars.parse, calendar)), now.wall - patience)
    if due is None or due <= applied + _STARTING or any(_covers(run, due) for run in runs):
        return None
    return due


def _begin(
    calendar: tuple[str, ...], before: Watched | None, applied: float, now: Moment
) -> Watched:
    """What was remembered, as far as it holds for this schedule and this clock."""
    if before is None or before.calendar != calendar:
        waiting = before.waiting if before else ()
        return Watched(calendar, min(applied + _STARTING, now.wall), waiting, now)
    if before.settled > now.wall + _TOLERANCE:
        return before._replace(settled=now.wall, waiting=())  # the clock was set back
    return before


def _attended(looked: Moment, now: Moment, rules: Rules) -> bool:
    """Whether the machine was awake and its clock went on as usual since the last look."""
    passed, steady = now.wall - looked.wall, now.steady - looked.steady
    usual = looked.boot == now.boot and abs(passed - steady) < _TOLERANCE
    return usual and steady < 2 * rules.every + min(rules.every, _TOLERANCE)


def _still_waiting(waiting: tuple[Waiting, ...], now: Moment) -> list[Waiting]:
    """After a start of the machine one run makes up for all, and has time for it from now on."""
    if all(w.boot == now.boot for w in waiting):
        return list(waiting)
    return [waiting[-1]._replace(steady=now.steady, boot=now.boot)]


def _new(
    parsed: tuple[calendars.Calendar, ...], watched: Watched, now: Moment, *, attended: bool
) -> list[Waiting]:
    """The times that have come since the last look."""
    if attended:
        times = calendars.between(parsed, watched.settled, now.wall)
        return [Waiting(t, now.steady - (now.wall - t), now.boot) for t in times]
    last = calendars.latest(parsed, now.wall)
    if last is None or last <= watched.settled:
        return []
    return [Waiting(last, now.steady, now.boot)]


def _covers(run: Run, due: int) -> bool:
    """Whether a run began at a time or later, or was under way at it."""
    if run.started >= due - _EARLY:
        return True
    return run.outcome is None or (run.ended is not None and run.ended >= due)
