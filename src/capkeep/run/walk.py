"""Walk a job, or work on a repository, through its rooms, and write down what happened."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from capkeep.errors import (
    EXIT_CODES,
    EXIT_COMPLETE,
    EXIT_FAILED,
    Failure,
    RefusedError,
    StepError,
)
from capkeep.plan.model import Job, Plan, Repository, Room, RoomKind
from capkeep.records.life import COPY, COPY_DRY_RUN
from capkeep.records.locks import Holder, JobLock, copies_of, holder, last_pull
from capkeep.records.model import Outcome, Run, Step, new_run_id
from capkeep.rooms.protocol import Message
from capkeep.run.aftermath import Aftermath
from capkeep.run.ask import Visit
from capkeep.run.caller import Caller, refusal
from capkeep.run.dumps import dump_errands
from capkeep.run.errand import AFTER_PULLS, Errand, Errands
from capkeep.run.track import Track, user_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.records.queries import Records
    from capkeep.run.manifest import Shelf
    from capkeep.run.turns import Turn

CHECK_SECONDS: Final = 7 * 24 * 3600
SHORT_SECONDS: Final = 3600


class Walk:
    """One caller's request, carried out; several runs if it names several jobs."""

    def __init__(
        self, plan: Plan, caller: Caller, proof: Message, peer_uid: int, after: Aftermath
    ) -> None:
        self._plan = plan
        self._caller = caller
        self._peer_uid = peer_uid
        self._after = after
        self._track = Track(plan, caller, proof, peer_uid, after)
        self.to_copy: list[Job] = []  # jobs whose new snapshots are to be copied when all is kept
        after.use(plan)

    def run_job(self, job: Job, *, dry_run: bool, accept_shrink: bool) -> int:
        """Back the job up to each of its repositories; returns the exit code.

        With `accept_shrink` the sources may be smaller than the last time: what is there now is
        what the next run is compared with.
        """
        if accept_shrink:
            job = job._replace(max_shrink_percent=100)
        if dry_run:
            return self._track.run(job, "dry-run", self._backups(job, "dry-run"))
        errands = self._with_hooks(job) if any(job.hooks) else self._backups(job, "backup")
        code = self._track.run(job, "backup", errands)
        if self._is_to_be_copied(job):
            self.to_copy.append(job)
        return code

    def save(self, job: Job, repository: str) -> int:
        """Back up what is about to be replaced, to one repository; returns the exit code.

        And nothing else: what comes after backups may remove the snapshot that is to be restored.
        """
        room = self._plan.room(f"reader-{job.name}-{repository}")
        request: Message = {"action": "backup", "options": {"dry_run": False}}

        def only() -> Errands:
            yield Errand("backup", room, request, job.timeout_seconds, turn=self._turn(job))

        return self._track.run(job, "safety", only())

    def _with_hooks(self, job: Job) -> Errands:
        """The job's hooks around its backups; what the keeper does waits until `after` is done."""
        from capkeep.run.hooks import Course, enclosed

        made: list[Step] = []
        course = Course(self._track.so_far, lambda: self._track.done)
        yield from enclosed(
            self._plan, job, course, lambda: self._backups(job, "backup", made),
            lambda: self._keeping_made(job, made),
        )  # fmt: skip

    def _keeping_made(self, job: Job, made: list[Step]) -> Errands:
        """What the keepers do after all backups."""
        for step in made:
            if then := self._after_backup(job, step):
                yield then

    def after_pulls(self) -> int:
        """Run what comes when no target is left to be pulled from, if that is now; returns the exit code."""
        from capkeep.run.last_pull import errands, is_time

        if not self._plan.after_pulls:
            return EXIT_COMPLETE
        with JobLock(self._plan.places.records, last_pull()) as lock:
            try:
                lock.acquire(Holder(last_pull(), pid=os.getpid()))
            except RefusedError:  # another one decides just now, or carries it out
                return EXIT_COMPLETE
            outcome = is_time(self._plan)
            if outcome is None:
                return EXIT_COMPLETE
            return self._track.run(None, AFTER_PULLS, errands(self._plan, outcome))

    def tell(self, message: Message) -> None:
        """Answer the caller with something that is no run's."""
        self._caller.tell(message)

    def leave_out(self, job: Job, kind: str, why: str) -> int:
        """Write down that a scheduled run was left out on purpose; returns the exit code."""
        from capkeep.records.due import LEFT_OUT
        from capkeep.records.store import Recorder

        now = time.time()
        run = Run(
            id=new_run_id(now), job=job.name, started=now, action=LEFT_OUT + kind, ended=now,
            seconds=0.0, outcome=Outcome.SKIPPED, exit_code=EXIT_COMPLETE, text=why,
            trigger_uid=self._peer_uid, trigger_user=user_name(self._peer_uid),
        )  # fmt: skip
        with Recorder(self._plan.places.records) as recorder:
            recorder.note(run)
        self._caller.tell({"event": "left-out-run", **run._asdict(), "reasons": []})
        return EXIT_COMPLETE

    def check(self, repository: Repository, read_data: str) -> int:
        """Check a repository in the keeper's room; returns the exit code."""
        request: Message = {"action": "check", "options": {"read_data": read_data}}
        return self._keep(repository, request, CHECK_SECONDS)

    def init(self, repository: Repository) -> int:
        """Make a repository that is not there yet; returns the exit code.

        One that is copied into is made by a copier, like the one that is copied from; one whose
        password its target keeps by the engine there.
        """
        rooms = self._plan.rooms
        if repository.target_keeps_password:
            pullers = (r for r in rooms if r.kind is RoomKind.PULLER)
            room = next(r for r in pullers if r.repository == repository.name)
            turn = self._turn(self._plan.job(room.job))
            return self._visit(room, {"action": "init", "options": {}}, SHORT_SECONDS, turn)
        own = (r for r in rooms if r.repository == repository.name)
        copiers = (r for r in own if r.kind is RoomKind.COPIER)
        room = next(copiers, self._keeper(repository))
        return self._visit(room, {"action": "init", "options": {}}, SHORT_SECONDS)

    def snapshots(self, repository: Repository) -> int:
        """Tell the caller the repository's snapshots; nothing is recorded. Returns the exit code."""
        from capkeep.run.step import result_of
        from capkeep.run.verdict import failure_of

        request: Message = {"action": "snapshots", "options": {}}
        deadline = time.monotonic() + SHORT_SECONDS

        def pass_on(message: Message) -> None:
            if message.get("event") == "snapshot":
                self._caller.tell({**message, "repository": repository.name})

        try:
            with Visit(self._keeper(repository)) as visit:
                result = visit.ask(request, pass_on, self._caller, deadline)
        except StepError as error:
            result = result_of(error)
        failure = failure_of(result)
        if failure is not None:
            code = EXIT_CODES[failure]
            self._caller.tell({**result, "event": "end", "outcome": "failed", "exit_code": code})
            return code
        self._caller.tell({"event": "listed", "repository": repository.name})
        return EXIT_COMPLETE

    def notify_test(self, names: list[str]) -> int:
        """Tell each channel something harmless; returns the exit code."""
        code = EXIT_COMPLETE
        try:
            for name, ok, text in self._after.test(names):
                code = code if ok else EXIT_FAILED
                self._caller.tell({"event": "told", "channel": name, "ok": ok, "text": text})
        except OSError as error:
            raise StepError(
                Failure.REFUSED, f"nobody opens the door of the notifier: {error.strerror}",
                hint="was `capkeep apply` run after a change?",
            ) from error  # fmt: skip
        return code

    def _keeper(self, repository: Repository) -> Room:
        return self._plan.room(f"keeper-{repository.name}")

    def _keep(self, repository: Repository, request: Message, seconds: float) -> int:
        """A run of one step in the keeper's room."""
        return self._visit(self._keeper(repository), request, seconds)

    def _visit(
        self, room: Room, request: Message, seconds: float, turn: "Turn | None" = None
    ) -> int:
        action = str(request["action"])
        errand = Errand(action, room, request, seconds, turn=turn)

        def only() -> Errands:
            yield errand

        return self._track.run(None, action, only())

    def _backups(self, job: Job, action: str, made: list[Step] | None = None) -> Errands:
        """What a run of a job consists of, hooks apart.

        With `made` the keepers are not visited; the backups are noted there for later.
        """
        for name in job.dumps if action == "backup" else ():
            yield from dump_errands(self._plan, job, name)
        end = time.monotonic() + job.timeout_seconds  # of the whole run, not of each repository
        for name in job.repositories:
            room = self._plan.room(f"reader-{job.name}-{name}")
            options: Message = {"dry_run": action == "dry-run"}
            shelf = self._shelf(job, name) if action == "backup" and job.drill else None
            if shelf:
                options["turn"] = shelf.begin()
            request: Message = {"action": "backup", "options": options}
            left = max(0.0, end - time.monotonic())
            turn = self._turn(job)
            done = yield Errand(action, room, request, left, shelf=shelf, turn=turn)
            if made is not None:
                made += [done] if done.kind == action and done.repository == name else []
            elif action == "backup" and (then := self._after_backup(job, done)):
                yield then
            drill = job.drill and job.drill.after_backup and done.outcome is Outcome.COMPLETE
            if action == "backup" and drill:
                assert self._track.ledger is not None, "a step has ended"
                yield self._drill(job, name, self._track.ledger.recorder, "", whole=False)

    def _turn(self, job: Job) -> "Turn | None":
        """What a job of a target's waits for."""
        if not job.target:
            return None
        from capkeep.run.turns import Turn

        return Turn(self._plan, job)

    def _after_backup(self, job: Job, backup: Step) -> Errand | None:
        """What the keeper does after a backup; loaded when it is known that there is a keeper."""
        if self._plan.repository(backup.repository).target_keeps_password:
            return None
        from capkeep.run.upkeep import after_backup

        assert self._track.ledger is not None, "a step has ended"
        keeper = self._plan.room(f"keeper-{backup.repository}")
        return after_backup(
            job, keeper, self._track.ledger.recorder, backup, self._track.ledger.stored
        )

    def keep(self, job: Job, part: str, *, dry_run: bool = False) -> int:
        """Check, or apply the retention to, each of the job's repositories; returns the exit code."""
        if not (job.check if part == "check" else job.retention):
            return self._has_none(job, part, part)
        return self._track.run(
            job, f"{part}-dry-run" if dry_run else part, self._keeping(job, part, dry_run=dry_run)
        )

    def drill(self, job: Job, seed: str, *, whole: bool) -> int:
        """Restore a part of a snapshot from each of the job's repositories for a moment, and compare.

        The same `seed` chooses the same files of the same snapshot. Returns the exit code.
        """
        if job.drill is None:
            return self._has_none(job, "drills", "drill")
        return self._track.run(job, "drill", self._drilling(job, seed, whole=whole))

    def copy(self, job: Job, *, dry_run: bool = False) -> int:
        """Copy the job's snapshots into each of the repositories of its copies; returns the exit code."""
        if job.copies is None:
            return self._has_none(job, "copies", "copies")
        action = COPY_DRY_RUN if dry_run else COPY
        return self._track.run(job, action, self._copying(job, action))

    def _copying(self, job: Job, action: str) -> Errands:
        assert job.copies is not None, "asked before"
        from capkeep.run.copying import errand

        return self._of_each(
            job.copies.targets, lambda name, records: errand(self._plan, job, name, records, action)
        )

    def _is_to_be_copied(self, job: Job) -> bool:
        """Whether the run that has ended made what is to be copied, and was not stopped."""
        copies = job.copies
        if copies is None or not copies.after_backup:
            return False
        if any(step.failure is Failure.STOPPED for step in self._track.done):
            return False
        return any(
            step.kind == "backup" and step.repository == copies.origin
            and step.outcome is Outcome.COMPLETE
            for step in self._track.done
        )  # fmt: skip

    def copy_made(self) -> Iterator[int]:
        """Copy what the backups have made, each job in a run of its own; yields the exit codes.

        A first copy may take days. So nobody's backup waits for it, and one that is still under
        way when the next one would begin is left to go on.
        """
        while self.to_copy:
            job = self.to_copy.pop(0)
            busy = holder(self._plan.places.records, copies_of(job.name))
            if busy is None:
                yield self.copy(job)
                continue
            text = f"{job.name}: copies are still under way (run {busy.run}); the next ones bring this too"
            self._caller.tell({"event": "message", "text": text})

    def _has_none(self, job: Job, what: str, table: str) -> int:
        """Tell the caller that the job has no such table; returns the exit code."""
        error = RefusedError(
            f"job {job.name} has no {what}", hint=f"write [jobs.{job.name}.{table}]"
        )
        self._caller.tell(refusal(error, error.exit_code))
        return error.exit_code

    def _of_each(
        self, repositories: tuple[str, ...], make: "Callable[[str, Records], Errand]"
    ) -> Errands:
        """An errand for each repository.

        What is known of a repository is read when it is its turn: the record is open then.
        """
        from capkeep.records.store import Recorder

        for name in repositories:
            # A reader has no place for a copy here, which it needs when a writer was killed.
            with Recorder(self._plan.places.records) as records:
                found = make(name, records)
            yield found

    def _drilling(self, job: Job, seed: str, *, whole: bool) -> Errands:
        return self._of_each(
            job.repositories,
            lambda name, records: self._drill(job, name, records, seed, whole=whole),
        )

    def _shelf(self, job: Job, repository: str) -> "Shelf":
        """Where it is kept what readers have read of the job's snapshots there."""
        from capkeep.run.manifest import Shelf

        return Shelf(self._plan.places.records, job, repository)

    def _drill(
        self, job: Job, repository: str, records: "Records", seed: str, *, whole: bool
    ) -> Errand:
        from capkeep.run.drill import errand

        room = self._plan.room(f"prover-{repository}")
        reader = self._plan.room(f"reader-{job.name}-{repository}")
        shelf = self._shelf(job, repository)
        return errand(job, room, reader, records, shelf, seed, whole=whole)

    def _keeping(self, job: Job, part: str, *, dry_run: bool) -> Errands:
        from capkeep.run.upkeep import errand

        def made(name: str, records: "Records") -> Errand:
            keeper = self._plan.room(f"keeper-{name}")
            return errand(job, keeper, records, (part,), dry_run=dry_run)

        return self._of_each(job.repositories, made)
