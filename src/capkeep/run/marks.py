"""What a run leaves for monitoring: the stamp of the last complete backup, and metrics."""

import os
import time
from contextlib import suppress

from capkeep.plan.model import Places, Plan
from capkeep.plan.places import METRICS_FILE
from capkeep.records.model import Run


def stamp(places: Places, run: Run) -> None:
    """Say when a job's last complete backup began, in the file's text and time. Raises OSError."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.started))
    _replace(places.stamps, run.job, f"{when} {run.id}\n", run.started)


def write_metrics(plan: Plan) -> None:
    """All that the record knows, for Prometheus. Raises OSError, RecordsError."""
    from capkeep.plan.timetable import whole
    from capkeep.records.drills import proven
    from capkeep.records.notices import Notices
    from capkeep.records.reader import RecordReader
    from capkeep.records.upkeep import kept_and_rotating
    from capkeep.report.metrics import Numbers, render
    from capkeep.report.times import next_times

    now = time.time()
    # What the plan no longer has is history, and nobody's alarm.
    names = {repository.name for repository in plan.repositories}
    pairs = {(job.name, name) for job in plan.jobs for name in job.repositories}
    with RecordReader(plan.places.records) as records:
        statuses = {status.job: status for status in records.statuses()}
        steps = {
            run.id: records.steps(run.id) for status in statuses.values() for run in status.latest
        }
        unread = {
            (step.run, step.seq): records.finding_counts(step)
            for found in steps.values()
            for step in found
        }
        numbers = Numbers(
            jobs=tuple((j.name, j.max_age_seconds) for j in plan.jobs),
            statuses=statuses, steps=steps, found=unread,
            checks=tuple(s for s in records.last_steps("check") if s.repository in names),
            channels=tuple(n.name for n in plan.notify),
            undelivered=Notices(records).pending(), now=now, version=plan.capkeep_version,
            kept=tuple(
                one for one in kept_and_rotating(records, _rotations(plan), now) if one.repository in names
            ),
            next_runs=next_times(whole(plan), now, 1),
            proven=tuple(p for p in proven(records, now) if (p.job, p.repository) in pairs),
        )  # fmt: skip
    _replace(plan.metrics, METRICS_FILE, render(numbers), None)


def _rotations(plan: Plan) -> dict[str, int]:
    """Within how many seconds all data of a repository is to be read: the shortest of its jobs'."""
    found: dict[str, int] = {}
    for job in plan.jobs:
        within = job.check.rotate_seconds if job.check else 0
        for name in job.repositories if within else ():
            found[name] = min(within, found.get(name, within))
    return found


def _replace(directory: str, name: str, text: str, when: float | None) -> None:
    """Put a file that anybody may read in its place, whole.

    The directory may be somebody else's, who can put anything there: what is written to is made
    here, and no FIFO is waited for. Raises OSError.
    """
    draft = f"{directory}/.{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(draft)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o644)
    with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
        os.fchmod(fd, 0o644)
        file.write(text)
        file.flush()
        if when is not None:
            os.utime(fd, (when, when))
    os.rename(draft, f"{directory}/{name}")
