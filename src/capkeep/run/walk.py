"""Walk a job, or work on a repository, through its rooms, and write down what happened."""

import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from capkeep.errors import (
    EXIT_CODES,
    EXIT_COMPLETE,
    EXIT_PARTIAL,
    Failure,
    RefusedError,
    StepError,
)
from capkeep.plan.model import Job, Plan, Repository, Room
from capkeep.records.locks import Holder, JobLock
from capkeep.records.model import Outcome, Run, Step, new_run_id
from capkeep.rooms.protocol import Message
from capkeep.run.ask import Visit
from capkeep.run.caller import Caller, refusal

CHECK_SECONDS: Final = 7 * 24 * 3600
SHORT_SECONDS: Final = 3600


class Walk:
    """One caller's request, carried out; several runs if it names several jobs."""

    def __init__(self, plan: Plan, caller: Caller, proof: Message, peer_uid: int) -> None:
        self._plan = plan
        self._caller = caller
        self._proof = proof
        self._peer_uid = peer_uid

    def run_job(self, job: Job, *, dry_run: bool, accept_shrink: bool) -> int:
        """Back the job up to each of its repositories; returns the exit code.

        With `accept_shrink` the sources may be smaller than the last time: what is there now is
        what the next run is compared with.
        """
        if accept_shrink:
            job = job._replace(max_shrink_percent=100)
        request: Message = {"action": "backup", "options": {"dry_run": dry_run}}
        rooms = [self._plan.room(f"reader-{job.name}-{name}") for name in job.repositories]
        action = "dry-run" if dry_run else "backup"
        return self._run(job, action, rooms, request, job.timeout_seconds)

    def check(self, repository: Repository, read_data: str) -> int:
        """Check a repository in the keeper's room; returns the exit code."""
        request: Message = {"action": "check", "options": {"read_data": read_data}}
        return self._run(None, "check", [self._keeper(repository)], request, CHECK_SECONDS)

    def init(self, repository: Repository) -> int:
        """Make a repository that is not there yet; returns the exit code."""
        request: Message = {"action": "init", "options": {}}
        return self._run(None, "init", [self._keeper(repository)], request, SHORT_SECONDS)

    def snapshots(self, repository: Repository) -> int:
        """Tell the caller the repository's snapshots; nothing is recorded. Returns the exit code."""
        from capkeep.run.step import result_of
        from capkeep.run.verdict import failure_of

        request: Message = {"action": "snapshots", "options": {}}
        deadline = time.monotonic() + SHORT_SECONDS
        try:
            with Visit(self._keeper(repository)) as visit:
                result = visit.ask(request, lambda _: None, self._caller, deadline)
        except StepError as error:
            result = result_of(error)
        failure = failure_of(result)
        if failure is not None:
            code = EXIT_CODES[failure]
            self._caller.tell({**result, "event": "end", "outcome": "failed", "exit_code": code})
            return code
        self._caller.tell({
            "event": "snapshots", "repository": repository.name,
            "snapshots": result.get("snapshots"),
        })  # fmt: skip
        return EXIT_COMPLETE

    def _keeper(self, repository: Repository) -> Room:
        return self._plan.room(f"keeper-{repository.name}")

    def _run(
        self, job: Job | None, action: str, rooms: list[Room], request: Message, seconds: float
    ) -> int:
        """One run: a lock, a record, a step for each room, and an end that is always written."""
        now = time.time()
        run = Run(
            id=new_run_id(now), job=job.name if job else "", started=now, action=action,
            trigger_uid=self._peer_uid, trigger_user=_user_name(self._peer_uid),
        )  # fmt: skip
        lock = JobLock(self._plan.places.records, run.job)
        try:
            lock.acquire(Holder(run.job, run.id, run.trigger_uid, run.trigger_user, now))
        except RefusedError as error:
            self._caller.tell(refusal(error, error.exit_code))
            return error.exit_code
        # The first room starts while the record is opened.
        with lock, _first_visit(rooms[0]) as first:
            # Imported only now: the first room starts while the record is loaded and opened.
            from capkeep.run.step import Ledger, carry_out

            with Ledger(self._plan.places, run, self._caller) as ledger:
                ledger.begin(self._proof)
                done: list[Step] = []
                for room in rooms:
                    visit = first if room is rooms[0] else None
                    done.append(carry_out(ledger, room, job, visit, request, seconds))
                    if done[-1].failure is Failure.STOPPED:
                        break
                return ledger.end(_total(run, done, ledger.reasons))


@contextmanager
def _first_visit(room: Room) -> Iterator[Visit | None]:
    """A visit under way, or None: the error is met again, and recorded, in the step itself."""
    try:
        visit = Visit(room)
    except StepError:
        yield None
        return
    with visit:
        yield visit


def _total(run: Run, steps: list[Step], reasons: tuple[str, ...]) -> Run:
    """The run's outcome is its worst step's."""
    order = (Outcome.FAILED, Outcome.PARTIAL, Outcome.COMPLETE)
    worst = min(steps, key=lambda s: order.index(s.outcome or Outcome.FAILED))
    return run._replace(
        outcome=worst.outcome, failure=worst.failure, exit_code=exit_code(worst),
        text=worst.text, reasons=reasons,
    )  # fmt: skip


def exit_code(step: Step) -> int:
    """What the command line ends with for such a step."""
    if step.outcome is Outcome.COMPLETE:
        return EXIT_COMPLETE
    if step.outcome is Outcome.PARTIAL:
        return EXIT_PARTIAL
    return EXIT_CODES[step.failure or Failure.ENGINE]


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
