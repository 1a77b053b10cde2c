"""The completeness gate: what a backup is worth, judged by everything but the engine's own word.

An exit code is no proof: restic ends with 0 when a source is missing (0.14, 0.18), when a sandbox
hides one, and when an unchanged file can no longer be read. So the gate looks at what was not
read, at the sources as they were found, at the canary and at how much there was the last time.
docs/explanation/completeness.md says the same for people.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from capkeep.engines.base import Cause, Summary, Unreadable
from capkeep.plan.model import Job
from capkeep.records.model import Outcome
from capkeep.values import Glob, parse_glob

PARTIAL_CODES: Final = frozenset((0, 3))  # an engine that ended by itself and made a snapshot
NAMED: Final = 3  # paths named in a reason

# Not a broken promise: what is gone by the time it is its turn does not exist any more, and of what
# changes while it is read every version is as true as any other.
FORGIVEN: Final = frozenset((Cause.VANISHED, Cause.CHANGED))

_SMALL_FILES: Final = 20  # a source with fewer files than this may lose any number of them
_SMALL_BYTES: Final = 1 << 20


class SourceFact(NamedTuple):
    """One source of the job, as it was found before the engine started."""

    path: str
    exists: bool
    kind: str = "dir"  # "dir", "file", "link", "other"; "" when it does not exist
    empty: bool = False  # a directory with nothing in it
    mount_point: bool = False


class Before(NamedTuple):
    """What the last complete backup of the job to this repository held."""

    files: int
    bytes: int


class Evidence(NamedTuple):
    """All that is known of a backup step when it has ended."""

    exit_code: int | None  # None: the engine did not end by itself
    sources: tuple[SourceFact, ...]
    unreadable: tuple[Unreadable, ...]
    summary: Summary | None
    canary_seen: bool
    unlisted: int = 0  # further paths that were not read and are not excused, counted alone
    before: Before | None = None
    dry_run: bool = False


class Verdict(NamedTuple):
    """What a backup is worth, and why."""

    outcome: Outcome
    reasons: tuple[str, ...]  # each a sentence; empty when complete
    unreadable: tuple[Unreadable, ...] = ()  # what makes it partial
    missed: tuple[Unreadable, ...] = ()  # not read either, as the job declares
    fleeting: tuple[Unreadable, ...] = ()  # vanished or changed while it was read


def judge(job: Job, evidence: Evidence) -> Verdict:
    """Complete only if nothing at all speaks against it."""
    failed = tuple(_failures(evidence))
    unreadable, missed, fleeting = sort_unreadable(job, evidence.unreadable)
    doubts = (
        *_sources(job, evidence.sources),
        *_unread(unreadable, evidence),
        *_unexplained(evidence),
        *_canary(job, evidence),
        *_shrunk(job, evidence),
    )
    outcome = Outcome.FAILED if failed else Outcome.PARTIAL if doubts else Outcome.COMPLETE
    return Verdict(outcome, (*failed, *doubts), unreadable, missed, fleeting)


def sort_unreadable(
    job: Job, found: Sequence[Unreadable]
) -> tuple[tuple[Unreadable, ...], tuple[Unreadable, ...], tuple[Unreadable, ...]]:
    """What counts, what the job may miss, and what was gone or changing."""
    patterns = tuple(map(parse_glob, job.may_miss))
    counts: list[Unreadable] = []
    missed: list[Unreadable] = []
    fleeting: list[Unreadable] = []
    for item in found:
        kept = missed if excused(patterns, item) else fleeting if forgiven(job, item) else counts
        kept.append(item)
    return tuple(counts), tuple(missed), tuple(fleeting)


def excused(may_miss: Sequence[Glob], item: Unreadable) -> bool:
    """Whether the job declares that this path need not be read."""
    return any(pattern.matches(item.path) for pattern in may_miss)


def forgiven(job: Job, item: Unreadable) -> bool:
    """Whether it vanished or changed; a source itself is never forgiven for that."""
    return item.cause in FORGIVEN and item.path not in job.include


def _failures(evidence: Evidence) -> Iterator[str]:
    """Why there is no snapshot to speak of."""
    code, summary = evidence.exit_code, evidence.summary
    if code is None:
        yield "the engine did not end by itself"
    elif code not in PARTIAL_CODES:
        yield f"the engine ended with exit code {code}"
    elif summary is None:
        yield f"the engine ended with exit code {code} but without a summary"
    elif not summary.snapshot and not evidence.dry_run:
        yield "the engine made no snapshot"


def _sources(job: Job, sources: Sequence[SourceFact]) -> Iterator[str]:
    patterns = tuple(map(parse_glob, job.may_miss))
    named = {s.path for s in sources}
    for path in job.include:
        if path not in named:
            yield f"nobody looked whether {path} is there"
    for source in sources:
        path = source.path
        if any(p.matches(path) for p in patterns):
            continue
        if not source.exists:
            yield f"{path} does not exist"
        elif source.kind == "link":
            yield f"{path} is a symbolic link: it is kept, and not what it points to"
        elif source.empty and path not in job.allow_empty:
            yield (
                f"the filesystem mounted at {path} is empty"
                if source.mount_point
                else f"{path} is empty and nothing is mounted there"
            )


def _unread(unreadable: Sequence[Unreadable], evidence: Evidence) -> Iterator[str]:
    absent = {s.path for s in evidence.sources if not s.exists}  # has a sentence of its own
    named = [u for u in unreadable if u.path not in absent]
    count = len(named) + evidence.unlisted
    if not count:
        return
    shown = [f"{u.path} ({u.cause})" for u in named[:NAMED]]
    if count > len(shown):
        shown.append(f"{count - len(shown)} more")
    what = "1 path was not read" if count == 1 else f"{count} paths were not read"
    yield f"{what}: {', '.join(shown)}"


def _unexplained(evidence: Evidence) -> Iterator[str]:
    """The engine says that something is missing, and not what."""
    if evidence.exit_code == 3 and not evidence.unreadable and not evidence.unlisted:
        yield "the engine says that something could not be read (exit code 3), but not what"


def _canary(job: Job, evidence: Evidence) -> Iterator[str]:
    if job.canary and not evidence.canary_seen and evidence.summary is not None:
        yield f"{job.canary}, which every snapshot must hold, is not in it"


def _shrunk(job: Job, evidence: Evidence) -> Iterator[str]:
    now, before = evidence.summary, evidence.before
    if now is None or before is None:
        return
    if before.files >= _SMALL_FILES and _lost(before.files, now.total_files, job):
        yield _shrunk_sentence("files", f"{before.files:,}", f"{now.total_files:,}", job)
    counted = now.bytes_processed or not evidence.dry_run  # an engine may not read for a dry run
    if counted and before.bytes >= _SMALL_BYTES and _lost(before.bytes, now.bytes_processed, job):
        old, new = _mib(before.bytes), _mib(now.bytes_processed)
        yield _shrunk_sentence("MiB", old, new, job)


def _lost(before: int, now: int, job: Job) -> bool:
    return (before - now) * 100 > before * job.max_shrink_percent


def _shrunk_sentence(unit: str, before: str, now: str, job: Job) -> str:
    return (
        f"the sources shrank from {before} to {now} {unit}, by more than"
        f" {job.max_shrink_percent}% (if that is meant: capkeep run --accept-shrink)"
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f}"
