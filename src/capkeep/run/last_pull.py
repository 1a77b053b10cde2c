"""What comes when no target is left to be pulled from: a command, such as one that powers off."""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from capkeep import calendars
from capkeep.errors import EXIT_CODES, EXIT_COMPLETE, Failure
from capkeep.plan.model import Job, Plan
from capkeep.records.locks import copies_of, holder
from capkeep.records.model import Outcome, Run
from capkeep.records.queries import Records
from capkeep.run.errand import AFTER_PULLS, SLACK_SECONDS, Errand, Errands

BACKUP: Final = ("backup",)
EARLY: Final = 1.0  # second by which a timer may come before its time
QUIET: Final = (
    60.0  # seconds without any pull: whoever pulls from one target after the other takes less
)


class Pulled(NamedTuple):
    """What is known of one target's job."""

    calendar: tuple[str, ...]
    patience: float  # seconds after its time in which it may still begin
    begun: float  # when its last run began; 0 for none
    ended: float  # when that ended; 0 if nobody has written it down
    missed: bool  # it only should have begun
    under_way: bool


def are_over(jobs: Sequence[Pulled], before: float, now: float) -> bool:
    """Whether none is under way or about to come, and some have begun since `before`.

    That is when this was so the last time; all are seconds since 1970.
    """
    begun = [job.begun for job in jobs if not job.missed]
    if any(job.under_way for job in jobs) or max(begun, default=0.0) <= before:
        return False
    return not any(_is_about_to_come(job, now) for job in jobs)


def were_forgotten(jobs: Sequence[Pulled], before: float, now: float) -> bool:
    """The same, for who did not carry out the last one: that whoever did will not see to it any more."""
    return max(job.ended for job in jobs) < now - QUIET and are_over(jobs, before, now)


def _is_about_to_come(job: Pulled, now: float) -> bool:
    due = calendars.latest(tuple(map(calendars.parse, job.calendar)), now)
    return due is not None and job.begun < due - EARLY and now < due + job.patience


def known(plan: Plan, records: Records) -> tuple[tuple[Pulled, ...], float, Outcome]:
    """What the record says of all targets' jobs, when all was over the last time, and the worst outcome."""
    found, outcomes = [], set()
    for job in plan.jobs:
        if job.target:
            last: Run | None = next(iter(records.last_of(job.name, BACKUP, 1)), None)
            outcomes.add(last.outcome if last else None)
            found.append(
                Pulled(
                    job.schedule,
                    job.spread_seconds + plan.watch.grace_seconds,
                    last.started if last else 0.0,
                    (last.ended or 0.0) if last else 0.0,
                    last is not None and last.outcome in (Outcome.MISSED, Outcome.SKIPPED),
                    _is_at_work(plan, job),
                )
            )
    before = next((run.started for run in records.last_of("", (AFTER_PULLS,), 1)), 0.0)
    ranked = (Outcome.COMPLETE, Outcome.PARTIAL)
    worst = next((o for o in reversed(ranked) if outcomes <= {*ranked} and o in outcomes), None)
    return tuple(found), before, worst or Outcome.FAILED


def _is_at_work(plan: Plan, job: Job) -> bool:
    """Whether the job runs, or what it has made is being copied."""
    names = (job.name, copies_of(job.name))
    return any(holder(plan.places.records, name) is not None for name in names)


def is_time(plan: Plan) -> Outcome | None:
    """The outcome of all pulls together, if the last of them is over. Raises OSError."""
    if not _is_wanted(plan):
        return None
    jobs, before, outcome = _look(plan)
    return outcome if are_over(jobs, before, time.time()) else None


def is_due(plan: Plan, applied: float) -> bool:
    """Whether it should have come by now, as where a pull's runner was killed. Raises OSError.

    Not for pulls from before the plan was `applied`, which may not have known of it.
    """
    if not _is_wanted(plan):
        return False
    jobs, before, _ = _look(plan)
    return were_forgotten(jobs, max(before, applied), time.time())


def _is_wanted(plan: Plan) -> bool:
    return bool(plan.after_pulls) and any(job.target for job in plan.jobs)


def _look(plan: Plan) -> tuple[tuple[Pulled, ...], float, Outcome]:
    from capkeep.records.store import Recorder

    with Recorder(plan.places.records) as records:
        return known(plan, records)


def errands(plan: Plan, outcome: Outcome) -> Errands:
    """The hooks, one after the other."""
    code = EXIT_COMPLETE if outcome is Outcome.COMPLETE else EXIT_CODES[Failure.ENGINE]
    for name in plan.after_pulls:
        hook = plan.hook(name)
        room = next(r for r in plan.rooms if r.hook == name)
        options = {
            "moment": AFTER_PULLS, "outcome": str(outcome), "exit_code": code,
        }  # fmt: skip
        yield Errand(
            AFTER_PULLS, room, {"action": "run", "options": options},
            hook.timeout_seconds + SLACK_SECONDS, optional=hook.optional,
        )  # fmt: skip
