"""Writing the record: the runner does, nobody else."""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from capkeep.records.life import interrupted, is_alive
from capkeep.records.locks import share
from capkeep.records.model import Finding, FindingKind, Proof, Run, Step, Totals
from capkeep.records.opening import WRITER
from capkeep.records.queries import Arguments, Records, Row, Value, path_to_blob
from capkeep.records.schema import DATABASE, open_writer, unusable

FINDINGS_KEPT: Final = 10_000  # per batch and kind; the rest is counted
DETAILED_RUNS: Final = 2_000  # of older runs neither proofs nor findings are kept
_TEXT_LIMIT: Final = 64 << 10  # characters
_LIST_LIMIT: Final = 1_000
_PATH_LIMIT: Final = 8 << 10  # bytes; PATH_MAX is 4096
_INTEGER_LIMIT: Final = (1 << 63) - 1
_RUN_END: Final = ("ended", "seconds", "outcome", "failure", "exit_code", "text", "reasons")
_STEP_END: Final = (
    "ended", "seconds", "outcome", "failure", "exit_code", "engine", "snapshot", "text",
    "engine_words", "engine_network",
)  # fmt: skip


class Recorder(Records):
    """Writes the record. `directory` is the runner's own (Places.records).

    Opening it closes what interrupted runs left open. Every method has stored its part when it
    returns: it outlives the process, and with the end of a run the machine's sudden end.
    All raise RecordsError.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = f"{directory}/{DATABASE}"
        try:
            self._presence = share(self._path + WRITER)
        except OSError as error:
            raise unusable(self._path, error) from error
        try:
            self._connection = open_writer(self._path)
        except BaseException:
            os.close(self._presence)
            raise
        super().__init__(self._fetch, lambda run: run)
        self._begun: dict[tuple[str, int], tuple[int, float]] = {}  # number and monotonic start
        try:
            self._close_interrupted()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; safe to call again."""
        self._connection.close()
        if self._presence >= 0:
            os.close(self._presence)
            self._presence = -1

    def _fetch(self, sql: str, arguments: Arguments) -> list[Row]:
        try:
            return self._connection.execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise unusable(self._path, error) from error

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All or nothing. With `durable` it survives the machine's sudden end as well."""
        try:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise unusable(self._path, error) from error

    def change(self, sql: str, rows: Iterable[tuple[Value, ...]]) -> None:
        """A statement for each row, all or none."""
        with self._transaction():
            self._connection.executemany(sql, rows)

    def _close_interrupted(self) -> None:
        dead = [run for run in self.unended() if not is_alive(self._directory, run)]
        if not dead:
            return
        with self._transaction():
            for run in dead:
                ended = interrupted(run)
                self._update("run", _RUN_END, _run_end(ended), "id = ?", run.id)
                self._connection.execute(
                    "UPDATE step SET outcome = ?, failure = ?"
                    " WHERE outcome IS NULL AND run = (SELECT number FROM run WHERE id = ?)",
                    (ended.outcome, ended.failure, run.id),
                )

    def begin_run(self, run: Run) -> Run:
        """Note that a run has begun."""
        values = (
            run.id, run.job, float(run.started), run.action, *_run_end(run), run.trigger_uid,
            _text(run.trigger_user), run.version,
        )  # fmt: skip
        with self._transaction(durable=True):
            number = self._insert("run", (*Run._fields,), values)
        self._begun[run.id, 0] = (number, time.monotonic())
        return run

    def note(self, run: Run) -> bool:
        """Keep a run that has its end already; False if one of that id is known."""
        assert run.outcome is not None, "an ended run has an outcome"
        values = (
            run.id, run.job, float(run.started), run.action, *_run_end(run), run.trigger_uid,
            _text(run.trigger_user), run.version,
        )  # fmt: skip
        with self._transaction(durable=True):
            if self._connection.execute("SELECT 1 FROM run WHERE id = ?", (run.id,)).fetchone():
                return False
            self._forget_details(self._insert("run", Run._fields, values) - DETAILED_RUNS)
        return True

    def begin_step(self, run: Run, kind: str, repository: str) -> Step:
        """Note that the next step of a run has begun."""
        number, _ = self._begun[run.id, 0]
        seq = 1 + sum(1 for run_id, seq in self._begun if run_id == run.id and seq)
        step = Step(run.id, seq, kind, repository, time.time())
        values = (number, *step[1:5], *_step_end(step), *step.totals)
        names = (*Step._fields[:-1], *Totals._fields)
        with self._transaction():
            inserted = self._insert("step", names, values)
        self._begun[run.id, seq] = (inserted, time.monotonic())
        return step

    def add_proof(self, step: Step, proof: Proof) -> None:
        """Keep what the kernel said of a process."""
        number, _ = self._begun[step.run, step.seq]
        names = ("step", "room", "process", "facts", "weaker")
        values = (
            number, _text(proof.room), _text(proof.process), _text(proof.facts),
            _list(proof.weaker),
        )  # fmt: skip
        with self._transaction():
            self._insert("proof", names, values)

    def add_findings(
        self,
        step: Step,
        findings: Iterable[Finding],
        counts: Mapping[FindingKind, int] | None = None,
    ) -> None:
        """Keep what was found about paths, as one batch; of very many the first, and a count.

        `counts` are the numbers found where the caller has not kept all of them himself.
        """
        number, _ = self._begun[step.run, step.seq]
        totals: dict[FindingKind, int] = {}
        rows = []
        for found in findings:
            total = totals[found.kind] = totals.get(found.kind, 0) + 1
            if total <= FINDINGS_KEPT:
                path = path_to_blob(found.path)[:_PATH_LIMIT]
                rows.append((number, found.kind, path, _text(found.cause), _text(found.detail)))
        with self._transaction():
            self._connection.executemany("INSERT INTO finding VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.executemany(
                "INSERT INTO finding_count VALUES (?, ?, ?)"
                " ON CONFLICT (step, kind) DO UPDATE SET total = total + excluded.total",
                [(number, kind, total) for kind, total in (counts or totals).items()],
            )

    def add_detail(self, step: Step, facts: Mapping[str, object]) -> None:
        """Keep what a comparison, a check or a retention found out."""
        number, _ = self._begun[step.run, step.seq]
        with self._transaction():
            self._insert("detail", ("step", "facts"), (number, _text(json.dumps(facts))))

    def end_step(self, step: Step) -> Step:
        """Keep how a step ended; `step.outcome` must be set. Returns it with end and duration."""
        assert step.outcome is not None, "an ended step has an outcome"
        number, begun = self._begun[step.run, step.seq]
        done = step._replace(ended=time.time(), seconds=time.monotonic() - begun)
        names = (*_STEP_END, *Totals._fields)
        values = (*_step_end(done), *map(_integer, done.totals))
        with self._transaction():
            self._update("step", names, values, "number = ?", number)
        return done

    def end_run(self, run: Run) -> Run:
        """Keep how a run ended; `run.outcome` must be set. Returns it with end and duration."""
        assert run.outcome is not None, "an ended run has an outcome"
        number, begun = self._begun[run.id, 0]
        done = run._replace(ended=time.time(), seconds=time.monotonic() - begun)
        with self._transaction(durable=True):
            self._update("run", _RUN_END, _run_end(done), "number = ?", number)
            self._forget_details(number - DETAILED_RUNS)
        return done

    def _forget_details(self, number: int) -> None:
        """Every end of a run forgets one old run's details, so the record grows slowly."""
        for table in ("proof", "finding"):
            self._connection.execute(
                f"DELETE FROM {table} WHERE step IN (SELECT number FROM step WHERE run = ?)",
                (number,),
            )

    def _insert(self, table: str, names: Sequence[str], values: Sequence[Value]) -> int:
        marks = ", ".join("?" * len(names))
        sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"
        number = self._connection.execute(sql, values).lastrowid
        assert number is not None, "an INSERT has a row"
        return number

    def _update(
        self, table: str, names: Sequence[str], values: Sequence[Value], where: str, key: Value
    ) -> None:
        pairs = ", ".join(f"{name} = ?" for name in names)
        self._connection.execute(f"UPDATE {table} SET {pairs} WHERE {where}", (*values, key))


def _run_end(run: Run) -> tuple[Value, ...]:
    return (
        run.ended, run.seconds, run.outcome, run.failure, run.exit_code, _text(run.text),
        _list(run.reasons),
    )  # fmt: skip


def _step_end(step: Step) -> tuple[Value, ...]:
    code = None if step.exit_code is None else _integer(step.exit_code)
    return (
        step.ended, step.seconds, step.outcome, step.failure, code, _text(step.engine),
        _text(step.snapshot), _text(step.text), _text(step.engine_words),
        int(step.engine_network),
    )  # fmt: skip


def _text(text: str) -> str:
    """Bounded, and UTF-8 whatever it was: texts may hold parts of file names."""
    return text[:_TEXT_LIMIT].encode("utf-8", "backslashreplace").decode()


def _list(texts: Iterable[str]) -> str:
    return json.dumps([text[:_TEXT_LIMIT] for text in texts][:_LIST_LIMIT])


def _integer(number: int) -> int:
    """What an INTEGER column can hold: a room may say anything."""
    return max(-_INTEGER_LIMIT, min(number, _INTEGER_LIMIT))
