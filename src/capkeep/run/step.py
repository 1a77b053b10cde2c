"""One step in one room: ask, listen, judge, record."""

import time
from contextlib import AbstractContextManager, nullcontext

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Job, Places, RoomKind
from capkeep.records.logs import LogWriter
from capkeep.records.model import Outcome, Proof, Run, Step, Totals
from capkeep.records.store import Recorder
from capkeep.rooms.protocol import Message
from capkeep.run import verdict
from capkeep.run.ask import Visit
from capkeep.run.caller import Caller
from capkeep.run.errand import Errand
from capkeep.run.heard import Heard, proof_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.run.attempts import Retries
    from capkeep.run.manifest import Shelf


class Ledger:
    """Where a run is written down: the record, the log, and the caller's screen. A context."""

    def __init__(self, places: Places, run: Run, caller: Caller) -> None:
        self.recorder = Recorder(places.records)
        try:
            self._log = LogWriter(places.log, run.id)
        except BaseException:
            self.recorder.close()
            raise
        self.run = run
        self.caller = caller
        self.reasons: tuple[str, ...] = ()
        self.stored: frozenset[str] = frozenset()  # names of snapshots, by the vaults' word
        self.proof: Proof | None = None  # the runner's own, kept with every step
        self.proven: Message = {}  # the same, as it was told

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self.recorder.close()

    def tell(self, message: Message) -> None:
        """Show an event to the caller and keep it in the log."""
        self.caller.tell(message)
        if message.get("event") != "progress":
            self._log.write(message)

    def begin(self, proof: Message) -> None:
        """Note the run's begin, and the runner's own proof."""
        self.recorder.begin_run(self.run)
        self.tell({"event": "run", "run": self.run.id, "job": self.run.job,
                   "action": self.run.action, "since": self.run.started})  # fmt: skip
        self.tell(proof)
        self.proof = proof_of("runner", proof)
        self.proven = proof

    def end(self, run: Run) -> int:
        """Note the run's end; returns its exit code."""
        if self._log.error:
            self.caller.tell(
                {"event": "warning", "text": f"the log is not whole: {self._log.error}"}
            )
        done = self.recorder.end_run(run)
        self.tell({"event": "end", "run": done.id, "job": done.job, "action": done.action,
                   "outcome": done.outcome, "failure": done.failure, "exit_code": done.exit_code,
                   "text": done.text, "reasons": list(done.reasons),
                   "seconds": done.seconds})  # fmt: skip
        assert done.exit_code is not None
        return done.exit_code


def carry_out_patiently(
    ledger: Ledger, job: Job | None, errand: Errand, visit: Visit | None
) -> Step:
    """Do one step, as often as its job allows; the last try is what it is worth."""
    if job is None or not job.resources.retries:
        return carry_out(ledger, job, errand, visit)
    from capkeep.run.attempts import Retries, pause

    retries = Retries(job.resources, errand.seconds)
    while True:
        reasons = ledger.reasons
        step = carry_out(
            ledger, job, errand._replace(seconds=retries.seconds_left()), visit, retries
        )
        wait = retries.next_pause(step.failure)
        if wait is None or not pause(ledger.caller, wait):
            return step
        ledger.reasons = reasons  # of a try that was not the last
        retries.tries += 1
        visit = None


def carry_out(
    ledger: Ledger,
    job: Job | None,
    errand: Errand,
    visit: Visit | None,
    retries: "Retries | None" = None,
) -> Step:
    """Do one step and write it down; every failure becomes the step's outcome, none is raised.

    `visit` is a connection to its room that is there already.
    """
    room = errand.room
    step = ledger.recorder.begin_step(
        ledger.run, errand.kind, room.repository or room.dump or room.hook
    )
    ledger.tell({"event": "step", "kind": step.kind, "repository": step.repository,
                 "room": room.name})  # fmt: skip
    kept = job if step.kind in verdict.BACKUPS else None
    before = ledger.recorder.previous_complete_totals(kept.name, step.repository) if kept else None
    heard, result = _ask(ledger, job, _expecting(errand, before), visit)
    if errand.warn and (text := errand.warn(ledger.recorder)):
        heard.take({"event": "warning", "text": text})
    if kept:
        dry_run = step.kind == "dry-run"
        found = verdict.backup(kept, heard, result, before, dry_run=dry_run)
    else:
        found = verdict.plain(result)
    if errand.kind == "check":
        ledger.recorder.add_detail(step, {"read_data": asked_read_data(errand.request)})
    if errand.shelf and found.outcome is Outcome.COMPLETE:
        _keep_manifest(ledger, errand.shelf, step, heard, result)
    facts = result.get("facts")
    if errand.kind == "copy" and isinstance(facts, dict):
        ledger.recorder.add_detail(step, facts)
    if errand.optional and found.outcome is Outcome.FAILED:
        found = found._replace(reasons=())
        heard.take({"event": "warning", "text": f"optional, and failed: {found.text}"})
    wait = retries.next_pause(found.failure) if retries else None
    if wait is not None:
        found = found._replace(text=f"{found.text}; to be tried again in {wait:g} s")
    return write_down(ledger, step, heard, result, found)


def _keep_manifest(
    ledger: Ledger, shelf: "Shelf", step: Step, heard: Heard, result: Message
) -> None:
    """What the reader has read beside the engine; without it the backup is worth the same."""
    if heard.manifest is None:
        return
    from capkeep.run.manifest import parse

    try:
        manifest = parse(heard.manifest, shelf.job)
        shelf.keep(manifest, str(result.get("snapshot") or ""), step.started)
    except (OSError, ValueError) as error:
        text = f"what drills were to compare with this snapshot is not kept: {error}"
        heard.take({"event": "warning", "text": text})
        return
    ledger.recorder.add_detail(step, manifest.facts())


def _ask(
    ledger: Ledger, job: Job | None, errand: Errand, visit: Visit | None
) -> tuple[Heard, Message]:
    """Ask the room, and again while a repository is locked and its job has patience."""
    room = errand.room
    deadline = time.monotonic() + errand.seconds
    patience = None
    while True:
        heard = Heard(job, room, ledger.tell)
        heard.warn_of_missing("runner", ledger.proven)
        try:
            with _turn(errand, ledger, deadline), visit or Visit(room) as connection:
                if errand.feeder:
                    from capkeep.run.stream import fed

                    result = fed(errand, connection, heard, ledger, deadline)
                else:
                    result = connection.ask(
                        _timed(errand, deadline), heard.take, ledger.caller, deadline
                    )
        except StepError as error:
            result = result_of(error)
        if not job or verdict.failure_of(result) is not Failure.LOCKED:
            break
        # Nothing has been done: what is locked is found so before anything is read.
        if patience is None:
            from capkeep.run.attempts import LockPatience

            patience = LockPatience(min(job.resources.lock_wait_seconds, errand.seconds))
        if not patience.wait(str(result.get("text")), ledger.tell, ledger.caller):
            break
        visit = None
    if errand.on_result:
        errand.on_result(result)
    return heard, result


def _turn(errand: Errand, ledger: Ledger, deadline: float) -> AbstractContextManager[None]:
    return errand.turn.taken(ledger, deadline) if errand.turn else nullcontext()


def _timed(errand: Errand, deadline: float) -> Message:
    """What is asked; a reader that sums files for drills is told how many seconds all may still take."""
    if errand.shelf is None:
        return errand.request
    return _with_options(errand.request, seconds=int(deadline - time.monotonic()))


def _with_options(request: Message, **more: object) -> Message:
    """The request with further options, if it is one that has any."""
    options = request.get("options")
    return {**request, "options": {**options, **more}} if isinstance(options, dict) else request


def write_down(
    ledger: Ledger,
    step: Step,
    heard: Heard,
    result: Message,
    found: verdict.StepVerdict,
    *,
    more: bool = False,
) -> Step:
    """Record how a step ended, with all that was proven and found in it, and tell the caller.

    `more` of the same visit's steps are still to come.
    """
    if step.kind not in verdict.BESIDE:
        ledger.reasons = (*ledger.reasons, *found.reasons)
    names = result.get("snapshots_stored")
    ledger.stored |= frozenset(map(str, names if isinstance(names, list) else ()))
    ended = step._replace(
        outcome=found.outcome, failure=found.failure, text=found.text,
        exit_code=_maybe_int(result.get("exit_code")), engine=str(result.get("engine") or ""),
        snapshot=str(result.get("snapshot") or ""), totals=totals_of(result),
        engine_words=str(result.get("engine_words") or ""),
        engine_network=heard.room.grant.network and heard.room.kind is not RoomKind.PULLER,
    )  # fmt: skip
    for proof in (ledger.proof, *heard.proofs.values()):
        if proof is not None:
            ledger.recorder.add_proof(step, proof)
    ledger.recorder.add_findings(step, heard.findings, heard.counts)
    done = ledger.recorder.end_step(ended)
    ledger.tell({"event": "step-end", **done._asdict(), "totals": done.totals._asdict(),
                 "reasons": list(found.reasons), "hint": str(result.get("hint") or ""),
                 "stored": result.get("stored"), "more": more})  # fmt: skip
    return done


def asked_read_data(request: Message) -> str:
    """How much of the data a check is asked to read."""
    options = request.get("options")
    return str(options.get("read_data") or "") if isinstance(options, dict) else ""


def _expecting(errand: Errand, before: Totals | None) -> Errand:
    """The errand, with about how much there will be: a reader needs not count that ahead then."""
    if before is None:
        return errand
    request = _with_options(errand.request, files=before.total_files, bytes=before.bytes_processed)
    return errand._replace(request=request)


def result_of(error: StepError) -> Message:
    """A step's error in the form of a room's result."""
    return {"failure": error.failure, "text": str(error), "hint": error.hint,
            "engine_words": error.engine_words, "exit_code": None, "summary": {}}  # fmt: skip


def totals_of(result: Message) -> Totals:
    """The engine's counts; what it does not say, or says oddly, is zero."""
    summary = result.get("summary")
    if not isinstance(summary, dict):
        return Totals()
    counts = {k: summary.get(k) for k in Totals._fields}
    # Older engines do not count what they store; the vault does.
    counts["bytes_stored"] = counts["bytes_stored"] or result.get("stored")
    return Totals(**{k: v for k, v in counts.items() if isinstance(v, int) and v >= 0})


def _maybe_int(value: object) -> int | None:
    return value if isinstance(value, int) else None
