"""What a step's result means: the gate judges backups; other steps succeed or fail by their word."""

from typing import Final, NamedTuple

from capkeep.engines.base import Summary
from capkeep.errors import Failure
from capkeep.plan.model import Job
from capkeep.records.model import Outcome, Totals
from capkeep.rooms.protocol import Message
from capkeep.run.gate import Before, Evidence, SourceFact, judge
from capkeep.run.heard import Heard

BESIDE: Final = ("diff",)  # what says nothing of what the run is worth: a comparison that failed
BACKUPS: Final = ("backup", "dry-run")  # what the gate judges


class StepVerdict(NamedTuple):
    """How a step ended, for the record and for people."""

    outcome: Outcome
    failure: Failure | None
    text: str
    reasons: tuple[str, ...]


def plain(result: Message) -> StepVerdict:
    """A step that either did its work or did not."""
    failure, text = failure_of(result), str(result.get("text") or "")
    if failure is None:
        return StepVerdict(Outcome.COMPLETE, None, text, ())
    return StepVerdict(Outcome.FAILED, failure, text, (text,))


def backup(
    job: Job, heard: Heard, result: Message, before: Totals | None, *, dry_run: bool
) -> StepVerdict:
    """A backup: complete only if the gate finds nothing that speaks against it."""
    failure = failure_of(result)
    if failure is not None:
        return plain(result)
    code = result.get("exit_code")
    evidence = Evidence(
        exit_code=code if isinstance(code, int) else None,
        sources=tuple(_source(m) for m in heard.sources),
        unreadable=tuple(heard.unreadable),
        summary=_summary(result),
        canary_seen=result.get("canary_seen") is True,
        unlisted=heard.unlisted,
        before=Before(before.total_files, before.bytes_processed) if before else None,
        dry_run=dry_run,
    )
    verdict = judge(job, evidence)
    failed = Failure.ENGINE if verdict.outcome is Outcome.FAILED else None
    text = verdict.reasons[0] if verdict.reasons else ""
    return StepVerdict(verdict.outcome, failed, text, verdict.reasons)


def _source(message: Message) -> SourceFact:
    return SourceFact(
        path=str(message.get("path")),
        exists=message.get("exists") is True,
        kind=str(message.get("kind")),
        empty=message.get("empty") is True,
        mount_point=message.get("mount_point") is True,
    )


def _summary(result: Message) -> Summary | None:
    summary = result.get("summary")
    if not isinstance(summary, dict):
        return None
    return Summary(**{k: v for k, v in summary.items() if k in Summary._fields})


def failure_of(result: Message) -> Failure | None:
    """The failure that a room names; one that has no such name counts as the engine's."""
    if result.get("failure") is None:
        return None
    named = str(result["failure"])
    return Failure(named) if named in list(Failure) else Failure.ENGINE
