"""Find runs that should have happened and did not, and write each down once.

Done by a process of the runner's user that nobody asks, as the runner itself may be what is broken.
"""

import os
import sys
import time
import zlib
from typing import Final, NamedTuple

from capkeep.errors import EXIT_FAILED
from capkeep.plan import codec
from capkeep.plan.load import load_plan
from capkeep.plan.model import Places, Plan
from capkeep.plan.timetable import Timetable, whole
from capkeep.records.due import Moment, Rules, Watched, actions, look, overdue
from capkeep.records.locks import open_regular
from capkeep.records.model import Outcome, Run
from capkeep.records.notices import Notices
from capkeep.records.reader import RecordReader
from capkeep.records.store import Recorder
from capkeep.run.aftermath import Aftermath

MEMORY: Final = "watch.json"
RUNS_LOOKED_AT: Final = 500
FAR: Final = 4_102_444_800  # seconds since 1970: the year 2100
LEAST_SECONDS: Final = 10.0  # for a notifier to start and tell


class _Entry(NamedTuple):
    """What is remembered of one schedule."""

    job: str
    kind: str
    watched: Watched


class _Memory(NamedTuple):
    entries: tuple[_Entry, ...] = ()


def watch(places: Places) -> tuple[Run, ...]:
    """Look once, and tell of what was found; returns the runs that were found missed just now.

    Raises CapkeepError, OSError.
    """
    plan = load_plan(places)
    applied = os.stat(places.plan).st_mtime
    known = remembered(places)
    now = read_clocks()
    entries, found = [], []
    after = Aftermath()
    after.use(plan)
    with Recorder(places.records) as recorder:
        for table in whole(plan):
            runs = recorder.last_of(table.job, actions(table.kind), RUNS_LOOKED_AT)
            watched, missed = look(
                table.calendar, known.get((table.job, table.kind)), applied, runs, now,
                rules(plan, table),
            )  # fmt: skip
            entries.append(_Entry(table.job, table.kind, watched))
            for due in missed:
                run = missed_run(table, due, now.wall)
                if recorder.note(run):
                    found.append(run)
                elif Notices(recorder).knows(run.id):
                    continue
                after.ended(recorder, run.id, "")
    _remember(f"{places.records}/{MEMORY}", _Memory(tuple(entries)))
    for run in found:
        said = f"{run.job}: {run.action} {run.outcome}: {run.text}"
        print(said, file=sys.stderr, flush=True)  # into the journal
    # Others wait for channels as long as it takes; the next look must not be late.
    after.finish(max(plan.watch.every_seconds / 2, LEAST_SECONDS), again=True)
    return tuple(found)


def find_unwatched(places: Places) -> dict[str, str]:
    """Jobs whose last scheduled run did not happen while no watch ran, and that in words.

    For readers of the record. Raises CapkeepError, OSError.
    """
    plan = load_plan(places)
    applied, now = os.stat(places.plan).st_mtime, read_clocks()
    known = remembered(places)
    found = {}
    with RecordReader(places.records) as records:
        for table in whole(plan):
            runs = records.last_of(table.job, actions(table.kind), 10)
            due = overdue(
                table.calendar, known.get((table.job, table.kind)), applied, runs, now,
                rules(plan, table),
            )  # fmt: skip
            if due is not None:
                found[table.job] = (
                    f"{table.kind} missed: {_did_not_begin(due)}, and nobody looks for missed runs"
                )
    return found


def rules(plan: Plan, table: Timetable) -> Rules:
    """How long a run of that kind may be late."""
    return Rules(plan.watch.every_seconds, plan.watch.grace_seconds + table.spread_seconds)


def missed_run(table: Timetable, due: int, now: float) -> Run:
    """The record of a run that did not happen; the same time gets the same id."""
    name = f"{zlib.crc32(f'{table.job}/{table.kind}'.encode()):08x}"
    text = _did_not_begin(due)
    return Run(
        id=time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime(due)) + name, job=table.job,
        started=float(due), action=table.kind, ended=now, seconds=0.0, outcome=Outcome.MISSED,
        exit_code=EXIT_FAILED, text=text, reasons=(text,), trigger_uid=os.geteuid(),
    )  # fmt: skip


def _did_not_begin(due: int) -> str:
    said = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(due))
    return f"it was due at {said} and did not begin"


def read_clocks() -> Moment:
    """Now."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return Moment(time.time(), time.monotonic(), boot)


def remembered(places: Places) -> dict[tuple[str, str], Watched]:
    """What the look before left, by job and kind; nothing of what is not there, or not whole."""
    try:
        with open(open_regular(f"{places.records}/{MEMORY}"), "rb") as file:
            entries = codec.loads(_Memory, file.read()).entries
    except (OSError, codec.DecodeError):
        return {}
    return {(e.job, e.kind): e.watched for e in entries if _is_sound(e.watched)}


def _is_sound(watched: Watched) -> bool:
    """Whether all times in it are some that can be reckoned with; NaN is none."""
    times = (watched.settled, watched.looked.wall, *(w.due for w in watched.waiting))
    steady = (watched.looked.steady, *(w.steady for w in watched.waiting))
    return all(0 <= t < FAR for t in times) and all(-FAR < t < FAR for t in steady)


def _remember(path: str, memory: _Memory) -> None:
    draft = path + ".new"
    with open(draft, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o640)  # the group may read what is in the record
        file.write(codec.dumps(memory))
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, path)
