"""PostgreSQL: every database in its custom format, and what belongs to the whole cluster.

Not compressed: the engine does that itself, and then keeps only what has changed since the last one.
Sources: pg_dump(1), pg_dumpall(1), psql(1), libpq's connection strings.
"""

import glob
import json
import os
from collections.abc import Iterator
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Dump
from capkeep.rooms.dumps.base import Noted, Piece, Tools, broken, chosen, file_name, tail
from capkeep.rooms.dumps.counting import CopyCounter, roles
from capkeep.rooms.dumps.staging import size

VERSIONS: Final = "/usr/lib/postgresql"  # where Debian has one directory for each
PLAIN: Final = "/usr/bin"
LIST: Final = (
    "SELECT coalesce(json_agg(datname ORDER BY datname), '[]') FROM pg_database"
    " WHERE datallowconn AND NOT datistemplate"
)
GLOBALS: Final = "globals.sql"
GLOBALS_END: Final = b"-- PostgreSQL database cluster dump complete"
HEAD: Final = b"PGDMP"  # of the custom format
LOCK_SECONDS: Final = 600  # that somebody else may keep a table to himself


class PostgreSQL:
    """Over the socket in its directory, as a user whom the server knows by that (peer)."""

    def server(self, dump: Dump, tools: Tools) -> str:
        said = self._query(dump, tools, "SHOW server_version")
        return f"PostgreSQL {said}"

    def pieces(self, dump: Dump, tools: Tools) -> Iterator[Piece]:
        number = int(self._query(dump, tools, "SHOW server_version_num"))
        programs = _programs(dump, number // 10000)
        wait = min(LOCK_SECONDS, max(1, dump.timeout_seconds // 2))
        yield Piece(
            GLOBALS, "roles and tablespaces",
            (f"{programs}/pg_dumpall", "--globals-only", "--no-password",
             *_server(dump, tools), f"--lock-wait-timeout={wait * 1000}"),
            tail=GLOBALS_END,
        )  # fmt: skip
        for name in chosen(dump, tuple(json.loads(self._query(dump, tools, LIST)))):
            yield Piece(
                file_name(name, ".dump"), f"database {name}",
                (f"{programs}/pg_dump", "--format=custom", "--compress=0", "--no-password",
                 *_server(dump, tools), f"--lock-wait-timeout={wait * 1000}",
                 f"--dbname={_named(name)}"),
                database=name, head=HEAD,
            )  # fmt: skip

    def check(self, dump: Dump, tools: Tools, piece: Piece, path: str) -> Noted:  # noqa: ARG002
        if piece.file == GLOBALS:
            if GLOBALS_END not in tail(path, 200):
                raise broken(piece.what, "pg_dumpall's last line is missing")
            with open(path, "rb") as file:
                return Noted(piece.file, size(path), names=tuple(roles(file)))
        # With the program that wrote it. The list alone is at its beginning, so all of it is read; the
        # rows of each table, which go past, are those of the moment that the dump is of.
        program = f"{os.path.dirname(piece.argv[0])}/pg_restore"
        counter = CopyCounter()
        tools.read(piece.what, (program, "--data-only", "--file=-", path), counter.feed)
        listed = tools.ask(piece.what, (program, "--list", path))
        if b"; TOC Entries:" not in listed.replace(b";     TOC", b"; TOC"):
            raise broken(piece.what, "pg_restore finds no list of what is in it")
        tables = sum(b" TABLE DATA " in line for line in listed.split(b"\n"))
        rows = sum(count for _, _, count in counter.counts)
        return Noted(
            piece.file, size(path), piece.database, tables, rows, tuple(counter.counts)
        )  # fmt: skip

    def version(self, dump: Dump) -> tuple[str, ...]:
        return (f"{_programs(dump, 0)}/pg_dump", "--version")

    def _query(self, dump: Dump, tools: Tools, sql: str) -> str:
        last: StepError | None = None
        for database in (*dump.databases[:1], "postgres", "template1"):
            argv = (
                f"{_programs(dump, 0)}/psql", "--no-psqlrc", "--no-password", "--quiet",
                "--tuples-only", "--no-align", *_server(dump, tools), f"--command={sql}",
                f"--dbname={_named(database)}",
            )  # fmt: skip
            try:
                return tools.ask("the server", argv).decode().strip()
            except StepError as error:
                if "does not exist" not in error.engine_words:
                    raise
                last = error
        assert last is not None, "at least two databases are tried"
        raise last


def _server(dump: Dump, tools: Tools) -> tuple[str, ...]:
    return (f"--host={dump.socket}", f"--port={dump.port}", f"--username={tools.user}")


def _named(database: str) -> str:
    """A connection string that means that database, whatever its name looks like."""
    escaped = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"


def _programs(dump: Dump, major: int) -> str:
    """The folder with the programs for a server: its own version's, else the next newer ones.

    0 for whichever is the newest. Raises StepError where there are none.
    """
    if dump.program:
        return os.path.dirname(dump.program)
    names = (os.path.basename(p) for p in glob.glob(f"{VERSIONS}/[0-9]*") if _is_there(f"{p}/bin"))
    found = sorted(int(n) for n in names if n.isdigit())
    if fitting := [v for v in found if v >= major]:
        return f"{VERSIONS}/{fitting[0] if major else fitting[-1]}/bin"
    if _is_there(PLAIN) and not found:
        return PLAIN
    raise StepError(
        Failure.ENGINE,
        f"no pg_dump here is new enough for PostgreSQL {major}" if major else "there is no pg_dump",
        hint=f"apt-get install postgresql-client-{major or '15'}",
    )


def _is_there(folder: str) -> bool:
    return os.access(f"{folder}/pg_dump", os.X_OK)
