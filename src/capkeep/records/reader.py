"""Reading the record: root and the members of group capkeep may, while it is written or not."""

import sqlite3
import time
from typing import Final

from capkeep.records.life import interrupted, is_alive
from capkeep.records.model import Run
from capkeep.records.opening import Opened, look_at, open_reader
from capkeep.records.queries import Arguments, Records, Row
from capkeep.records.schema import DATABASE, RecordsError, unusable

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
        self._opened = self._open()
        super().__init__(self._fetch, self._judged)

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; safe to call again."""
        self._opened.connection.close()

    def _open(self) -> Opened:
        """Try again where a writer came or went between two looks."""
        for attempt in range(_ATTEMPTS):
            try:
                return open_reader(self._path)
            except (sqlite3.Error, OSError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise unusable(self._path, error) from error
                time.sleep(_PAUSE)
        raise AssertionError("the last attempt raises")

    def _fetch(self, sql: str, arguments: Arguments) -> list[Row]:
        """Ask, and again if a writer came or went while the files were taken to be still."""
        for attempt in range(_ATTEMPTS):
            try:
                rows = self._opened.connection.execute(sql, arguments).fetchall()
            except sqlite3.Error as error:
                if attempt == _ATTEMPTS - 1:
                    raise unusable(self._path, error) from error
                time.sleep(_PAUSE)
            else:
                if self._opened.look in (None, look_at(self._path)):
                    return rows
            self.close()
            self._opened = self._open()
        raise RecordsError(f"{self._path} changes faster than it can be read")

    def _judged(self, run: Run) -> Run:
        """A run without an end whose runner is gone, as one that was interrupted."""
        if run.outcome is not None or is_alive(self._directory, run):
            return run
        # It may have ended between the two looks.
        known = {other.id for other in self.unended()}
        return interrupted(run) if run.id in known else self.run(run.id) or run
