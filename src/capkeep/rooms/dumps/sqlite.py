"""SQLite: a copy by its online backup, which waits for writers and is checked.

Made by a program of ours of its own, so that what a broken or hostile database can do to SQLite
stays in a confined process. Sources: sqlite3.Connection.backup, https://www.sqlite.org/wal.html
("Read-Only Databases"), PRAGMA integrity_check.
"""

import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Final

from capkeep.kernel.process import interpreter, python
from capkeep.plan.model import Dump
from capkeep.rooms.dumps.base import Noted, Piece, Tools, broken, file_name
from capkeep.rooms.dumps.staging import size

PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
PAGES: Final = 4096  # copied at a time; in between others may write
BUSY_SECONDS: Final = 60
ATTEMPTS: Final = 5


class SQLite:
    """Reads the files as their owner, and writes nothing beside them."""

    def server(self, dump: Dump, tools: Tools) -> str:  # noqa: ARG002
        return f"SQLite {sqlite3.sqlite_version}"

    def pieces(self, dump: Dump, tools: Tools) -> Iterator[Piece]:
        for path in dump.paths:
            file = file_name(path.lstrip("/"), "")
            target = f"{tools.folder}/{file}"
            argv = (interpreter(), *python(PACKAGE, __name__), path, target)
            yield Piece(file, path, argv, database=path, writes_itself=True)

    def check(self, dump: Dump, tools: Tools, piece: Piece, path: str) -> Noted:  # noqa: ARG002
        """The copy has been checked by who made it, who then said what is in it."""
        with open(f"{path}.said", encoding="ascii") as file:
            tables, rows = map(int, file.read().split())
        os.unlink(f"{path}.said")
        if size(path) == 0:
            raise broken(piece.what, "the copy is empty")
        return Noted(piece.file, size(path), piece.database, tables, rows)

    def version(self, dump: Dump) -> tuple[str, ...]:  # noqa: ARG002
        return (interpreter(), "--version")


def main() -> int:
    """Copy a database (argv: from, to), check the copy, and count what is in it."""
    source, target = sys.argv[1:3]
    os.umask(0o077)
    try:
        _copy(source, target)
        tables, rows = look(target)
    except sqlite3.Error as error:
        print(error, file=sys.stderr)
        return 1
    with open(f"{target}.said", "w", encoding="ascii") as file:
        file.write(f"{tables} {rows}\n")
    return 0


def _copy(source: str, target: str) -> None:
    """Raises sqlite3.Error."""
    try:
        _backup(f"{_uri(source)}?mode=ro", target)
    except sqlite3.OperationalError:
        # With a write-ahead log that nobody has open there is nothing beside it to read by. It is
        # whole by itself then, unless somebody opens it meanwhile.
        if os.path.exists(f"{source}-wal") or not _has_wal(source):
            raise
        for _ in range(ATTEMPTS):
            before = _state(source)
            _backup(f"{_uri(source)}?mode=ro&immutable=1", target)
            if _state(source) == before:
                return
            time.sleep(1)
        raise


def _backup(uri: str, target: str) -> None:
    if os.path.exists(target):
        os.unlink(target)
    with _opened(uri) as here, _opened(f"{_uri(target)}?mode=rwc") as there:
        here.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        here.backup(there, pages=PAGES, sleep=0.05)


class _opened:  # noqa: N801 - a context like contextlib.closing, which takes longer to import
    """A connection that is closed in the end."""

    def __init__(self, uri: str) -> None:
        self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def look(path: str) -> tuple[int, int]:
    """Tables and rows of a copy. Raises sqlite3.Error for one that is not whole."""
    with _opened(f"{_uri(path)}?mode=rw") as copy:
        # Whoever restores it finds one file that says all.
        copy.execute("PRAGMA journal_mode = DELETE")
        found = [str(row[0]) for row in copy.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError(f"not whole: {'; '.join(found)}")
        names = [str(row[0]) for row in copy.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%'"
            " ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        )]  # fmt: skip
        quoted = ('"' + name.replace('"', '""') + '"' for name in names)
        counts = (f"SELECT count(*) FROM {name}" for name in quoted)  # noqa: S608 - a quoted name
        rows = sum(copy.execute(count).fetchone()[0] for count in counts)
        return len(names), rows


def _uri(path: str) -> str:
    escaped = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{escaped}"


def _has_wal(path: str) -> bool:
    """By its header (https://www.sqlite.org/fileformat.html, 1.3.3)."""
    with open(path, "rb") as file:
        return file.read(20)[18:20] == b"\x02\x02"


def _state(path: str) -> tuple[bool, int, int, int]:
    state = os.stat(path)
    return (os.path.exists(f"{path}-wal"), state.st_size, state.st_mtime_ns, state.st_ino)
