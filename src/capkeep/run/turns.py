"""Whose turn it is to be pulled from: one run at a time of each target, and so many of all of them.

Runs that began at one time wait here for each other, in the record already: what waits is not missed.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from capkeep.errors import Failure, RefusedError, StepError
from capkeep.plan.model import Job, Plan
from capkeep.records.locks import Holder, JobLock, place_in_line, pulls_from
from capkeep.records.model import Run
from capkeep.run.attempts import LockPatience

PLACE_SECONDS: Final = 3600.0  # that a run waits for others that are pulling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.run.step import Ledger


class Turn:
    """A job's, for the time in which its target is pulled from."""

    def __init__(self, plan: Plan, job: Job) -> None:
        self._directory = plan.places.records
        self._target = job.target
        self._parallel = plan.parallel_pulls

    @contextmanager
    def taken(self, ledger: "Ledger", deadline: float) -> Iterator[None]:
        """Wait for it, until a time of time.monotonic(). Raises StepError if it does not come."""
        with ExitStack() as held:
            own = (pulls_from(self._target),)
            if busy := self._await(ledger, deadline, held, own):
                raise self._not_come(ledger, busy)
            if self._parallel:
                places = tuple(map(place_in_line, range(self._parallel)))
                full = f"{self._parallel} targets are being pulled from"
                # One that only pretends to be at work must not keep all others waiting.
                soon = min(deadline, time.monotonic() + PLACE_SECONDS)
                if self._await(ledger, soon, held, places, full):
                    if ledger.caller.asked_to_stop or soon == deadline:
                        raise self._not_come(ledger, full)
                    text = f"{full}, for {PLACE_SECONDS / 60:.0f} minutes: goes on beside them"
                    ledger.tell({"event": "warning", "text": text})
            yield

    def _not_come(self, ledger: "Ledger", why: str) -> StepError:
        failure = Failure.STOPPED if ledger.caller.asked_to_stop else Failure.LOCKED
        return StepError(failure, f"it was not the turn of target {self._target}: {why}")

    def _await(
        self, ledger: "Ledger", deadline: float, held: ExitStack, any_of: tuple[str, ...],
        full: str = "",
    ) -> str:  # fmt: skip
        """Hold one of these locks; else why not, which is `full` unless their holder is to be named."""
        patience = LockPatience(deadline - time.monotonic())
        while busy := self._take(ledger.run, held, any_of):
            why = full or busy
            if not patience.wait(why, ledger.tell, ledger.caller):
                return why
        return ""

    def _take(self, run: Run, held: ExitStack, any_of: tuple[str, ...]) -> str:
        """Hold one of these locks; else who has the last of them, in words."""
        busy = ""
        for name in any_of:
            lock = JobLock(self._directory, name)
            try:
                lock.acquire(Holder(name, run.id, run.trigger_uid, run.trigger_user, time.time()))
            except RefusedError as error:
                busy = str(error)
                continue
            held.enter_context(lock)
            return ""
        return busy
