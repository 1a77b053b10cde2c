"""What drills have shown: which snapshots there are to choose from, what was proven, and when."""

import json
from typing import Final, NamedTuple

from capkeep.records.model import Outcome
from capkeep.records.queries import Records

MONTH: Final = 30 * 24 * 3600
YEAR: Final = 365 * 24 * 3600
CHOICE: Final = 1000  # snapshots from which an old one is chosen
COMPARABLE: Final = 3  # drills without which the last one is compared with nothing
SHORTEST: Final = 0.001  # seconds; what took less says nothing of how fast it was


class Made(NamedTuple):
    """A complete backup that can be drilled."""

    snapshot: str
    started: float


class Coverage(NamedTuple):
    """What drills that passed have restored in some time."""

    drills: int
    files: int
    bytes: int
    share: float  # of the files that the last snapshot held; some may have been restored twice
    manifest: int = 0  # files that were as they had been read at backup time


class Earlier(NamedTuple):
    """How fast those before the last one restored, of those that passed within a year: medians."""

    drills: int
    seconds: float
    bytes_per_second: float


class Proven(NamedTuple):
    """What is known of a job's drills in one repository."""

    job: str
    repository: str
    started: float  # of the last one that ended
    passed: bool
    text: str
    seconds: float | None  # that its engine took to restore
    last_passed: float | None
    month: Coverage
    year: Coverage
    unproven: tuple[str, ...] = ()  # dumps of which the last one could say nothing, and why
    bytes: int | None = None  # that the last one restored, and found as in the snapshot
    bytes_per_second: float | None = None  # None too if it did not pass, or restored nothing
    earlier: Earlier | None = None  # None if too few can be compared


def made(records: Records, job: str, repository: str) -> tuple[Made, ...]:
    """Complete backups of the job in that repository; the newest first."""
    sql = (
        "SELECT step.snapshot, step.started FROM step JOIN run ON run.number = step.run"
        " WHERE step.repository = ? AND step.outcome = 'complete' AND step.kind = 'backup'"
        " AND step.snapshot != '' AND run.job = ? ORDER BY step.number DESC LIMIT ?"
    )
    rows = records.ask(sql, (repository, job, CHOICE))
    return tuple(Made(str(name), float(str(when))) for name, when in rows)


def count(records: Records, job: str, repository: str) -> int:
    """How many drills of the job there were in that repository."""
    sql = (
        "SELECT count(*) FROM step JOIN run ON run.number = step.run"
        " WHERE step.repository = ? AND step.kind = 'drill' AND run.job = ?"
    )
    return int(str(records.ask(sql, (repository, job))[0][0]))


def last_failed(records: Records, repository: str) -> float | None:
    """When a job's last drill there found what is not as it should be; the newest, if several did."""
    sql = (
        "SELECT max(step.started) FROM step WHERE step.failure = 'damaged' AND step.number IN ("
        " SELECT max(step.number) FROM step JOIN run ON run.number = step.run"
        " WHERE step.repository = ? AND step.kind = 'drill'"
        " AND (step.outcome = 'complete' OR step.failure = 'damaged') GROUP BY run.job)"
    )
    found = records.ask(sql, (repository,))[0][0]
    return None if found is None else float(str(found))


def proven(records: Records, now: float) -> tuple[Proven, ...]:
    """Every job and repository that ever had a drill, by name."""
    if not records.ask("SELECT 1 FROM sqlite_schema WHERE name = 'detail'", ()):
        return ()
    sql = (
        "SELECT run.job, step.repository, step.started, step.outcome, step.text, detail.facts"
        " FROM step JOIN run ON run.number = step.run LEFT JOIN detail ON detail.step = step.number"
        " WHERE step.kind = 'drill' AND step.outcome IS NOT NULL ORDER BY step.number"
    )
    found: dict[tuple[str, str], list[tuple[float, bool, str, dict[str, object]]]] = {}
    for job, repository, started, outcome, text, facts in records.ask(sql, ()):
        loaded = json.loads(str(facts)) if facts else {}
        row = (float(str(started)), outcome == Outcome.COMPLETE, str(text), loaded)
        found.setdefault((str(job), str(repository)), []).append(row)
    return tuple(_proven(*key, rows, now) for key, rows in sorted(found.items()))


def _proven(
    job: str, repository: str, rows: list[tuple[float, bool, str, dict[str, object]]], now: float
) -> Proven:
    started, passed, text, facts = rows[-1]
    good = [row[0] for row in rows if row[1]]
    size = _number(facts.get("bytes"))
    return Proven(
        job, repository, started, passed, text, _number(facts.get("restore_seconds")),
        good[-1] if good else None, _coverage(rows, now - MONTH), _coverage(rows, now - YEAR),
        _unproven(facts), None if size is None else int(size), _rate(facts) if passed else None,
        _earlier(rows[:-1], now - YEAR),
    )  # fmt: skip


def _rate(facts: dict[str, object]) -> float | None:
    """Bytes per second that the engine restored, which tells more than the time: samples differ in size."""
    size, seconds = _number(facts.get("bytes")), _number(facts.get("restore_seconds"))
    if size is None or size <= 0 or seconds is None or seconds < SHORTEST:
        return None
    return size / seconds


def _earlier(
    rows: list[tuple[float, bool, str, dict[str, object]]], since: float
) -> Earlier | None:
    told = [facts for started, passed, _, facts in rows if passed and started >= since]
    rates = [(rate, facts) for facts in told if (rate := _rate(facts)) is not None]
    if len(rates) < COMPARABLE:
        return None
    seconds = [_number(facts.get("restore_seconds")) or 0.0 for _, facts in rates]
    return Earlier(len(rates), _median(seconds), _median([rate for rate, _ in rates]))


def _median(values: list[float]) -> float:
    """Without `statistics`, which `status` would load for this alone, with `decimal` and others."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return (ordered[half] + ordered[~half]) / 2


def _unproven(facts: dict[str, object]) -> tuple[str, ...]:
    dumps = facts.get("dumps")
    found = dumps.get("unproven") if isinstance(dumps, dict) else None
    return tuple(f"{path}: {why}" for path, why in found.items()) if isinstance(found, dict) else ()


def _coverage(rows: list[tuple[float, bool, str, dict[str, object]]], since: float) -> Coverage:
    counted = [facts for started, passed, _, facts in rows if passed and started >= since]
    files = sum(int(_number(facts.get("files")) or 0) for facts in counted)
    size = sum(int(_number(facts.get("bytes")) or 0) for facts in counted)
    held = counted[-1].get("held") if counted else None
    most = _number(held.get("files")) if isinstance(held, dict) else None
    manifest = sum(int(_number(facts.get("manifest")) or 0) for facts in counted)
    share = min(1.0, files / most) if most else 0.0
    return Coverage(len(counted), files, size, share, manifest)


def _number(value: object) -> float | None:
    """What a room has said; None for what is no number, or none of this world (NaN too)."""
    if isinstance(value, int | float) and abs(value) < 1 << 63:
        return float(value)
    return None
