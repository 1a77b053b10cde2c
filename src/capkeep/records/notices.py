"""Who was told of which run, and who still is to be told."""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.records.model import Run
from capkeep.records.queries import Records
from capkeep.records.store import Recorder

LONGEST: Final = 7 * 24 * 3600  # seconds; nobody is at a notice for so long
NOBODY: Final = 0.0  # is at it
KEPT: Final = 5_000  # notices that are settled; the newest


class State(StrEnum):
    """What became of a notice."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DROPPED = "dropped"  # too old, or a newer one says more, or its channel is gone


class Notice(NamedTuple):
    """One run that one channel is told of."""

    run: str
    channel: str
    alike: str = ""  # equal for runs of a job that ended in the same way
    state: State = State.PENDING
    attempts: int = 0
    text: str = ""  # what came of the last attempt
    job: str = ""
    action: str = ""
    started: float = 0.0  # of the run


class Notices:
    """The notices of a record; what changes them needs its writer. All raise RecordsError."""

    def __init__(self, records: Records) -> None:
        self._ask = records.ask

    def alike_before(self, channel: str, run: Run, place: str) -> str | None:
        """How the last run before this one ended that a channel was to be told of; None: there is none.

        `place` is what `alike` begins with: the repository of work that belongs to no job.
        """
        found = self._ask(
            "SELECT alike FROM notice JOIN run ON run.number = notice.run"
            " WHERE channel = ? AND job = ? AND action = ? AND substr(alike, 1, ?) = ?"
            " AND run.number < (SELECT number FROM run WHERE id = ?)"
            " ORDER BY run.number DESC LIMIT 1",
            (channel, run.job, run.action, len(place) + 1, f"{place}\n", run.id),
        )
        return str(found[0][0]) if found else None

    def pending(self, *, idle_at: float | None = None) -> tuple[Notice, ...]:
        """Those that nobody has got yet, oldest first; with `idle_at` those that nobody sends then.

        Nobody is at it for weeks: a clock was ahead when that was written.
        """
        now = math.inf if idle_at is None else idle_at
        rows = self._ask(
            "SELECT run.id, channel, alike, state, attempts, notice.text, job, action, started"
            " FROM notice JOIN run ON run.number = notice.run"
            " WHERE state = 'pending' AND (busy_until < ? OR busy_until > ?) ORDER BY notice.number",
            (now, now + LONGEST),
        )
        return tuple(
            Notice(str(run), str(channel), str(alike), State(str(state)), int(attempts or 0),
                   str(text), str(job), str(action), float(started or 0.0))
            for run, channel, alike, state, attempts, text, job, action, started in rows
        )  # fmt: skip

    def knows(self, run_id: str) -> bool:
        """Whether anybody was, or is, to be told of a run."""
        sql = "SELECT 1 FROM notice JOIN run ON run.number = notice.run WHERE run.id = ? LIMIT 1"
        return bool(self._ask(sql, (run_id,)))


def add(recorder: Recorder, notices: Iterable[Notice], busy_until: float) -> None:
    """Note who is about to be told; somebody is at it until then at the latest."""
    rows = [(n.channel, n.alike, n.state, busy_until, n.run) for n in notices]
    recorder.change(
        "INSERT OR IGNORE INTO notice (run, channel, alike, state, attempts, busy_until, text)"
        " SELECT number, ?, ?, ?, 0, ?, '' FROM run WHERE id = ?",
        rows,
    )
    recorder.change(
        "DELETE FROM notice WHERE state != 'pending'"
        " AND number <= (SELECT max(number) FROM notice) - ?",
        [(KEPT,)],
    )


def take(recorder: Recorder, notices: Iterable[Notice], busy_until: float) -> None:
    """Somebody tries them again, until then at the latest."""
    recorder.change(
        "UPDATE notice SET busy_until = ?"
        " WHERE channel = ? AND run = (SELECT number FROM run WHERE id = ?)",
        [(busy_until, n.channel, n.run) for n in notices],
    )


def settle(recorder: Recorder, notice: Notice, state: State, text: str) -> None:
    """What came of it; one that is still pending is tried again some other time."""
    recorder.change(
        "UPDATE notice SET state = ?, text = ?, attempts = attempts + 1, busy_until = ?"
        " WHERE channel = ? AND run = (SELECT number FROM run WHERE id = ?)",
        [(state, _plain(text), NOBODY, notice.channel, notice.run)],
    )


def _plain(text: str) -> str:
    """Bounded, and UTF-8 whatever it was."""
    return text[:2000].encode("utf-8", "backslashreplace").decode()
