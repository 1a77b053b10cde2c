"""Reading the record: root and the members of group capkeep may, while it is written or not."""

import os
import sqlite3
import time
from typing import Final

from capkeep.records.life import interrupted, is_alive
from capkeep.records.model import Run
from capkeep.records.queries import Arguments, Records, Row
from capkeep.records.schema import DATABASE, RecordsError, open_reader, unusable

_ATTEMPTS: Final = 50
_PAUSE: Final = 0.01  # seconds


class RecordReader(Records):
    """Reads the record, also as somebody who may not write, while it is written or not.

    A run without an end whose runner is gone is shown as failed and interrupted.
    All raise RecordsError.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = f"{directory}/{DATABASE}"
        self._still = False  # read as a file that nobody changes
        self._state: tuple[int, ...] = ()
        self._connection = self._open()
        super().__init__(self._fetch, self._judged)

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; safe to call again."""
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        """Try again where a writer came or went between two looks."""
        for attempt in range(_ATTEMPTS):
            self._state = self._look()
            try:
                connection, self._still = open_reader(self._path)
            except sqlite3.Error as error:
                if attempt == _ATTEMPTS - 1:
                    raise unusable(self._path, error) from error
                time.sleep(_PAUSE)
            else:
                return connection
        raise AssertionError("the last attempt raises")

    def _look(self) -> tuple[int, ...]:
        """Changes whenever a writer has come or gone."""
        try:
            state = os.stat(self._path)
        except OSError:
            return ()
        return (
            state.st_ino, state.st_size, state.st_mtime_ns, os.path.exists(self._path + "-wal")
        )  # fmt: skip

    def _fetch(self, sql: str, arguments: Arguments) -> list[Row]:
        """Ask, and again if a writer has come or gone while a file was read as still."""
        for attempt in range(_ATTEMPTS):
            try:
                rows = self._connection.execute(sql, arguments).fetchall()
            except sqlite3.Error as error:
                if attempt == _ATTEMPTS - 1:
                    raise unusable(self._path, error) from error
                time.sleep(_PAUSE)
            else:
                if not self._still or self._look() == self._state:
                    return rows
            self._connection.close()
            self._connection = self._open()
        raise RecordsError(f"{self._path} changes faster than it can be read")

    def _judged(self, run: Run) -> Run:
        """A run without an end whose runner is gone, as one that was interrupted."""
        if run.outcome is not None or is_alive(self._directory, run):
            return run
        # It may have ended between the two looks.
        known = {other.id for other in self.unended()}
        return interrupted(run) if run.id in known else self.run(run.id) or run
