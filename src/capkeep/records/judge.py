"""Whether a job is in order: pure, from what the record knows and what the job promises."""

from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.errors import EXIT_COMPLETE, EXIT_FAILED, EXIT_PARTIAL
from capkeep.records.model import JobStatus, Outcome, Run

JUDGED: Final = (
    "backup",
    "check",
    "retention",
)  # what somebody only looked at says nothing about the job


class State(StrEnum):
    """The one word for a job."""

    FRESH = "fresh"  # the last run was complete and is not older than promised
    PARTIAL = "partial"  # the last backup missed something
    LATE = "late"  # the last complete backup is older than the job's max-age
    FAILED = "failed"  # the last backup or check failed
    MISSED = "missed"  # the last one should have happened and did not
    RUNNING = "running"  # the first run is under way; nothing is kept yet
    NEVER = "never"


class Verdict(NamedTuple):
    """A job's state, and why in one sentence."""

    job: str
    state: State
    text: str
    age: float | None  # seconds since the last complete backup began; None: there is none


def judge(job: str, status: JobStatus | None, max_age: int, now: float) -> Verdict:
    """`max_age` in seconds, 0 for no promise. A backup is as old as its beginning."""
    complete = status.last_complete if status else None
    age = max(0.0, now - complete.started) if complete else None
    state, text = _decide(status, age, max_age)
    return Verdict(job, state, text, age)


def unwatched_verdict(verdict: Verdict, text: str | None) -> Verdict:
    """The verdict where a scheduled run did not happen and nobody has written that down."""
    if not text or verdict.state in (State.FAILED, State.MISSED):
        return verdict
    return verdict._replace(state=State.MISSED, text=text)


def _decide(status: JobStatus | None, age: float | None, max_age: int) -> tuple[State, str]:
    known = [run for run in status.latest if run.action in JUDGED] if status else []
    failed = [run for run in known if run.outcome in (Outcome.FAILED, Outcome.MISSED)]
    backups = [run for run in known if run.action == "backup"]
    if failed:
        missed = failed[-1].outcome is Outcome.MISSED
        return State.MISSED if missed else State.FAILED, _failed_text(failed[-1])
    if not backups:
        if status and status.running and status.running.action == "backup":
            return State.RUNNING, "its first backup is under way"
        return State.NEVER, "it has never run"
    if max_age and age is not None and age > max_age:
        return State.LATE, "the last complete backup is older than promised"
    if backups[-1].outcome == Outcome.PARTIAL:
        return State.PARTIAL, backups[-1].text or "the last backup missed something"
    return State.FRESH, "the last backup is complete"


def _failed_text(run: Run) -> str:
    why = str(run.failure or run.outcome)
    return f"{run.action} {why}: {run.text}" if run.text else f"{run.action} {why}"


def exit_code(verdicts: tuple[Verdict, ...]) -> int:
    """For monitoring: 0 all fresh, 3 nothing worse than partial, 1 anything else."""
    states = {verdict.state for verdict in verdicts}
    if states <= {State.FRESH}:
        return EXIT_COMPLETE
    return EXIT_PARTIAL if states <= {State.FRESH, State.PARTIAL} else EXIT_FAILED
