"""The database's layout, and how its writer opens it.

The journal is a write-ahead log (https://sqlite.org/wal.html), so that readers never wait.
"""

import os
import sqlite3
import time
from typing import Final

from capkeep.errors import CapkeepError

DATABASE: Final = "records.db"
BUSY_SECONDS: Final = 10.0
OPEN_ATTEMPTS: Final = 50
_ATTEMPT_PAUSE: Final = 0.01  # seconds

# Each entry takes the database from its index to the next version (PRAGMA user_version).
_MIGRATIONS: Final = (
    """
    CREATE TABLE run (
      number INTEGER PRIMARY KEY AUTOINCREMENT, -- order of beginning, whatever the clock did
      id TEXT NOT NULL UNIQUE, job TEXT NOT NULL, started REAL NOT NULL, action TEXT NOT NULL,
      ended REAL, seconds REAL, outcome TEXT, failure TEXT, exit_code INTEGER,
      text TEXT NOT NULL, reasons TEXT NOT NULL,
      trigger_uid INTEGER NOT NULL, trigger_user TEXT NOT NULL, version TEXT NOT NULL
    ) STRICT;
    CREATE INDEX run_by_job ON run (job, number);
    CREATE INDEX run_by_action ON run (job, action, number) WHERE outcome IS NOT NULL;
    CREATE INDEX run_complete ON run (job, number) WHERE outcome = 'complete' AND action = 'backup';
    CREATE INDEX run_open ON run (number) WHERE outcome IS NULL;
    CREATE TABLE step (
      number INTEGER PRIMARY KEY,
      run INTEGER NOT NULL REFERENCES run (number), seq INTEGER NOT NULL,
      kind TEXT NOT NULL, repository TEXT NOT NULL, started REAL NOT NULL,
      ended REAL, seconds REAL, outcome TEXT, failure TEXT, exit_code INTEGER,
      engine TEXT NOT NULL, snapshot TEXT NOT NULL, text TEXT NOT NULL, engine_words TEXT NOT NULL,
      engine_network INTEGER NOT NULL,
      files_new INTEGER NOT NULL, files_changed INTEGER NOT NULL, files_unmodified INTEGER NOT NULL,
      dirs_new INTEGER NOT NULL, dirs_changed INTEGER NOT NULL, dirs_unmodified INTEGER NOT NULL,
      bytes_added INTEGER NOT NULL, bytes_stored INTEGER NOT NULL,
      bytes_processed INTEGER NOT NULL, total_files INTEGER NOT NULL,
      UNIQUE (run, seq)
    ) STRICT;
    CREATE INDEX step_complete ON step (repository, number)
      WHERE outcome = 'complete' AND kind = 'backup';
    CREATE INDEX step_by_kind ON step (kind, repository, number) WHERE outcome IS NOT NULL;
    CREATE TABLE proof (
      step INTEGER NOT NULL REFERENCES step (number),
      room TEXT NOT NULL, process TEXT NOT NULL, facts TEXT NOT NULL, weaker TEXT NOT NULL
    ) STRICT;
    CREATE INDEX proof_by_step ON proof (step);
    CREATE TABLE finding (
      step INTEGER NOT NULL REFERENCES step (number),
      kind TEXT NOT NULL, path BLOB NOT NULL, cause TEXT NOT NULL, detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX finding_by_step ON finding (step);
    CREATE TABLE finding_count (
      step INTEGER NOT NULL REFERENCES step (number),
      kind TEXT NOT NULL, total INTEGER NOT NULL,
      PRIMARY KEY (step, kind)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE detail (
      step INTEGER PRIMARY KEY REFERENCES step (number), facts TEXT NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE notice (
      number INTEGER PRIMARY KEY,
      run INTEGER NOT NULL REFERENCES run (number), channel TEXT NOT NULL,
      alike TEXT NOT NULL, -- equal for runs of a job that ended in the same way
      state TEXT NOT NULL, -- records.notices.State
      attempts INTEGER NOT NULL, busy_until REAL NOT NULL, text TEXT NOT NULL,
      UNIQUE (run, channel)
    ) STRICT;
    CREATE INDEX notice_pending ON notice (number) WHERE state = 'pending';
    CREATE INDEX notice_by_channel ON notice (channel, number);
    """,
)
VERSION: Final = len(_MIGRATIONS)


class RecordsError(CapkeepError):
    """The record cannot be read or written."""


def open_writer(path: str) -> sqlite3.Connection:
    """The record, made or migrated as needed; a file that is no record is put aside.

    Raises RecordsError.
    """
    try:
        return _open_writer(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise unusable(path, error) from error
    # "file is not a database", "malformed": no backup may fail for the sake of its record.
    aside = f"{path}.damaged-{int(time.time())}"
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, aside + suffix)
    try:
        return _open_writer(path)
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def _open_writer(path: str) -> sqlite3.Connection:
    try:
        # SQLite gives -wal and -shm the mode that the database has.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        os.fchmod(fd, 0o640)
        os.close(fd)
    except OSError as error:
        raise unusable(path, error) from error
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        for attempt in range(OPEN_ATTEMPTS):
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:  # SQLite does not wait here for another writer
                if attempt == OPEN_ATTEMPTS - 1:
                    raise
                time.sleep(_ATTEMPT_PAUSE)
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    if check_version(connection, path) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another writer may have been faster.
        for number in range(check_version(connection, path), VERSION):
            for statement in _MIGRATIONS[number].split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """The layout's version, 0 if there is none yet. Raises RecordsError, sqlite3.Error."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise RecordsError(
            f"{path} was written by a newer capkeep", hint="use that version of capkeep"
        )
    return version


def empty() -> sqlite3.Connection:
    """A record in which nothing is."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _migrate(connection, ":memory:")
    return connection


def unusable(path: str, error: Exception) -> RecordsError:
    """The sentence for a record that cannot be used."""
    hint = ""
    if isinstance(error, PermissionError):
        hint = "join the group that [host] group names (usually capkeep), then log in again"
    elif "full" in str(error):
        hint = "make room on that disk"
    return RecordsError(f"the record {path} cannot be used: {error}", hint=hint)
