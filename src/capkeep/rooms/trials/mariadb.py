"""MariaDB: a server of the same series is made, and every database loaded into it.

A dump is loaded with foreign keys unlooked at, as its first lines say; so they are looked at here.
Sources: mariadb-install-db(1), mariadb(1), CHECK TABLE, information_schema.KEY_COLUMN_USAGE.
"""

import os
import re
from collections.abc import Callable
from typing import Final

from capkeep.rooms.dumps.mariadb import GRANTS, unhex
from capkeep.rooms.ground import Ground, Said, Tally, Unproven
from capkeep.rooms.protocol import Message
from capkeep.rooms.trials.causes import cause
from capkeep.rooms.trials.noted import Item, Unlike, compared, items, numbers, opened

SERVERS: Final = ("/usr/sbin/mariadbd", "/usr/libexec/mariadbd", "/usr/bin/mariadbd")
MAKER: Final = "/usr/bin/mariadb-install-db"
CLIENT: Final = "/usr/bin/mariadb"
SOCKET: Final = (
    "./s"  # relative to where server and client stand: a socket's path is short (unix(7))
)
SETTINGS: Final = (
    "--datadir=./", "--tmpdir=./", "--skip-networking", f"--socket={SOCKET}", "--pid-file=./pid",
    "--log-warnings=0", "--skip-log-bin", "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0", "--innodb-use-native-aio=0", "--innodb-buffer-pool-size=64M",
    "--performance-schema=OFF", "--max-allowed-packet=1G", "--event-scheduler=DISABLED",
)  # fmt: skip
TABLES: Final = (
    "SELECT HEX(table_name) FROM information_schema.tables WHERE table_schema = {}"
    " AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY table_name"
)
KEYS: Final = (
    "SELECT HEX(constraint_name), HEX(table_name), HEX(column_name), HEX(referenced_table_schema),"
    " HEX(referenced_table_name), HEX(referenced_column_name) FROM"
    " information_schema.key_column_usage WHERE table_schema = {} AND referenced_table_name IS NOT NULL"
    " ORDER BY table_name, constraint_name, ordinal_position"
)
USERS: Final = "SELECT HEX(CONCAT(user, '@', host)) FROM mysql.global_priv"


def load(ground: Ground, folder: str, noted: Message, differs: Callable[[str, str], None]) -> Tally:
    """Raises Unproven, StepError, ValueError where it cannot be compared."""
    files = tuple(items(noted))
    trial = _Trial(ground, folder, differs)
    trial.look_for(str(noted.get("server")))
    if not all(item.complete for item in files):
        raise Unproven("it was made by a capkeep that noted no rows")
    return trial.load(files, grants=noted.get("kind") == "mariadb")


class _Trial:
    """One server, from its making to its end."""

    def __init__(self, ground: Ground, folder: str, differs: Callable[[str, str], None]) -> None:
        self._ground, self._folder, self._differs = ground, folder, differs
        self._program = next((p for p in SERVERS if os.access(p, os.X_OK)), "")

    def look_for(self, server: str) -> None:
        """Whether a server of the dump's series is here. Raises Unproven, StepError."""
        found = re.match(r"\w+ (\d+\.\d+)\.\S*mariadb", server, re.IGNORECASE)
        if not found:
            raise Unproven(f"drills start servers of MariaDB only, and this dump is of {server}")
        series = found[1]
        if not self._program or not os.access(MAKER, os.X_OK):
            raise Unproven(
                f"MariaDB {series} is not installed here: apt-get install mariadb-server"
            )
        said = self._ground.run((self._program, "--no-defaults", "--version"))
        here = re.search(r"Ver (\d+\.\d+)\.", said.answer.decode(errors="replace"))
        if not here or here[1] != series:
            there = here[1] if here else "another one"
            raise Unproven(f"the dump is of MariaDB {series}, and here is {there}")

    def load(self, files: tuple[Item, ...], *, grants: bool) -> Tally:
        ground, tally = self._ground, Tally()
        ground.has(ground.somebody)
        made = ground.run(
            (MAKER, "--no-defaults", f"--datadir={ground.folder}", "--skip-test-db",
             "--auth-root-authentication-method=normal", "--skip-name-resolve", "--force",
             "--innodb-use-native-aio=0", f"--tmpdir={ground.folder}")
        )  # fmt: skip
        if made.code:
            raise Unproven(f"mariadb-install-db could not make a server's files: {made.own_words}")
        with ground.server(
            (self._program, "--no-defaults", *SETTINGS), self._client("--execute=SELECT 1")
        ):
            databases = [item for item in files if item.file != GRANTS]
            known = {(i.database, table) for i in databases for _, table, _ in i.counts}
            for item in self._loaded(databases):
                tally = Tally(*map(sum, zip(tally, self._database(item, known), strict=True)))
            for item in files if grants else ():
                if item.file == GRANTS:  # last: it changes who may ask
                    self._users(item)
        return tally

    # -- what is in the dump

    def _users(self, item: Item) -> None:
        """In one go with the question: whoever asks later may not be let in."""
        path = f"{self._ground.folder}.grants"
        with opened(self._folder, item) as found, open(path, "wb+") as file:
            os.unlink(path)
            file.writelines(found)
            file.write(f"\n{USERS};\n".encode())
            file.flush()
            file.seek(0)
            said = self._ground.run(self._client(), source=file.fileno())
        if said.code:
            self._failed(item, said)
            return
        there = {unhex(line) for line in said.answer.decode().split("\n") if _is_hex(line)}
        if missing := [name for name in item.names if name not in there]:
            self._differs(item.file, f"user {missing[0]} is missing, which the dumper noted")

    def _failed(self, item: Item, said: Said) -> None:
        why = cause("mariadb", said)
        if why.lacking:
            self._ground.unproven.append((item.file, why.words))
        else:
            self._differs(item.file, f"cannot be loaded: {why.words}")

    def _loaded(self, databases: list[Item]) -> list[Item]:
        """Those that could be loaded; a view may be of tables in one that comes later."""
        good, again = list[Item](), databases
        while again:
            failed = {item: said for item in again if (said := self._load(item)).code}
            good += [item for item in again if item not in failed]
            if len(failed) == len(again):
                for item, said in failed.items():
                    self._failed(item, said)
                break
            again = list(failed)
        return good

    def _load(self, item: Item) -> Said:
        with opened(self._folder, item) as file:
            return self._ground.run(self._client(), source=file.fileno())

    def _database(self, item: Item, known: set[tuple[str, str]]) -> Tally:
        """Compare one with what was noted of it; tables of all databases are `known` by name."""
        same, wrong = compared(item, self._counted(item.database), frozenset())
        tables = [table for _, table, _ in item.counts]
        if wrong := wrong or self._unsound(item.database, tables) or self._orphans(item, known):
            self._differs(item.file, wrong)
            return Tally()
        return Tally(1, same, sum(rows for _, _, rows in item.counts))

    def _counted(self, database: str) -> dict[tuple[str, str], int]:
        tables = [row[0] for row in self._rows(TABLES.format(_hex(database)))]
        count = "SELECT COUNT(*) FROM {}.{}"
        questions = [count.format(_ticked(database), _ticked(table)) for table in tables]
        rows = numbers(self._ask(";\n".join(questions))) if questions else []
        return dict(zip([("", table) for table in tables], rows, strict=True))

    def _unsound(self, database: str, tables: list[str]) -> str:
        """The first table in which the server finds something wrong, or in its indexes."""
        check = "CHECK TABLE {}.{}"
        questions = [check.format(_ticked(database), _ticked(table)) for table in tables]
        said = self._ask(";\n".join(questions)).decode(errors="replace") if questions else ""
        lines = [line.rsplit("\t", 3) for line in said.split("\n")]  # table, "check", kind, words
        bad = [line for line in lines if len(line) == 4 and line[3] != "OK" and line[2] != "note"]
        named = {line[0] for line in bad}
        first = next((table for table in tables if f"{database}.{table}" in named), "")
        return f"table {first or 'of another name'} is not sound" if bad else ""

    def _orphans(self, item: Item, known: set[tuple[str, str]]) -> str:
        """Rows that name what is not there, by the first foreign key between tables of the dump."""
        database = item.database
        keys: dict[tuple[str, str, str, str], list[tuple[str, str]]] = {}
        for name, table, column, there, other, named in self._rows(KEYS.format(_hex(database))):
            if (there, other) in known and (database, table) in known:
                keys.setdefault((name, table, there, other), []).append((column, named))
        questions = []
        for (_, table, there, other), columns in keys.items():
            alike = " AND ".join(f"a.{_ticked(c)} = b.{_ticked(n)}" for c, n in columns)
            given = " AND ".join(f"a.{_ticked(c)} IS NOT NULL" for c, _ in columns)
            questions.append(
                f"SELECT COUNT(*) FROM {_ticked(database)}.{_ticked(table)} a WHERE {given} AND NOT"  # noqa: S608 - quoted
                f" EXISTS (SELECT 1 FROM {_ticked(there)}.{_ticked(other)} b WHERE {alike})"
            )
        counts = numbers(self._ask(";\n".join(questions))) if questions else []
        for (_, table, _, other), count in zip(keys, counts, strict=True):
            if count:  # how many, and the key's name, are for the dump to choose
                return f"rows of {table} name by a foreign key what is not in {other}"
        return ""

    # -- asking

    def _rows(self, question: str) -> list[list[str]]:
        """An answer of names in hexadecimal digits."""
        said = self._ask(question).decode()
        return [[unhex(word) for word in line.split("\t")] for line in said.split("\n") if line]

    def _ask(self, question: str) -> bytes:
        """Raises Unlike where the server does not answer."""
        said: Said = self._ground.ask(self._client(), question)
        if said.code:
            raise Unlike(f"the server does not answer: {cause('mariadb', said).words}")
        return said.answer

    def _client(self, *words: str) -> tuple[str, ...]:
        return (
            CLIENT, "--no-defaults", "--protocol=socket", f"--socket={SOCKET}", "--user=root",
            "--default-character-set=utf8mb4", "--batch", "--raw", "--skip-column-names",
            "--max-allowed-packet=1G", *words,
        )  # fmt: skip


def _is_hex(line: str) -> bool:
    return bool(line) and re.fullmatch(r"(?:[0-9A-F]{2})+", line) is not None


def _hex(name: str) -> str:
    """A name as SQL's value, whatever is in it."""
    digits = name.encode("utf-8", "surrogateescape").hex()
    return f"CONVERT(X'{digits}' USING utf8mb4)"


def _ticked(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
