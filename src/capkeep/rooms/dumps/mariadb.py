"""MariaDB and MySQL: every database as SQL that makes it anew, and the users with their rights.

Sources: mariadb-dump(1), mysqldump(1).
"""

import os
from collections.abc import Iterator
from typing import Final

from capkeep.plan.model import Dump
from capkeep.rooms.dumps.base import Noted, Piece, Tools, broken, chosen, file_name, tail
from capkeep.rooms.dumps.counting import inserted, users
from capkeep.rooms.dumps.staging import size

# What the server makes itself; users and rights have a piece of their own.
OWN: Final = frozenset(("information_schema", "performance_schema", "sys", "mysql"))
GRANTS: Final = "grants.sql"
END: Final = b"-- Dump completed"
CONTENT: Final = (
    "--single-transaction", "--quick", "--routines", "--events", "--triggers", "--hex-blob",
    "--skip-dump-date", "--databases",
)  # fmt: skip
# Names may hold everything that ends a line or a word, so they are told in hexadecimal digits.
DATABASES: Final = "SELECT HEX(schema_name) FROM information_schema.schemata ORDER BY schema_name"
ACCOUNTS: Final = "SELECT HEX(user), HEX(host) FROM mysql.user ORDER BY user, host"
# With the server's modes a backslash, or a quotation mark, could mean something else.
PLAIN_MODE: Final = "SET SESSION sql_mode = ''"
ESCAPED: Final = str.maketrans(
    {"\\": "\\\\", "'": "''", "\n": "\\n", "\r": "\\r", "\0": "\\0", "\x1a": "\\Z"}
)


class MariaDB:
    """Over its socket, as a user whom the server knows by that (unix_socket)."""

    def __init__(self, client: str) -> None:
        """`client` is "mariadb" or "mysql": whose programs there are."""
        self._client = client

    def server(self, dump: Dump, tools: Tools) -> str:
        return f"{self._client} {self._query(dump, tools, 'SELECT VERSION()')[0]}"

    def pieces(self, dump: Dump, tools: Tools) -> Iterator[Piece]:
        yield self._grants(dump, tools)
        listed = (unhex(line) for line in self._query(dump, tools, DATABASES))
        for name in chosen(dump, tuple(n for n in listed if n not in OWN)):
            argv = (dump.program, *_server(dump, tools), *CONTENT, "--", name)
            yield Piece(file_name(name, ".sql"), f"database {name}", argv, name, tail=END)

    def _grants(self, dump: Dump, tools: Tools) -> Piece:
        what = "users and rights"
        if self._client == "mariadb":
            argv = (
                dump.program,
                *_server(dump, tools),
                "--skip-dump-date",
                "--system=users",
                "--insert-ignore",
            )
            return Piece(GRANTS, what, argv, tail=END)
        # MySQL's own programs have no way to write out users; the last answer is the mark of the end.
        accounts = [account(line) for line in self._query(dump, tools, ACCOUNTS)]
        questions = [f"SHOW {q} {a}" for a in accounts for q in ("CREATE USER", "GRANTS FOR")]
        sql = "; ".join((PLAIN_MODE, *questions, f"SELECT '{END.decode()}'"))
        return Piece(GRANTS, what, self._asking(dump, tools, sql), tail=END)

    def check(self, dump: Dump, tools: Tools, piece: Piece, path: str) -> Noted:  # noqa: ARG002
        if END not in tail(path, 200):
            raise broken(
                piece.what, f"the last line of {os.path.basename(dump.program)} is missing"
            )
        with open(path, "rb") as file:
            if piece.file == GRANTS:
                return Noted(piece.file, size(path), names=tuple(users(file)))
            counts = tuple(("", table, rows) for table, rows in inserted(file).items())
        rows = sum(count for _, _, count in counts)
        return Noted(piece.file, size(path), piece.database, len(counts), rows, counts)

    def version(self, dump: Dump) -> tuple[str, ...]:
        return (dump.program, "--version")

    def _query(self, dump: Dump, tools: Tools, sql: str) -> list[str]:
        said = tools.ask("the server", self._asking(dump, tools, sql))
        return said.decode(errors="surrogateescape").removesuffix("\n").split("\n")

    def _asking(self, dump: Dump, tools: Tools, sql: str) -> tuple[str, ...]:
        program = f"{os.path.dirname(dump.program)}/{self._client}"
        batch = (
            "--default-character-set=utf8mb4", "--batch", "--raw", "--skip-column-names",
            f"--execute={sql}",
        )  # fmt: skip
        return (program, *_server(dump, tools), *batch)


def unhex(digits: str) -> str:
    """A name that was told in hexadecimal digits."""
    return bytes.fromhex(digits).decode(errors="surrogateescape")


def account(line: str) -> str:
    """A user at a host, as SQL names it under PLAIN_MODE; from their digits with a tab between."""
    user, _, host = line.partition("\t")
    return "@".join(f"'{unhex(part).translate(ESCAPED)}'" for part in (user, host))


def _server(dump: Dump, tools: Tools) -> tuple[str, ...]:
    return ("--no-defaults", "--protocol=socket", f"--socket={dump.socket}", f"--user={tools.user}")
