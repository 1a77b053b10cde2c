"""How somebody who may not write opens the record while its writer comes, goes and is killed.

SQLite can read a write-ahead log along only if `-wal` and `-shm` are there and it may write `-shm`,
or somebody else keeps it in order (https://sqlite.org/wal.html, "Read-Only Databases"). So:

- Nothing in `-wal` (it is gone, or holds no more than its header): the main file is whole, and is
  read as one that nobody changes. Whoever asks looks afterwards whether that was so.
- A writer is there: its `-shm` is in order, and is read along.
- A writer was killed: `-wal` holds what is not in the main file, and `-shm` may be half written or
  missing. SQLite 3.40 then fails at once, or after ten seconds ("locking protocol"). A copy of
  both, which we may write, is put in order and read instead, until the next writer has come.
"""

import errno
import os
import sqlite3
import stat
from typing import Final, NamedTuple

from capkeep.records.locks import is_shared, open_regular
from capkeep.records.schema import check_version, empty, unusable

WRITER: Final = "-writer"  # the writer shares a lock on this file for as long as it has the record
_WAL_HEADER: Final = 32  # bytes (https://sqlite.org/fileformat2.html, "WAL File Format")
_COPY_LIMIT: Final = 1 << 30  # bytes of one file
_BUSY_SECONDS: Final = 0.2


class Look(NamedTuple):
    """The state of the files; a file that is not there is all zeros."""

    database: tuple[int, int, int]  # inode, size, time of change
    wal: tuple[int, int, int]


class Opened(NamedTuple):
    """A connection, and what it was opened on; `look` is None if it follows the writer itself."""

    connection: sqlite3.Connection
    look: Look | None


def look_at(path: str) -> Look:
    """How the files are now. Raises RecordsError if one may not even look, or if one is no file."""
    _state(path + "-shm")
    return Look(_state(path), _state(path + "-wal"))


def _state(path: str) -> tuple[int, int, int]:
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return (0, 0, 0)
    except OSError as error:
        raise unusable(path, error) from error
    if not stat.S_ISREG(state.st_mode):
        # The runner's user can put a link or a FIFO there, and root reads it.
        raise unusable(path, OSError(errno.EINVAL, "not a regular file"))
    return (state.st_ino, state.st_size, state.st_mtime_ns)


def open_reader(path: str) -> Opened:
    """The record for reading; an empty one where there is none yet.

    Raises RecordsError, and OSError or sqlite3.Error when a writer came or went meanwhile.
    """
    look = look_at(path)
    if not look.database[1]:
        return Opened(empty(), look)
    if look.wal[1] <= _WAL_HEADER:
        opened = Opened(_connect(path, "immutable=1"), look)
    elif is_shared(path + WRITER):
        opened = Opened(_connect(path, "mode=ro&readonly_shm=1"), None)
    else:
        opened = Opened(_connect_copy(path), look)
    try:
        if check_version(opened.connection, path):
            return opened
    except BaseException:
        opened.connection.close()
        raise
    opened.connection.close()  # its writer was ended before it had made the tables
    return Opened(empty(), look)


def _connect(path: str, how: str) -> sqlite3.Connection:
    name = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(
        f"file:{name}?{how}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
    )


def _connect_copy(path: str) -> sqlite3.Connection:
    """A copy that nobody else sees, with its write-ahead log worked in, gone when it is closed."""
    import shutil  # rarely needed, and slow to import
    import tempfile

    directory = tempfile.mkdtemp(prefix="capkeep-record-")
    try:
        copy = f"{directory}/copy.db"
        for suffix in ("", "-wal"):
            with open(open_regular(path + suffix), "rb") as file, open(copy + suffix, "wb") as to:
                if os.fstat(file.fileno()).st_size > _COPY_LIMIT:
                    raise unusable(path, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
                shutil.copyfileobj(file, to)
        connection = sqlite3.connect(copy, isolation_level=None)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()
        connection = _connect(copy, "immutable=1")
        connection.execute("PRAGMA user_version").fetchone()  # opens the file, before it is removed
        return connection
    finally:
        shutil.rmtree(directory, ignore_errors=True)
