"""One step in one room: ask, listen, judge, record."""

import time

from capkeep.errors import StepError
from capkeep.plan.model import Job, Places, Room
from capkeep.records.logs import LogWriter
from capkeep.records.model import Proof, Run, Step, Totals
from capkeep.records.store import Recorder
from capkeep.rooms.protocol import Message
from capkeep.run import verdict
from capkeep.run.ask import Visit
from capkeep.run.caller import Caller
from capkeep.run.heard import Heard, proof_of


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
        self.proof: Proof | None = None  # the runner's own, kept with every step

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


def carry_out(
    ledger: Ledger,
    room: Room,
    job: Job | None,
    visit: Visit | None,
    request: Message,
    seconds: float,
) -> Step:
    """Do one step and write it down; every failure becomes the step's outcome, none is raised."""
    step = ledger.recorder.begin_step(ledger.run, ledger.run.action, room.repository)
    ledger.tell({"event": "step", "kind": step.kind, "repository": room.repository,
                 "room": room.name})  # fmt: skip
    heard = Heard(job, room, ledger.tell)
    try:
        with visit or Visit(room) as connection:
            result = connection.ask(request, heard.take, ledger.caller, time.monotonic() + seconds)
    except StepError as error:
        result = result_of(error)
    return _write_down(ledger, step, heard, result, _judge(ledger, job, room, heard, result))


def _write_down(
    ledger: Ledger, step: Step, heard: Heard, result: Message, found: verdict.StepVerdict
) -> Step:
    """Record how a step ended, with all that was proven and found in it, and tell the caller."""
    ledger.reasons = (*ledger.reasons, *found.reasons)
    ended = step._replace(
        outcome=found.outcome, failure=found.failure, text=found.text,
        exit_code=_maybe_int(result.get("exit_code")), engine=str(result.get("engine") or ""),
        snapshot=str(result.get("snapshot") or ""), totals=totals_of(result),
        engine_words=str(result.get("engine_words") or ""), engine_network=heard.room.grant.network,
    )  # fmt: skip
    for proof in (ledger.proof, *heard.proofs.values()):
        if proof is not None:
            ledger.recorder.add_proof(step, proof)
    ledger.recorder.add_findings(step, heard.findings, heard.counts)
    done = ledger.recorder.end_step(ended)
    ledger.tell({"event": "step-end", **done._asdict(), "totals": done.totals._asdict(),
                 "reasons": list(found.reasons), "hint": str(result.get("hint") or ""),
                 "stored": result.get("stored")})  # fmt: skip
    return done


def _judge(
    ledger: Ledger, job: Job | None, room: Room, heard: Heard, result: Message
) -> verdict.StepVerdict:
    if job is None:
        return verdict.plain(result)
    before = ledger.recorder.previous_complete_totals(job.name, room.repository)
    dry_run = ledger.run.action == "dry-run"
    return verdict.backup(job, heard, result, before, dry_run=dry_run)


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
