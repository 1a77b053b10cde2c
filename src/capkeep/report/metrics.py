"""The record as Prometheus reads it (text exposition format 0.0.4); pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from capkeep.records.drills import Proven
from capkeep.records.model import FindingKind, JobStatus, Outcome, Run, Step
from capkeep.records.notices import Notice
from capkeep.records.upkeep import Upkeep
from capkeep.report.times import NextTimes


class Numbers(NamedTuple):
    """All that the metrics are made from."""

    jobs: tuple[tuple[str, int], ...]  # name, and max-age in seconds; 0: no promise
    statuses: Mapping[str, JobStatus]
    steps: Mapping[str, tuple[Step, ...]]  # by run
    found: Mapping[tuple[str, int], Mapping[FindingKind, int]]  # by run and step
    checks: tuple[Step, ...]  # the last of each repository
    channels: tuple[str, ...]
    undelivered: tuple[Notice, ...]
    now: float  # seconds since 1970
    version: str
    kept: tuple[Upkeep, ...] = ()  # repositories
    next_runs: tuple[NextTimes, ...] = ()
    proven: tuple[Proven, ...] = ()  # the last drills


class Sample(NamedTuple):
    """One value."""

    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """One metric with all its values."""

    name: str
    help: str
    samples: tuple[Sample, ...]


_BACKUP: Final = (
    ("files", "Files in the snapshot.", "total_files"),
    ("size_bytes", "Size of what the snapshot holds.", "bytes_processed"),
    ("added_bytes", "New data, before compression.", "bytes_added"),
    ("stored_bytes", "New data, as it was stored.", "bytes_stored"),
    ("new_files", "Files that were not in the snapshot before.", "files_new"),
    ("changed_files", "Files that have changed since the snapshot before.", "files_changed"),
)  # fmt: skip


def render(numbers: Numbers) -> str:
    """The whole file."""
    lines = []
    for family in _families(numbers):
        if family.samples:
            name = f"capkeep_{family.name}"
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} gauge"]
            lines += [f"{name}{_labels(s.labels)} {_value(s.value)}" for s in family.samples]
    return "\n".join(lines) + "\n"


def _families(numbers: Numbers) -> Iterator[Family]:
    yield Family("info", "The version of capkeep.", (Sample({"version": numbers.version}, 1),))
    yield Family("written_timestamp_seconds", "When this was written.", (Sample({}, numbers.now),))
    yield from _promises(numbers)
    yield from _runs(numbers)
    yield from _backups(numbers)
    yield from _checks(numbers)
    yield from _upkeep(numbers)
    yield Family(
        "next_run_timestamp_seconds", "When the next scheduled run is due, without its spread.",
        tuple(
            Sample({"backup_job": table.job, "action": table.kind}, times[0])
            for table, times in numbers.next_runs
            if times
        ),
    )  # fmt: skip
    yield from _drills(numbers)
    waiting = dict.fromkeys(numbers.channels, 0)
    for notice in numbers.undelivered:
        if notice.channel in waiting:
            waiting[notice.channel] += 1
    yield Family(
        "undelivered_notices", "Runs that a channel is still to be told of.",
        tuple(Sample({"channel": name}, count) for name, count in waiting.items()),
    )  # fmt: skip


def _promises(numbers: Numbers) -> Iterator[Family]:
    yield Family(
        "job_max_age_seconds", "How old the last complete backup may be; 0 for no promise.",
        tuple(Sample({"backup_job": name}, seconds) for name, seconds in numbers.jobs),
    )  # fmt: skip
    complete = [
        (name, status.last_complete)
        for name, _ in numbers.jobs
        if (status := numbers.statuses.get(name))
    ]
    yield Family(
        "job_last_complete_timestamp_seconds", "When the last complete backup began.",
        tuple(Sample({"backup_job": name}, run.started) for name, run in complete if run),
    )  # fmt: skip


def _latest(numbers: Numbers) -> list[Run]:
    """The last ended run of each action of each job of the plan, work without a job left out."""
    names = [name for name, _ in numbers.jobs if name in numbers.statuses]
    return [run for name in names for run in numbers.statuses[name].latest]


def _runs(numbers: Numbers) -> Iterator[Family]:
    runs = _latest(numbers)

    def family(name: str, text: str, values: Mapping[str, float | None]) -> Family:
        return Family(name, text, tuple(
            Sample({"backup_job": run.job, "action": run.action}, value)
            for run in runs
            if (value := values[run.id]) is not None
        ))  # fmt: skip

    yield family(
        "run_started_timestamp_seconds", "When the last run began.", {r.id: r.started for r in runs}
    )
    yield family(
        "run_duration_seconds", "How long the last run took.", {r.id: r.seconds for r in runs}
    )
    yield family(
        "run_exit_code", "What the last run ended with; 0 is complete, 3 partial.",
        {r.id: r.exit_code for r in runs},
    )  # fmt: skip
    yield Family("run_outcome", "1 for the outcome of the last run, 0 for the others.", tuple(
        Sample({"backup_job": run.job, "action": run.action, "outcome": outcome}, run.outcome is outcome)
        for run in runs
        for outcome in Outcome
    ))  # fmt: skip


def _backups(numbers: Numbers) -> Iterator[Family]:
    steps = [
        (run.job, step)
        for run in _latest(numbers)
        for step in numbers.steps.get(run.id, ())
        if step.kind == "backup" and run.action != "safety"
    ]
    for name, text, field in _BACKUP:
        yield Family(f"backup_{name}", f"{text} Of the last backup.", tuple(
            Sample({"backup_job": job, "repository": s.repository}, getattr(s.totals, field))
            for job, s in steps
        ))  # fmt: skip
    yield Family(
        "backup_unreadable_paths", "Paths that the last backup should have read and could not.",
        tuple(
            Sample(
                {"backup_job": job, "repository": s.repository},
                numbers.found.get((s.run, s.seq), {}).get(FindingKind.UNREADABLE, 0),
            )
            for job, s in steps
        ),
    )  # fmt: skip


def _checks(numbers: Numbers) -> Iterator[Family]:
    yield Family(
        "check_timestamp_seconds", "When the repository was last checked.",
        tuple(Sample({"repository": s.repository}, s.started) for s in numbers.checks),
    )  # fmt: skip
    yield Family(
        "check_success", "Whether the last check found the repository whole.",
        tuple(
            Sample({"repository": s.repository}, s.outcome is Outcome.COMPLETE)
            for s in numbers.checks
        ),
    )  # fmt: skip


def _upkeep(numbers: Numbers) -> Iterator[Family]:
    """What rotating checks have read, of repositories for which that is asked; and who is suspect."""
    yield Family(
        "repository_suspect", "1 if a check found errors and none since has taken them back.",
        tuple(Sample({"repository": one.repository}, one.suspect) for one in numbers.kept),
    )  # fmt: skip
    rotating = [(one, one.coverage) for one in numbers.kept if one.coverage]
    yield Family(
        "check_rotation_seconds", "Within how long all data is to be read.",
        tuple(Sample({"repository": one.repository}, one.within) for one, _ in rotating),
    )  # fmt: skip
    yield Family(
        "check_coverage_ratio", "Share of the data that was read within that time, 0 to 1.",
        tuple(Sample({"repository": one.repository}, read.share) for one, read in rotating),
    )  # fmt: skip
    yield Family(
        "check_oldest_read_timestamp_seconds",
        "When the data was read that was read longest ago; none while some never was.",
        tuple(
            Sample({"repository": one.repository}, read.oldest)
            for one, read in rotating
            if read.oldest is not None
        ),
    )  # fmt: skip


def _drills(numbers: Numbers) -> Iterator[Family]:
    def family(name: str, text: str, values: Iterable[float | None]) -> Family:
        pairs = zip(numbers.proven, values, strict=True)
        return Family(name, text, tuple(
            Sample({"backup_job": one.job, "repository": one.repository}, value)
            for one, value in pairs
            if value is not None
        ))  # fmt: skip

    found = numbers.proven
    yield family("drill_success", "Whether the last drill passed.", [p.passed for p in found])
    yield family(
        "drill_last_passed_timestamp_seconds", "When the last drill that passed began.",
        [p.last_passed for p in found],
    )  # fmt: skip
    yield family(
        "drill_restore_seconds", "How long the engine restored in the last drill.",
        [p.seconds for p in found],
    )  # fmt: skip
    yield family(
        "drill_restore_bytes", "Bytes that the last drill restored and found as in the snapshot.",
        [p.bytes for p in found],
    )  # fmt: skip
    yield family(
        "drill_files", "Files that drills have proven in the last 30 days.",
        [p.month.files for p in found],
    )  # fmt: skip


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _value(value: float) -> str:
    return f"{value:.15g}"
