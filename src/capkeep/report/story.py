"""What happened in a run, put together from the runner's messages or from the record.

Both ways lead to the same values, so that `capkeep run` and `capkeep log` show the same summary.
"""

import json
from typing import Final, NamedTuple

from capkeep.errors import Failure
from capkeep.records.model import Finding, FindingKind, Outcome, Proof, Run, Step, Totals
from capkeep.records.queries import Records
from capkeep.rooms.protocol import Message

FINDINGS_SHOWN: Final = 20  # of a kind; the rest is counted
_KINDS: Final = frozenset(FindingKind)


class StepStory(NamedTuple):
    """One step with what was proven and found in it."""

    step: Step
    proofs: tuple[Proof, ...] = ()
    findings: tuple[Finding, ...] = ()  # the first of each kind
    counts: tuple[tuple[FindingKind, int], ...] = ()
    hint: str = ""


class Story(NamedTuple):
    """One run with its steps."""

    run: Run
    steps: tuple[StepStory, ...] = ()
    proofs: tuple[Proof, ...] = ()  # the runner's own
    hint: str = ""


class Listener:
    """Collects a run's messages as they come, in bounded memory."""

    def __init__(self, message: Message) -> None:
        """`message` is the "run" event."""
        self._run = Run(
            id=text_of(message, "run"), job=text_of(message, "job"),
            started=number_of(message, "since"), action=text_of(message, "action") or "backup",
        )  # fmt: skip
        self._steps: list[StepStory] = []
        self._runner: list[Proof] = []
        self._in_step = False
        self._begin()

    def _begin(self) -> None:
        self._proofs: list[Proof] = []
        self._findings: list[Finding] = []
        self.counts: dict[FindingKind, int] = {}

    def take(self, message: Message) -> None:
        """One message of the run."""
        event = text_of(message, "event")
        if event == "step":
            self._in_step = True
            self._begin()
        elif event == "proof":
            (self._proofs if self._in_step else self._runner).append(_proof(message))
        elif event in _KINDS:
            self._find(FindingKind(event), message)
        elif event == "step-end":
            self._steps.append(StepStory(
                _step(message), tuple(self._proofs), tuple(self._findings),
                tuple(self.counts.items()), text_of(message, "hint"),
            ))  # fmt: skip
            self._in_step = message.get("more") is True
            self._begin()

    def _find(self, kind: FindingKind, message: Message) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= FINDINGS_SHOWN:
            detail = text_of(message, "detail") or text_of(message, "text")
            path, cause = text_of(message, "path"), text_of(message, "cause")
            self._findings.append(Finding(kind, path, cause, detail))

    def end(self, message: Message) -> Story:
        """The whole story, with the "end" event."""
        outcome, reasons = text_of(message, "outcome"), message.get("reasons")
        run = self._run._replace(
            outcome=Outcome(outcome) if outcome else Outcome.FAILED,
            failure=_failure(message), exit_code=_integer(message, "exit_code"),
            text=text_of(message, "text"), seconds=number_of(message, "seconds"),
            reasons=tuple(map(str, reasons)) if isinstance(reasons, list) else (),
        )  # fmt: skip
        return Story(run, tuple(self._steps), tuple(self._runner), text_of(message, "hint"))


def from_record(records: Records, run: Run) -> Story:
    """The story of a recorded run."""
    return Story(run, tuple(_recorded(records, step) for step in records.steps(run.id)))


def _recorded(records: Records, step: Step) -> StepStory:
    shown: dict[FindingKind, list[Finding]] = {}
    for finding in records.findings(step):
        kept = shown.setdefault(finding.kind, [])
        if len(kept) < FINDINGS_SHOWN:
            kept.append(finding)
    return StepStory(
        step, records.proofs(step), tuple(f for kept in shown.values() for f in kept),
        tuple(records.finding_counts(step).items()),
    )  # fmt: skip


def _step(message: Message) -> Step:
    totals = message.get("totals")
    counts = totals if isinstance(totals, dict) else {}
    outcome = text_of(message, "outcome")
    return Step(
        run=text_of(message, "run"), seq=_integer(message, "seq") or 0,
        kind=text_of(message, "kind"), repository=text_of(message, "repository"),
        started=number_of(message, "started"), seconds=number_of(message, "seconds"),
        outcome=Outcome(outcome) if outcome else Outcome.FAILED, failure=_failure(message),
        exit_code=_integer(message, "exit_code"), engine=text_of(message, "engine"),
        snapshot=text_of(message, "snapshot"), text=text_of(message, "text"),
        engine_words=text_of(message, "engine_words"),
        engine_network=message.get("engine_network") is True,
        totals=Totals(*(_integer(counts, name) or 0 for name in Totals._fields)),
    )  # fmt: skip


def _proof(message: Message) -> Proof:
    weaker = message.get("weaker")
    return Proof(
        room=text_of(message, "room"), process=text_of(message, "process"),
        facts=json.dumps(message.get("facts")),
        weaker=tuple(map(str, weaker)) if isinstance(weaker, list) else (),
    )  # fmt: skip


def _failure(message: Message) -> Failure | None:
    name = text_of(message, "failure")
    return Failure(name) if name else None


def text_of(message: Message, key: str) -> str:
    """A message's text; empty if there is none."""
    value = message.get(key)
    return value if isinstance(value, str) else ""


def number_of(message: Message, key: str) -> float:
    """A message's number, never negative; 0 if there is none."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return max(0.0, float(value)) if abs(value) < 1e18 else 0.0


def _integer(message: Message, key: str) -> int | None:
    value = message.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
