"""Hooks in a run: `before` and `after` enclose all that reads, `on-success` or `on-failure` ends it.

What comes after a run comes whatever became of it, also when it was stopped: it may have to put right
what came before.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from capkeep.errors import EXIT_FAILED, CapkeepError, Failure
from capkeep.plan.model import Job, Plan
from capkeep.records.model import Outcome, Run, Step
from capkeep.records.queries import Records
from capkeep.run.ask import Visit
from capkeep.run.caller import Caller
from capkeep.run.errand import SLACK_SECONDS, Errand, Errands

BEFORE: Final = "before"
AFTER: Final = "after"
ON_SUCCESS: Final = "on-success"
ON_FAILURE: Final = "on-failure"
SNAPSHOT: Final = re.compile(r"[0-9a-f]{8,64}")


class Course(NamedTuple):
    """What is known of a run under way; each is asked for when it is needed."""

    so_far: Callable[[], Run]  # with the outcome that it has now
    done: Callable[[], list[Step]]


def enclosed(
    plan: Plan,
    job: Job,
    course: Course,
    reading: Callable[[], Errands],
    keeping: Callable[[], Errands],
) -> Errands:
    """A backup with its hooks: `reading` comes between the first two kinds, `keeping` after them."""
    hooks = job.hooks
    for name in hooks.before:
        errand = _errand(plan, job, BEFORE, name, course)
        if hooks.after and name == hooks.before[0]:
            errand = errand._replace(warn=partial(left_behind, job.name))
        step = yield errand
        if failed(step) and not (errand.optional and step.failure is not Failure.STOPPED):
            break
    else:
        yield from reading()
    for name in hooks.after:
        yield _errand(plan, job, AFTER, name, course)
    yield from keeping()
    whole = course.so_far().outcome is Outcome.COMPLETE
    for name in hooks.on_success if whole else hooks.on_failure:
        yield _errand(plan, job, ON_SUCCESS if whole else ON_FAILURE, name, course)


def in_any_case(plan: Plan, job: Job, course: Course, asked: list[Errand], caller: Caller) -> None:
    """Run what comes `after` and has not ended yet, with no word about it in the record."""
    caller.asked_to_stop = False
    begun = {errand.room.hook for errand in asked if errand.kind == AFTER}
    run = course.so_far()._replace(
        outcome=Outcome.FAILED, failure=Failure.INTERRUPTED, exit_code=EXIT_FAILED
    )
    for name in job.hooks.after:
        if name not in begun:
            errand = _errand(plan, job, AFTER, name, course._replace(so_far=lambda: run))
            deadline = time.monotonic() + errand.seconds
            with suppress(OSError, CapkeepError), Visit(errand.room) as visit:
                visit.ask(errand.request, lambda _: None, caller, deadline)


def failed(step: Step) -> bool:
    """Whether a hook did not end well."""
    return step.outcome is not Outcome.COMPLETE


def _errand(plan: Plan, job: Job, moment: str, name: str, course: Course) -> Errand:
    hook = plan.hook(name)
    room = next(r for r in plan.rooms if r.hook == name)
    run = course.so_far()
    options: dict[str, object] = {"moment": moment, "job": job.name, "run": run.id}
    if moment != BEFORE:
        options |= {
            "outcome": str(run.outcome or ""), "failure": str(run.failure or ""),
            "exit_code": -1 if run.exit_code is None else run.exit_code,
            "snapshots": snapshots(course.done()),
        }  # fmt: skip
    return Errand(
        moment, room, {"action": "run", "options": options}, hook.timeout_seconds + SLACK_SECONDS,
        optional=hook.optional, always=moment != BEFORE,
    )  # fmt: skip


def snapshots(done: list[Step]) -> list[str]:
    """The snapshots that the run has made, as REPOSITORY:ID; what is no id is no snapshot."""
    return [
        f"{step.repository}:{step.snapshot}"
        for step in done
        if step.kind == "backup" and SNAPSHOT.fullmatch(step.snapshot)
    ]


def left_behind(job: str, records: Records) -> str:
    """A sentence about the run before this one, if it was cut off between `before` and `after`."""
    last = [run for run in records.last_of(job, ("backup",), 2) if run.outcome is not None]
    if not last or last[0].failure is not Failure.INTERRUPTED:
        return ""
    kinds = {step.kind for step in records.steps(last[0].id)}
    if BEFORE not in kinds or AFTER in kinds:
        return ""
    return (
        f"run {last[0].id} was cut off: nothing shows that the hooks which come after it have run"
    )
