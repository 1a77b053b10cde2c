"""What the record means for a job."""

import pytest

from capkeep.errors import Failure
from capkeep.records.judge import State, Verdict, exit_code, judge
from capkeep.records.model import JobStatus, Outcome, Run, Totals

NOW = 1_000_000.0
HOUR = 3600


def run(outcome: Outcome | None, hours: float, **fields: object) -> Run:
    return Run("r", "system", NOW - hours * HOUR, outcome=outcome)._replace(**fields)


def status(*latest: Run, complete: Run | None = None, running: Run | None = None) -> JobStatus:
    return JobStatus("system", latest, complete, running, Totals())


GOOD, BAD, PART = (run(o, 2) for o in (Outcome.COMPLETE, Outcome.FAILED, Outcome.PARTIAL))
OLD = run(Outcome.COMPLETE, 40)
RUNNING = run(None, 1)
CHECKED, CHECK_FAILED = (run(o, 1, action="check") for o in (Outcome.COMPLETE, Outcome.FAILED))


@pytest.mark.parametrize(
    "known,state",
    [
        (None, State.NEVER),
        (status(), State.NEVER),
        (status(running=RUNNING), State.RUNNING),
        (status(running=RUNNING._replace(action="check")), State.NEVER),
        (status(GOOD, complete=GOOD), State.FRESH),
        (status(GOOD, complete=GOOD, running=RUNNING), State.FRESH),
        (status(OLD, complete=OLD), State.LATE),
        (status(PART, complete=run(Outcome.COMPLETE, 20)), State.PARTIAL),
        (status(PART, complete=OLD), State.LATE),
        (status(PART), State.PARTIAL),
        (status(BAD, complete=run(Outcome.COMPLETE, 3)), State.FAILED),
        (status(BAD, complete=OLD), State.FAILED),
        (status(run(Outcome.MISSED, 1), complete=GOOD), State.MISSED),
        (status(GOOD, CHECKED, complete=GOOD), State.FRESH),
        (status(GOOD, CHECK_FAILED, complete=GOOD), State.FAILED),
        (status(CHECK_FAILED, GOOD, complete=GOOD), State.FAILED),
        (status(CHECKED), State.NEVER),
        (status(run(Outcome.FAILED, 1, action="snapshots"), GOOD, complete=GOOD), State.FRESH),
        (status(run(Outcome.FAILED, 1, action="dry-run"), GOOD, complete=GOOD), State.FRESH),
    ],
)
def test_state(known: JobStatus | None, state: State) -> None:
    assert judge("system", known, 36 * HOUR, NOW).state is state


def test_without_a_promise_nothing_is_late() -> None:
    assert judge("system", status(OLD, complete=OLD), 0, NOW).state is State.FRESH


def test_age_is_counted_from_the_beginning_and_never_negative() -> None:
    assert judge("system", status(GOOD, complete=GOOD), 0, NOW).age == 2 * HOUR
    assert judge("system", status(GOOD, complete=GOOD), 0, 0.0).age == 0


def test_the_sentence_says_why() -> None:
    bad = BAD._replace(failure=Failure.NO_SPACE, text="the disk is full")
    assert judge("system", status(bad), 0, NOW).text == "backup no-space: the disk is full"


@pytest.mark.parametrize(
    "states,code",
    [
        ((), 0),
        ((State.FRESH, State.FRESH), 0),
        ((State.FRESH, State.PARTIAL), 3),
        ((State.PARTIAL, State.LATE), 1),
        ((State.NEVER,), 1),
        ((State.RUNNING,), 1),
        ((State.FAILED,), 1),
    ],
)
def test_exit_codes_for_monitoring(states: tuple[State, ...], code: int) -> None:
    assert exit_code(tuple(Verdict("j", state, "", None) for state in states)) == code
