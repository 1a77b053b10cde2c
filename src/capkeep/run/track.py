"""One run: a lock, a record, errand after errand, and an end that is always written."""

import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager

from capkeep.errors import (
    EXIT_CODES,
    EXIT_COMPLETE,
    EXIT_PARTIAL,
    Failure,
    RefusedError,
    StepError,
)
from capkeep.plan.model import Job, Plan
from capkeep.records.life import COPYING
from capkeep.records.locks import Holder, JobLock, after_pulls, copies_of, work_on
from capkeep.records.model import Outcome, Run, Step, new_run_id
from capkeep.rooms.protocol import Message
from capkeep.run.aftermath import Aftermath
from capkeep.run.ask import Visit
from capkeep.run.caller import Caller, refusal
from capkeep.run.dumps import counted
from capkeep.run.errand import AFTER_PULLS, Errand, Errands
from capkeep.run.verdict import BESIDE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.run.step import Ledger


class Track:
    """Carries out one run after another, for one caller."""

    def __init__(
        self, plan: Plan, caller: Caller, proof: Message, peer_uid: int, after: Aftermath
    ) -> None:
        self._plan = plan
        self._caller = caller
        self._proof = proof
        self._peer_uid = peer_uid
        self._after = after
        self._begun: Run | None = None  # the run under way, as it began
        self._asked: list[Errand] = []
        self.done: list[Step] = []  # of the run under way, or of the last one
        self.ledger: Ledger | None = None  # of the run under way

    def so_far(self) -> Run:
        """The run under way, with the outcome that it has now."""
        assert self._begun is not None, "a run has begun"
        if not self.done:
            return self._begun
        return _total(self._begun, counted(self._asked, self.done), ())

    def run(self, job: Job | None, action: str, errands: Errands) -> int:
        """A step for each errand, and an end that is written whatever comes; returns the exit code."""
        now = time.time()
        run = Run(
            id=new_run_id(now), job=job.name if job else "", started=now, action=action,
            trigger_uid=self._peer_uid, trigger_user=user_name(self._peer_uid),
        )  # fmt: skip
        self._begun, self._asked, self.done = run, [], []
        errand = next(errands)
        work = run.job or work_on(errand.room.repository)
        if job and action in COPYING:
            work = copies_of(job.name)
        if errand.kind == AFTER_PULLS:
            work = after_pulls()
        lock = JobLock(self._plan.places.records, work)
        try:
            who = Holder(work, run.id, run.trigger_uid, run.trigger_user, now)
            if job and job.resources.lock_wait_seconds:
                from capkeep.run.attempts import acquire

                acquire(lock, who, job.resources.lock_wait_seconds, self._caller)
            else:
                lock.acquire(who)
        except RefusedError as error:
            self._caller.tell(refusal(error, error.exit_code))
            return error.exit_code
        # The first room starts while the record is opened.
        with lock, _first_visit(errand) as visit:
            # Imported only now: the first room starts while the record is loaded and opened.
            from capkeep.run.step import Ledger

            with Ledger(self._plan.places, run, self._caller) as ledger:
                ledger.begin(self._proof)
                self.ledger = ledger
                self._after.started(ledger.recorder, run, errand.room.repository)
                try:
                    self._note(errand, _steps(ledger, job, errand, visit))
                    while (found := self._next(errands)) is not None:
                        errand = found
                        self._note(errand, self._carry_out(ledger, job, errand))
                except Exception:
                    self._in_any_case(job)
                    raise
                done = counted(self._asked, self.done)
                code = ledger.end(_total(run, done, ledger.reasons))
                self._after.ended(ledger.recorder, run.id, errand.room.repository)
                return code

    def _in_any_case(self, job: Job | None) -> None:
        """The run cannot go on, as when it cannot be recorded: what comes after it comes all the same."""
        if job and job.hooks.after:
            from capkeep.run.hooks import Course, in_any_case

            course = Course(self.so_far, lambda: self.done)
            in_any_case(self._plan, job, course, self._asked, self._caller)

    def _note(self, errand: Errand, made: list[Step]) -> None:
        self._asked += [errand for _ in made]
        self.done += made

    def _next(self, errands: Errands) -> Errand | None:
        """What comes now; of a run that was stopped, only what comes in any case."""
        stopped = any(step.failure is Failure.STOPPED for step in self.done)
        try:
            errand = errands.send(self.done[-1])
            while stopped and not errand.always:
                errand = errands.send(self.done[-1])
        except StopIteration:
            return None
        return errand

    def _carry_out(self, ledger: "Ledger", job: Job | None, errand: Errand) -> list[Step]:
        """The wish to stop does not stop what comes in any case; if it comes again, it does."""
        if not errand.always:
            return _steps(ledger, job, errand, None)
        wished, self._caller.asked_to_stop = self._caller.asked_to_stop, False
        made = _steps(ledger, job, errand, None)
        self._caller.asked_to_stop = wished or self._caller.asked_to_stop
        return made


def _steps(ledger: "Ledger", job: Job | None, errand: Errand, visit: Visit | None) -> "list[Step]":
    """What becomes of an errand: a step, or one for each of its parts."""
    if errand.parts:
        from capkeep.run import upkeep

        return upkeep.carry_out(ledger, errand, job.resources.lock_wait_seconds if job else 0)
    if errand.live:
        from capkeep.run import drill

        assert job is not None, "drills are a job's"
        return [drill.carry_out(ledger, job, errand)]
    from capkeep.run.step import carry_out_patiently

    return [carry_out_patiently(ledger, job, errand, visit)]


@contextmanager
def _first_visit(errand: Errand) -> Iterator[Visit | None]:
    """A visit under way, or None: the error is met again, and recorded, in the step itself."""
    if errand.parts or errand.live or errand.turn:
        yield None
        return
    try:
        visit = Visit(errand.room)
    except StepError:
        yield None
        return
    with visit:
        yield visit


def _total(run: Run, steps: list[Step], reasons: tuple[str, ...]) -> Run:
    """The run's outcome is its worst step's."""
    order = (Outcome.FAILED, Outcome.PARTIAL, Outcome.COMPLETE)
    counting = [s for s in steps if s.kind not in BESIDE] or steps
    worst = min(counting, key=lambda s: order.index(s.outcome or Outcome.FAILED))
    return run._replace(
        outcome=worst.outcome, failure=worst.failure, exit_code=_exit_code(worst),
        text=worst.text, reasons=reasons,
    )  # fmt: skip


def _exit_code(step: Step) -> int:
    """What the command line ends with for such a step."""
    if step.outcome is Outcome.COMPLETE:
        return EXIT_COMPLETE
    if step.outcome is Outcome.PARTIAL:
        return EXIT_PARTIAL
    return EXIT_CODES[step.failure or Failure.ENGINE]


def user_name(uid: int) -> str:
    """What a user is called here; nothing if nobody has that number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
