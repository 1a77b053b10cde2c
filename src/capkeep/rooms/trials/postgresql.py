"""PostgreSQL: a cluster of the same version is made, and every database restored into it.

Its superuser has a name that no dump knows, so that all roles of the dump are made anew.
Sources: initdb(1), pg_restore(1), psql(1), the catalogs pg_class, pg_depend, pg_index, pg_constraint.
"""

import json
import os
import re
from collections.abc import Callable
from typing import Final

from capkeep.rooms.dumps.postgresql import GLOBALS, PLAIN, VERSIONS
from capkeep.rooms.dumps.postgresql import _named as named
from capkeep.rooms.ground import Ground, Said, Tally, Unproven
from capkeep.rooms.protocol import Message
from capkeep.rooms.trials.causes import Cause, cause
from capkeep.rooms.trials.noted import Item, Unlike, compared, items, numbers, opened

OTHERS: Final = "/usr/pgsql-{}/bin"  # where the packages of postgresql.org have them for RPM
# initdb asks for the name of the user that it runs as; "nobody" has one everywhere.
NAMED_UID: Final = 65534
FIRST: Final = "template1"
# Of a server that is to be gone in a minute. No segments of memory in a /dev/shm that is not there.
SETTINGS: Final = (
    "listen_addresses=", "unix_socket_directories=.", "fsync=off", "full_page_writes=off",
    "synchronous_commit=off", "wal_level=minimal", "max_wal_senders=0", "autovacuum=off", "jit=off",
    "max_connections=10", "shared_buffers=64MB", "maintenance_work_mem=64MB", "max_worker_processes=0",
    "max_parallel_maintenance_workers=0", "max_logical_replication_workers=0",
    "dynamic_shared_memory_type=mmap", "max_wal_size=256MB", "log_min_messages=fatal",
)  # fmt: skip
# Those of extensions hold what the extension brings, and of them a dump has only what was added.
TABLES: Final = """
SELECT coalesce(json_agg(json_build_array(n.nspname, c.relname, EXISTS (
    SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass
    AND d.objid = c.oid AND d.deptype = 'e'))), '[]')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
"""
INVALID: Final = """
SELECT coalesce(json_agg(json_build_array(n.nspname, c.relname)), '[]')
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'i' AND NOT (i.indisvalid AND i.indisready)
"""
ROLES: Final = "SELECT json_agg(rolname) FROM pg_catalog.pg_roles"
IN_PLACE: Final = 15  # the first that always knows allow_in_place_tablespaces
_TABLESPACE: Final = re.compile(
    rb"(CREATE|ALTER|COMMENT ON|SECURITY LABEL .*ON) TABLESPACE |(GRANT|REVOKE) .* ON TABLESPACE "
)
_PLACED: Final = re.compile(rb"(CREATE TABLESPACE .* LOCATION )'(?:[^']|'')*';$")
# As pg_dumpall writes it, after the last of what a role may: a name may look like a password.
_PASSWORD: Final = re.compile(
    rb"((?:NO)?(?:BYPASSRLS|REPLICATION)(?: CONNECTION LIMIT -?\d+)?) PASSWORD '(?:[^']|'')*'"
)


def load(
    ground: Ground, folder: str, noted: Message, differs: Callable[[str, str], None]
) -> Tally:  # fmt: skip
    """Raises Unproven, StepError, ValueError where it cannot be compared."""
    trial = _Trial(ground, folder, str(noted.get("server")), differs)
    files = tuple(items(noted))
    if not all(item.complete for item in files):
        raise Unproven("it was made by a capkeep that noted no rows")
    return trial.load(files)


class _Trial:
    """One cluster, from its making to its end."""

    def __init__(
        self, ground: Ground, folder: str, server: str, differs: Callable[[str, str], None]
    ) -> None:
        self._ground, self._folder, self._differs = ground, folder, differs
        self._programs, self._major = _programs(server)
        self._user = f"drill_{os.urandom(8).hex()}"

    def load(self, files: tuple[Item, ...]) -> Tally:
        ground, tally = self._ground, Tally()
        ground.has(NAMED_UID)
        made = ground.run(
            (f"{self._programs}/initdb", f"--pgdata={ground.folder}", f"--username={self._user}",
             "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"),
            uid=NAMED_UID,
        )  # fmt: skip
        if made.code:
            raise Unproven(f"initdb could not make a cluster: {made.own_words}")
        settings = (word for setting in SETTINGS for word in ("-c", setting))
        with ground.server(
            (f"{self._programs}/postgres", "-D", ground.folder, *settings),
            self._psql(FIRST, "--command=SELECT 1"),
        ):
            self._ask(FIRST, "DROP DATABASE postgres")  # each comes with the dump
            for item in sorted(files, key=lambda item: item.file != GLOBALS):
                if item.file == GLOBALS:
                    self._globals(item)
                else:
                    loaded = self._database(item)
                    tally = Tally(*map(sum, zip(tally, loaded, strict=True)))
        return tally

    # -- what is in the dump

    def _globals(self, item: Item) -> None:
        """Roles with all that belongs to them but passwords, which the code of a database could read."""
        path = f"{self._ground.folder}.globals"
        with opened(self._folder, item) as found, open(path, "wb+") as file:
            os.unlink(path)
            file.writelines(loadable(line, self._major) for line in found)
            file.flush()
            file.seek(0)
            argv = self._psql(FIRST, "--set=ON_ERROR_STOP=1")
            said = self._ground.run(argv, source=file.fileno())
        if said.code:
            self._failed(item, cause("psql", said))
            return
        there = set(map(str, self._listed(FIRST, ROLES)))
        missing = [name for name in item.names if name not in there]
        if missing:
            self._differs(item.file, f"role {missing[0]} is missing, which the dumper noted")

    def _database(self, item: Item) -> Tally:
        argv = (
            f"{self._programs}/pg_restore", "--exit-on-error", "--create", "--no-tablespaces",
            "--no-password", *self._server(), f"--dbname={_to(FIRST)}",
        )  # fmt: skip
        with opened(self._folder, item) as file:
            said = self._ground.run(argv, source=file.fileno())
        if said.code:
            self._failed(item, cause("pg_restore", said))
            return Tally()
        loaded, more = self._counted(item.database)
        same, wrong = compared(item, loaded, more)
        if not wrong and self._rows(item.database, INVALID):
            wrong = "an index is not valid"
        if wrong:
            self._differs(item.file, wrong)
            return Tally()
        return Tally(1, same, sum(rows for _, _, rows in item.counts))

    def _failed(self, item: Item, why: Cause) -> None:
        if why.lacking:
            self._ground.unproven.append((item.file, why.words))
        else:
            self._differs(item.file, f"cannot be loaded: {why.words}")

    def _counted(
        self, database: str
    ) -> tuple[dict[tuple[str, str], int], frozenset[tuple[str, str]]]:
        """The rows of every table, and those tables that an extension has brought."""
        tables = [(str(s), str(t), bool(e)) for s, t, e in self._rows(database, TABLES)]
        counts = "\n".join(
            f"SELECT pg_catalog.count(*) FROM ONLY {_quoted(s)}.{_quoted(t)};"  # noqa: S608 - quoted
            for s, t, _ in tables
        )
        rows = numbers(self._ask(database, counts).answer) if tables else []
        names = [(s, t) for s, t, _ in tables]
        return dict(zip(names, rows, strict=True)), frozenset((s, t) for s, t, e in tables if e)

    # -- asking

    def _listed(self, database: str, question: str) -> list[object]:
        answer = self._ask(database, question).answer.decode(errors="surrogateescape")
        found = json.loads(answer)
        if not isinstance(found, list):
            raise Unlike("the server answers with something that is no list")
        return found

    def _rows(self, database: str, question: str) -> list[list[object]]:
        return [row for row in self._listed(database, question) if isinstance(row, list)]

    def _ask(self, database: str, question: str) -> Said:
        """Raises Unlike where the server does not answer."""
        argv = self._psql(database, "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        said = self._ground.ask(argv, question)
        if said.code:
            raise Unlike(f"the server does not answer: {cause('psql', said).words}")
        return said

    def _psql(self, database: str, *words: str) -> tuple[str, ...]:
        quiet = ("--no-psqlrc", "--no-password", "--quiet", "--set=VERBOSITY=sqlstate")
        return (
            f"{self._programs}/psql", *quiet, *words, *self._server(), f"--dbname={_to(database)}"
        )  # fmt: skip

    def _server(self) -> tuple[str, ...]:
        # By way of where it stands: the path itself may be longer than a socket's (unix(7)).
        return ("--host=/proc/self/cwd", f"--username={self._user}")


def loadable(line: bytes, major: int) -> bytes:
    """A line of globals.sql as a drill can load it; b"" if it cannot.

    Tablespaces are directories of another host: a new server has them in its own, for databases that
    are in one. What is in them is told elsewhere.
    """
    if _TABLESPACE.match(line):
        placed = _PLACED.fullmatch(line.rstrip(b"\n")) if major >= IN_PLACE else None
        return b"SET allow_in_place_tablespaces = on; %b'';\n" % placed[1] if placed else b""
    return _PASSWORD.sub(rb"\1", line)


def _programs(server: str) -> tuple[str, int]:
    """Where the programs of the version are that the dump is of, and it. Raises Unproven."""
    found = re.match(r"PostgreSQL (\d+)", server)
    if not found:
        raise Unproven(f"nobody noted of which version it is: {server!r}")
    major = found[1]
    for folder in (f"{VERSIONS}/{major}/bin", OTHERS.format(major), PLAIN):
        if all(os.access(f"{folder}/{name}", os.X_OK) for name in ("postgres", "initdb", "psql")):
            return folder, int(major)
    raise Unproven(f"PostgreSQL {major} is not installed here: apt-get install postgresql-{major}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _to(database: str) -> str:
    """A connection string. A database may be set to be read only: it is to be filled all the same.

    And it may be set to another language: what goes wrong is known by its English words.
    """
    return f"{named(database)} options='-c default_transaction_read_only=off -c lc_messages=C'"
