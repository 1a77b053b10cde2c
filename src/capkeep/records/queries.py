"""Questions to the record, the same for its writer and its readers."""

import json
from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure
from capkeep.records.model import (
    Finding,
    FindingKind,
    JobStatus,
    Outcome,
    Proof,
    Run,
    Step,
    Totals,
)

Value = str | int | float | bytes | None
Row = tuple[Value, ...]
RUN_COLUMNS: Final = ", ".join(f"run.{name}" for name in Run._fields)
STEP_COLUMNS: Final = ", ".join(f"step.{name}" for name in (*Step._fields[1:-1], *Totals._fields))
TOTALS_COLUMNS: Final = ", ".join(f"step.{name}" for name in Totals._fields)

# One index lookup per job instead of a walk over all runs (https://sqlite.org/lang_with.html).
_JOBS: Final = """
WITH RECURSIVE found (job) AS (
  SELECT min(job) FROM run
  UNION ALL
  SELECT (SELECT min(job) FROM run WHERE job > found.job) FROM found WHERE found.job IS NOT NULL
) SELECT job FROM found WHERE job IS NOT NULL
"""
_ACTIONS: Final = """
WITH RECURSIVE found (action) AS (
  SELECT min(action) FROM run WHERE job = :job AND outcome IS NOT NULL
  UNION ALL
  SELECT (
    SELECT min(action) FROM run
    WHERE job = :job AND action > found.action AND outcome IS NOT NULL
  ) FROM found WHERE found.action IS NOT NULL
) SELECT action FROM found WHERE action IS NOT NULL
"""


Arguments = tuple[Value, ...] | dict[str, Value]


class Records:
    """The record's content.

    `ask` runs a query; `settle` says what a run without an end is to be taken for.
    """

    def __init__(
        self, ask: Callable[[str, Arguments], list[Row]], settle: Callable[[Run], Run]
    ) -> None:
        self._ask = ask
        self._settle = settle

    def ask(self, sql: str, arguments: Arguments) -> list[Row]:
        """The rows that a query finds, for what is kept beside runs."""
        return self._ask(sql, arguments)

    def last_runs(self, job: str | None = None, limit: int = 20) -> tuple[Run, ...]:
        """The latest runs, last first: of one job or of all."""
        where = "" if job is None else "WHERE job = ?"
        arguments: tuple[Value, ...] = (limit,) if job is None else (job, limit)
        return self._runs(f"{where} ORDER BY number DESC LIMIT ?", arguments)

    def run(self, run_id: str) -> Run | None:
        """The run of that id, or the only one whose id begins so."""
        end = run_id + "\U0010ffff"
        found = self._runs("WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 2", (run_id, end))
        if run_id and found and (len(found) == 1 or found[0].id == run_id):
            return found[0]
        return None

    def unended(self) -> tuple[Run, ...]:
        """Runs that are stored without an end: they go on, or were interrupted."""
        rows = self._ask(f"SELECT {RUN_COLUMNS} FROM run WHERE outcome IS NULL ORDER BY number", ())
        return tuple(map(_run, rows))

    def _runs(self, condition: str, arguments: Arguments) -> tuple[Run, ...]:
        rows = self._ask(f"SELECT {RUN_COLUMNS} FROM run {condition}", arguments)
        return tuple(self._settle(_run(row)) for row in rows)

    def last_complete(self, job: str) -> Run | None:
        """The job's last backup that missed nothing."""
        found = self._runs(
            "WHERE job = ? AND outcome = 'complete' AND action = 'backup'"
            " ORDER BY number DESC LIMIT 1",
            (job,),
        )
        return found[0] if found else None

    def last_of(self, job: str, actions: tuple[str, ...], limit: int) -> tuple[Run, ...]:
        """The latest runs of a job that were one of these actions, the last first."""
        marks = ", ".join("?" * len(actions))
        condition = f"WHERE job = ? AND action IN ({marks}) ORDER BY number DESC LIMIT ?"
        return self._runs(condition, (job, *actions, limit))

    def steps(self, run_id: str) -> tuple[Step, ...]:
        """A run's steps in their order."""
        sql = (
            f"SELECT run.id, {STEP_COLUMNS} FROM step JOIN run ON run.number = step.run"
            " WHERE run.id = ? ORDER BY step.seq"
        )
        found = tuple(map(_step, self._ask(sql, (run_id,))))
        if all(step.outcome for step in found):
            return found
        run = self.run(run_id)
        if run is None or run.outcome is None:
            return found
        return tuple(step if step.outcome else _cut_off(step, run) for step in found)

    def last_steps(self, kind: str) -> tuple[Step, ...]:
        """The last ended step of that kind in each repository."""
        sql = (
            f"SELECT run.id, {STEP_COLUMNS} FROM step JOIN run ON run.number = step.run"
            " WHERE step.number IN (SELECT max(number) FROM step"
            " WHERE kind = ? AND outcome IS NOT NULL GROUP BY repository) ORDER BY step.repository"
        )
        return tuple(map(_step, self._ask(sql, (kind,))))

    def detail(self, step: Step) -> dict[str, object]:
        """What a comparison, a check or a retention found out; empty for other steps."""
        if not self._has_details():
            return {}
        found = self._ask("SELECT facts FROM detail WHERE step = ?", (self._step_number(step),))
        return _object(found[0][0]) if found else {}

    def _has_details(self) -> bool:
        """A record that an older capkeep wrote, and no newer one since, has none."""
        return bool(self._ask("SELECT 1 FROM sqlite_schema WHERE name = 'detail'", ()))

    def complete_snapshots(self, job: str, repository: str, limit: int) -> tuple[str, ...]:
        """The snapshots of the job in that repository that missed nothing; the newest first."""
        sql = (
            "SELECT step.snapshot FROM step JOIN run ON run.number = step.run"
            " WHERE step.repository = ? AND step.outcome = 'complete' AND step.kind = 'backup'"
            " AND step.snapshot != '' AND run.job = ? ORDER BY step.number DESC LIMIT ?"
        )
        return tuple(str(row[0]) for row in self._ask(sql, (repository, job, limit)))

    def snapshots_of(self, job: str, repository: str, limit: int) -> tuple[str, ...]:
        """The last snapshots of the job in that repository, complete or not; the newest first."""
        sql = (
            "SELECT step.snapshot FROM step JOIN run ON run.number = step.run"
            " WHERE step.repository = ? AND step.kind = 'backup' AND step.snapshot != ''"
            " AND run.job = ? ORDER BY step.number DESC LIMIT ?"
        )
        return tuple(str(row[0]) for row in self._ask(sql, (repository, job, limit)))

    def last_verdict(self, repository: str) -> Step | None:
        """The last check that found the repository whole or damaged.

        One that could not be made says nothing of it.
        """
        return self._last_check(repository, "step.outcome = 'complete' OR step.failure = 'damaged'")

    def last_damaged(self, repository: str) -> Step | None:
        """The last check that found errors."""
        return self._last_check(repository, "step.failure = 'damaged'")

    def _last_check(self, repository: str, condition: str) -> Step | None:
        sql = (
            f"SELECT run.id, {STEP_COLUMNS} FROM step JOIN run ON run.number = step.run"
            f" WHERE step.repository = ? AND step.kind = 'check' AND ({condition})"
            " ORDER BY step.number DESC LIMIT 1"
        )
        found = self._ask(sql, (repository,))
        return _step(found[0]) if found else None

    def checks_read(self, repository: str, since: float) -> tuple[tuple[float, str], ...]:
        """When which part of the data was read without finding an error: "1/16", "all", "10%"."""
        if not self._has_details():
            return ()
        sql = (
            "SELECT step.started, detail.facts FROM step JOIN detail ON detail.step = step.number"
            " WHERE step.repository = ? AND step.kind = 'check' AND step.outcome = 'complete'"
            " AND step.started >= ? ORDER BY step.number"
        )
        return tuple(
            (_float(when), str(_object(facts).get("read_data") or ""))
            for when, facts in self._ask(sql, (repository, since))
        )

    def proofs(self, step: Step) -> tuple[Proof, ...]:
        """What was proven in a step; nothing for runs of long ago."""
        sql = "SELECT room, process, facts, weaker FROM proof WHERE step = ? ORDER BY rowid"
        return tuple(
            Proof(str(room), str(process), str(facts), _strings(weaker))
            for room, process, facts, weaker in self._ask(sql, (self._step_number(step),))
        )

    def findings(self, step: Step, limit: int = -1) -> tuple[Finding, ...]:
        """What a step found, in that order; nothing for runs of long ago."""
        sql = "SELECT kind, path, cause, detail FROM finding WHERE step = ? ORDER BY rowid LIMIT ?"
        return tuple(
            Finding(FindingKind(str(kind)), path_from_blob(path), str(cause), str(detail))
            for kind, path, cause, detail in self._ask(sql, (self._step_number(step), limit))
        )

    def finding_counts(self, step: Step) -> dict[FindingKind, int]:
        """How many of each kind there were, those beyond what was kept included."""
        sql = "SELECT kind, total FROM finding_count WHERE step = ?"
        rows = self._ask(sql, (self._step_number(step),))
        return {FindingKind(str(kind)): _int(total) for kind, total in rows}

    def previous_complete_totals(self, job: str, repository: str) -> Totals | None:
        """What the job's last complete backup into that repository counted."""
        found = self._ask(
            f"SELECT {TOTALS_COLUMNS} FROM step JOIN run ON run.number = step.run"
            " WHERE step.repository = ? AND step.outcome = 'complete' AND step.kind = 'backup'"
            " AND run.job = ? ORDER BY step.number DESC LIMIT 1",
            (repository, job),
        )
        return Totals(*map(_int, found[0])) if found else None

    def jobs(self) -> tuple[str, ...]:
        """Every job that ever ran, work that belongs to no job ("") included."""
        return tuple(str(row[0]) for row in self._ask(_JOBS, ()))

    def statuses(self) -> tuple[JobStatus, ...]:
        """What is known of each job that ever ran; a few index lookups per job."""
        unended = self.unended()
        return tuple(self._status(job, unended) for job in self.jobs())

    def _status(self, job: str, unended: tuple[Run, ...]) -> JobStatus:
        numbers = [
            self._ask(
                "SELECT max(number) FROM run WHERE job = ? AND action = ? AND outcome IS NOT NULL",
                (job, action),
            )[0][0]
            for (action,) in self._ask(_ACTIONS, {"job": job})
        ]
        marks = ", ".join("?" * len(numbers))
        latest = self._runs(f"WHERE number IN ({marks}) ORDER BY number", tuple(numbers))
        complete = self.last_complete(job)
        begun = [self._settle(run) for run in unended if run.job == job][-1:]
        for run in begun:
            if run.outcome is not None:
                latest = (*(known for known in latest if known.action != run.action), run)
        return JobStatus(
            job=job,
            latest=latest,
            last_complete=complete,
            running=begun[0] if begun and begun[0].outcome is None else None,
            totals=self._largest(complete.id) if complete else Totals(),
        )

    def _largest(self, run_id: str) -> Totals:
        most = ", ".join(f"coalesce(max(step.{name}), 0)" for name in Totals._fields)
        sql = f"SELECT {most} FROM step JOIN run ON run.number = step.run WHERE run.id = ?"
        return Totals(*map(_int, self._ask(sql, (run_id,))[0]))

    def _step_number(self, step: Step) -> int:
        sql = (
            "SELECT step.number FROM step JOIN run ON run.number = step.run"
            " WHERE run.id = ? AND seq = ?"
        )
        found = self._ask(sql, (step.run, step.seq))
        return _int(found[0][0]) if found else -1


def _cut_off(step: Step, run: Run) -> Step:
    """A step without an end in a run that has one."""
    return step._replace(outcome=Outcome.FAILED, failure=run.failure)


def path_to_blob(path: str) -> bytes:
    """The bytes of a path. A string that no path decodes to (a hostile room's) stays readable."""
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace")


def path_from_blob(value: Value) -> str:
    """The path again, bytes that are not UTF-8 as surrogate escapes."""
    assert isinstance(value, bytes), "paths are stored as they are on the disk"
    return value.decode("utf-8", "surrogateescape")


def _run(row: Row) -> Run:
    fields = dict(zip(Run._fields, row, strict=True))
    return Run(
        id=str(fields["id"]), job=str(fields["job"]), started=_float(fields["started"]),
        action=str(fields["action"]), ended=_maybe_float(fields["ended"]),
        seconds=_maybe_float(fields["seconds"]), outcome=_outcome(fields["outcome"]),
        failure=_failure(fields["failure"]), exit_code=_maybe_int(fields["exit_code"]),
        text=str(fields["text"]), reasons=_strings(fields["reasons"]),
        trigger_uid=_int(fields["trigger_uid"]), trigger_user=str(fields["trigger_user"]),
        version=str(fields["version"]),
    )  # fmt: skip


def _step(row: Row) -> Step:
    own = len(Step._fields) - 1
    fields = dict(zip(Step._fields, row[:own], strict=False))
    return Step(
        run=str(fields["run"]), seq=_int(fields["seq"]), kind=str(fields["kind"]),
        repository=str(fields["repository"]), started=_float(fields["started"]),
        ended=_maybe_float(fields["ended"]), seconds=_maybe_float(fields["seconds"]),
        outcome=_outcome(fields["outcome"]), failure=_failure(fields["failure"]),
        exit_code=_maybe_int(fields["exit_code"]), engine=str(fields["engine"]),
        snapshot=str(fields["snapshot"]), text=str(fields["text"]),
        engine_words=str(fields["engine_words"]),
        engine_network=bool(fields["engine_network"]), totals=Totals(*map(_int, row[own:])),
    )  # fmt: skip


def _object(value: Value) -> dict[str, object]:
    assert isinstance(value, str), "facts are stored as JSON text"
    found = json.loads(value)
    return found if isinstance(found, dict) else {}


def _strings(value: Value) -> tuple[str, ...]:
    assert isinstance(value, str), "lists are stored as JSON text"
    return tuple(map(str, json.loads(value)))


def _int(value: Value) -> int:
    assert isinstance(value, int), "the column is INTEGER NOT NULL"
    return value


def _float(value: Value) -> float:
    assert isinstance(value, float), "the column is REAL NOT NULL"
    return value


def _maybe_int(value: Value) -> int | None:
    return None if value is None else _int(value)


def _maybe_float(value: Value) -> float | None:
    return None if value is None else _float(value)


def _outcome(value: Value) -> Outcome | None:
    return None if value is None else Outcome(str(value))


def _failure(value: Value) -> Failure | None:
    return None if value is None else Failure(str(value))
