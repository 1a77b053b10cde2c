"""What follows a backup: comparison, check and retention, as steps of one visit to the keeper."""

import time
from typing import Final

from capkeep.engines.retention import SHORT
from capkeep.errors import Failure, StepError
from capkeep.plan.model import Check, Job, Room
from capkeep.records.model import Outcome, Step
from capkeep.records.queries import Records
from capkeep.records.rotation import next_part
from capkeep.records.upkeep import LOOK_BACK, is_suspect, reads_of
from capkeep.rooms.protocol import Message
from capkeep.run import verdict
from capkeep.run.ask import Visit
from capkeep.run.attempts import LockPatience
from capkeep.run.errand import Errand
from capkeep.run.heard import Heard
from capkeep.run.step import Ledger, asked_read_data, result_of, write_down

UPKEEP_SECONDS: Final = 7 * 24 * 3600
BUSY_SECONDS: Final = 600  # that a busy keeper is waited for at least
QUICK_SECONDS: Final = 300  # a check that took less goes on beside what removes data
RECORDED: Final = 200  # latest snapshots that must still be listed: more than between two visits
KNOWN_SNAPSHOTS: Final = (
    10_000  # complete ones that the keeper is told of: less than a message holds
)


def after_backup(
    job: Job, room: Room, records: Records, backup: Step, stored: frozenset[str]
) -> Errand | None:
    """What is to be done in the keeper's room after a backup; None if nothing is.

    `stored` are names of snapshots that a vault has taken in.

    A failed backup leaves nothing to look at. After a partial one nothing is removed: whatever it
    missed may be why somebody will need the older ones.
    """
    if backup.outcome not in (Outcome.COMPLETE, Outcome.PARTIAL) or not backup.snapshot:
        return None
    parts = []
    pair = records.snapshots_of(job.name, backup.repository, 2)
    if len(pair) == 2 and _has_changed(backup):
        parts.append("diff")
    if job.check and job.check.after_backup:
        parts.append("check")
    if job.retention and job.retention.after_backup and backup.outcome is Outcome.COMPLETE:
        parts.append("retention")
    if not parts:
        return None
    # An engine may tell the beginning of a name alone, or somebody else's.
    names = [name for name in stored if name.startswith(backup.snapshot)]
    made: Message = {}
    if len(backup.snapshot) >= SHORT and len(names) == 1:
        made = {"made": names[0], "made_at": int(backup.started)}
    return errand(job, room, records, tuple(parts), pair, made=made)


def _has_changed(backup: Step) -> bool:
    """Whether there may be anything to compare: what is removed changes its directory's mtime."""
    found = backup.totals
    new, changed = found.files_new + found.dirs_new, found.files_changed + found.dirs_changed
    return bool(new or changed or not found.dirs_unmodified)


def errand(
    job: Job,
    room: Room,
    records: Records,
    parts: tuple[str, ...],
    pair: tuple[str, ...] = (),
    *,
    made: Message | None = None,
    dry_run: bool = False,
) -> Errand:
    """A visit to the keeper of one of the job's repositories; `pair`: the newer snapshot first.

    `made`: name and time of the snapshot that was just made, which no list of the keeper's has yet.
    """
    options: Message = {"job": job.name, "parts": list(parts), "dry_run": dry_run}
    options["recorded"] = list(records.snapshots_of(job.name, room.repository, RECORDED))
    if "diff" in parts:
        options |= {"first": pair[1], "second": pair[0]}
    if "check" in parts and job.check:
        options["read_data"] = read_data(job.check, records, room.repository, time.time())
    if "retention" in parts:
        known = records.complete_snapshots(job.name, room.repository, KNOWN_SNAPSHOTS)
        options |= {"complete": list(known), "suspect": is_suspect(records, room.repository)}
        last = records.last_verdict(room.repository)
        options["quick"] = last is None or (last.seconds or 0.0) < QUICK_SECONDS
        options |= made or {}
    request: Message = {"action": "upkeep", "options": options}
    return Errand("upkeep", room, request, UPKEEP_SECONDS, parts)


def read_data(check: Check, records: Records, repository: str, now: float) -> str:
    """How much data the next check of the repository reads."""
    if not check.rotate_seconds:
        return check.read_data
    part, parts = next_part(
        reads_of(records.checks_read(repository, now - LOOK_BACK * check.rotate_seconds)),
        check.rotate_seconds, now,
    )  # fmt: skip
    return f"{part}/{parts}" if parts > 1 else "all"


def carry_out(ledger: Ledger, errand: Errand, lock_wait: float) -> list[Step]:
    """Make the visit; every part becomes a step, in the order of the errand. None raises.

    A keeper that works for another job is waited for: the backup is made, and no reason to fail.
    """
    visit = _Parts(ledger, errand)
    heard = Heard(None, errand.room, ledger.tell)
    heard.warn_of_missing("runner", ledger.proven)

    def take(message: Message) -> None:
        if message.get("event") == "part":
            visit.end(message)
        else:
            heard.take(message)

    deadline = time.monotonic() + errand.seconds
    patience = LockPatience(max(BUSY_SECONDS, lock_wait))
    while True:
        try:
            with Visit(errand.room) as connection:
                result = connection.ask(errand.request, take, ledger.caller, deadline)
        except StepError as error:
            result = result_of(error)
        busy = verdict.failure_of(result) is Failure.LOCKED and not visit.begun
        if not busy or not patience.wait(str(result.get("text")), ledger.tell, ledger.caller):
            return visit.finish(result, heard)


class _Parts:
    """The steps of a visit."""

    def __init__(self, ledger: Ledger, errand: Errand) -> None:
        self._ledger = ledger
        self._room = errand.room
        self._open: dict[str, Step] = {}
        for kind in errand.parts:
            self._open[kind] = ledger.recorder.begin_step(ledger.run, kind, errand.room.repository)
        self._done: dict[str, Message] = {}
        self._read_data = asked_read_data(errand.request)
        ledger.tell({
            "event": "step", "kind": ", ".join(errand.parts), "repository": errand.room.repository,
            "room": errand.room.name,
        })  # fmt: skip

    @property
    def begun(self) -> bool:
        """Whether any part has ended."""
        return bool(self._done)

    def end(self, part: Message) -> None:
        """A part has ended: kept at once, whatever becomes of the others. Unknown ones are not heard."""
        kind = str(part.get("kind"))
        if kind in self._open and kind not in self._done:
            self._done[kind] = part
            facts = part.get("facts")
            if kind == "check":  # also of one that found errors
                facts = {"read_data": self._read_data}
            if isinstance(facts, dict) and facts:
                self._ledger.recorder.add_detail(self._open[kind], facts)
            self._ledger.tell({**part, "room": self._room.name})

    def finish(self, result: Message, heard: Heard) -> list[Step]:
        """All ends; a part that said nothing has failed as the whole visit has."""
        failed = result
        if verdict.failure_of(result) is None:
            text = f"{self._room.name} did not say what became of it"
            failed = result_of(StepError(Failure.INTERRUPTED, text))
        steps = []
        for number, (kind, step) in enumerate(self._open.items(), start=1):
            said = {"engine": result.get("engine"), **self._done.get(kind, failed)}
            more = number < len(self._open)
            steps.append(
                write_down(self._ledger, step, heard, said, self._judge(kind, said), more=more)
            )
            heard = Heard(None, self._room, self._ledger.tell)  # proofs and findings are kept once
        return steps

    def _judge(self, kind: str, said: Message) -> verdict.StepVerdict:
        """By its word; a retention that was asked for by name and held back is refused."""
        found = verdict.plain(said)
        facts = said.get("facts")
        held = isinstance(facts, dict) and bool(facts.get("held"))
        if kind == "retention" and held and self._ledger.run.action == "retention":
            return verdict.StepVerdict(Outcome.FAILED, Failure.REFUSED, found.text, (found.text,))
        return found
