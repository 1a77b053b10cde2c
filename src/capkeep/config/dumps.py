"""A dump's table, checked against what its kind of server needs and what this host has."""

import glob
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from capkeep.config import syntax
from capkeep.config.jobs import JobTable
from capkeep.config.lent import is_plain, name_of, not_to_be_lent
from capkeep.config.mistakes import Collector, nearest
from capkeep.config.model import DumpConfig
from capkeep.config.names import check_names
from capkeep.config.secrets import not_a_program
from capkeep.config.syntax import kebab
from capkeep.config.validate import Checked

LATER_KINDS: Final = ("mongodb", "mongo")
SHORTEST: Final = 10  # seconds
ALL: Final = "*"  # in a job's list of dumps


class Kind(NamedTuple):
    """What the configuration has to know of a kind of dump."""

    user: str  # as Debian's package makes it; "" where it must be written
    programs: tuple[str, ...]  # where Debian has them, patterns of glob(7); the first that is there
    package: str  # that has them
    socket: str = ""
    keys: frozenset[str] = frozenset()  # beside those that every kind has
    paths: tuple[str, ...] = ()


_CHOICE: Final = frozenset(("databases", "exclude_databases", "stream"))
_SERVER: Final = frozenset(("socket", "program"))
KINDS: Final[Mapping[str, Kind]] = {
    "postgresql": Kind(
        "postgres",
        ("/usr/lib/postgresql/*/bin/pg_dump", "/usr/bin/pg_dump"),
        "postgresql-client",
        "/run/postgresql",
        _CHOICE | _SERVER | {"port"},
    ),
    "mariadb": Kind(
        "mysql", ("/usr/bin/mariadb-dump",), "mariadb-client",
        "/run/mysqld/mysqld.sock", _CHOICE | _SERVER,
    ),
    "mysql": Kind(
        "mysql", ("/usr/bin/mysqldump",), "mysql-client or mariadb-client",
        "/run/mysqld/mysqld.sock", _CHOICE | _SERVER,
    ),
    "sqlite": Kind("", (), "", keys=frozenset(("paths",))),
    "redis": Kind(
        "redis", ("/usr/bin/redis-cli",), "redis-tools", "/run/redis/redis-server.sock", _SERVER
    ),
    "valkey": Kind(
        "valkey", ("/usr/bin/valkey-cli",), "valkey-tools", "/run/valkey/valkey-server.sock", _SERVER
    ),
    "ldap": Kind(
        "openldap", ("/usr/sbin/slapcat",), "slapd", keys=frozenset(("paths", "program")),
        paths=("/etc/ldap", "/var/lib/ldap"),
    ),
    "command": Kind("", (), "", keys=frozenset(("command", "paths", "socket", "stream"))),
}  # fmt: skip
COMMON: Final = frozenset(("kind", "user", "timeout", "optional"))

Table = Checked[syntax.Dump]


class DumpChecker:
    """Turns one table after another into values."""

    def __init__(self, collector: Collector, *, user_mode: bool) -> None:
        self._collector = collector
        self._user_mode = user_mode

    def check(self, name: str, table: Table, wrong: frozenset[str]) -> DumpConfig | None:
        """The dump as a value; None if its kind is not known."""
        kind = self._kind(name, table, wrong)
        if kind not in KINDS:
            return None
        facts, model = KINDS[kind], table.model
        self._keys(kind, facts, table)
        paths = self._paths(kind, facts, table, wrong)
        command = self._command(kind, table, wrong)
        if table.gives("timeout") and model.timeout < SHORTEST:
            self._say(table, "timeout", "no dump is done in less than 10 seconds", 'write "1h"')
        for field in ("databases", "exclude_databases"):
            for i, database in enumerate(getattr(model, field)):
                if not database or any(ord(c) < 32 for c in database):
                    place = table.at(kebab(field), i)
                    self._collector.mistake(place, f"{database!r} is not a name", "write its name")
        return DumpConfig(
            name=name,
            kind=kind,
            user=self._user(name, facts, table, paths),
            databases=tuple(model.databases),
            exclude_databases=tuple(model.exclude_databases),
            paths=paths,
            socket=self._socket(facts, table),
            port=model.port,
            program=self._program(kind, facts, table),
            command=command,
            locks=_locks(paths) if kind == "ldap" else (),
            timeout_seconds=model.timeout,
            optional=model.optional,
            stream=model.stream,
        )

    def _say(self, table: Table, field: str, problem: str, hint: str) -> None:
        self._collector.mistake(table.at(kebab(field)), problem, hint)

    def _kind(self, name: str, table: Table, wrong: frozenset[str]) -> str:
        kind = table.model.kind or name
        if kind in KINDS or "kind" in wrong:
            return kind
        known = ", ".join(KINDS)
        if kind in LATER_KINDS:
            problem = "MongoDB has no tools in Debian, so capkeep has no kind for it"
            hint = 'write kind = "command" and command = ["/path/to/mongodump", "--archive"]'
        elif table.gives("kind"):
            problem = f"nothing is known of dumps of {kind!r}"
            guess = nearest(kind, KINDS)
            hint = f'did you mean "{guess}"?' if guess else f"known here: {known}"
        else:
            problem = f"the dump does not say its kind, and {name!r} is none"
            hint = f"write kind = …, one of: {known}"
        self._say(table, "kind", problem, hint)
        return ""

    def _keys(self, kind: str, facts: Kind, table: Table) -> None:
        for field in sorted(table.model.model_fields_set - facts.keys - COMMON):
            takes = ", ".join(sorted(map(kebab, facts.keys)))
            self._say(table, field, f"has no meaning for {kind}", f"{kind} takes {takes}")

    def _user(self, name: str, facts: Kind, table: Table, paths: tuple[str, ...]) -> str:
        """The user that the dump's room runs as: one that is there and is not root."""
        user = table.model.user or facts.user
        if self._user_mode:
            own = name_of(os.geteuid())
            if table.gives("user") and user != own:
                self._say(table, "user", "without root every room runs as you", "take it away")
            return own
        hint = f"write user = …: whom the room of dump {name} runs as"
        if not user and paths:
            try:
                user = name_of(os.stat(paths[0]).st_uid)
            except OSError:
                return ""  # told with the path
            hint = f"{paths[0]} belongs to {user}; write user = … for somebody who may read it"
        if not user:
            self._say(table, "user", "the dump has no user", hint)
            return ""
        none = "install the server first, or write user = …"
        if found := not_to_be_lent(user, "a dump's room", hint, none):
            self._say(table, "user", *found)
        return user

    def _socket(self, facts: Kind, table: Table) -> str:
        socket = table.model.socket or facts.socket
        if socket and not is_plain(socket):
            hint = f'write socket = "{facts.socket or "/run/NAME/NAME.sock"}"'
            self._say(table, "socket", f"{socket!r} is not an absolute path", hint)
        # Not looked for: a server that is down when this is read may be up at night. Nor are links
        # followed, here or in paths: whose they are is asked by whoever binds them.
        return socket

    def _program(self, kind: str, facts: Kind, table: Table) -> str:
        """What was written, or "" where the room looks for itself. Mistakes where there is none."""
        written = table.model.program
        if written:
            problem = not_a_program(written) if written.startswith("/") else "not an absolute path"
            if problem:
                self._say(table, "program", problem, f"name {facts.programs[0]} or the like")
            return written
        found = [path for pattern in facts.programs for path in sorted(glob.glob(pattern))]
        if facts.programs and not found:
            problem = f"what dumps {kind} is not here: {' or '.join(facts.programs)}"
            self._collector.mistake(table.at(), problem, f"apt-get install {facts.package}")
        return "" if kind == "postgresql" or not found else found[0]

    def _paths(
        self, kind: str, facts: Kind, table: Table, wrong: frozenset[str]
    ) -> tuple[str, ...]:
        paths = table.model.paths if table.gives("paths") else list(facts.paths)
        if kind == "sqlite" and not paths and "paths" not in wrong:
            self._say(table, "paths", "the dump names no database", 'write paths = ["/srv/x.db"]')
        seen: set[str] = set()
        for i, path in enumerate(paths):
            place = table.at("paths", i)
            if not is_plain(path):
                hint = f'write "{os.path.normpath("/" + path)}"'
                self._collector.mistake(place, f"{path!r} is not a plain absolute path", hint)
            elif path in seen:
                self._collector.mistake(place, f"{path} is named twice", "name it once")
            elif not os.path.exists(path):
                self._collector.mistake(place, f"there is no {path}", "name what is there")
            elif kind == "sqlite" and not os.path.isfile(path):
                self._collector.mistake(place, f"{path} is not a file", "name the database's file")
            seen.add(path)
        return tuple(os.path.normpath(p) for p in paths if is_plain(p))

    def _command(self, kind: str, table: Table, wrong: frozenset[str]) -> tuple[str, ...]:
        command = tuple(table.model.command)
        if kind != "command":
            return ()
        if not command:
            if "command" not in wrong:
                hint = 'write command = ["/usr/bin/program", "argument"]: what it prints is kept'
                self._say(table, "command", "the dump has no command", hint)
        elif not command[0].startswith("/"):
            hint = "name the program by its absolute path; no shell runs"
            self._say(table, "command", f"program {command[0]!r} is not an absolute path", hint)
        elif problem := not_a_program(command[0]):
            self._say(table, "command", problem, "name a program by its absolute path")
        return command


def all_named(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The dumps that a job takes; `"*"` are all that are defined, wherever."""
    found = [n for name in names for n in (sorted(known) if name == ALL else (name,))]
    return tuple(dict.fromkeys(found))


def check_dump_names(
    table: JobTable, known: Collection[str], collector: Collector, *, all_read: bool
) -> None:
    """A mistake for every dump that a job names and that is not defined, or is named twice."""
    entries = table.entries("dumps", table.model.dumps)
    check_names(entries, "dump", "dumps", (*known, ALL), collector, all_read=all_read)


def _locks(paths: tuple[str, ...]) -> tuple[str, ...]:
    """slapd's databases (LMDB) keep a table of who reads: its writers must know of us."""
    found = [
        p for path in paths for p in glob.glob(f"{glob.escape(path)}/**/lock.mdb", recursive=True)
    ]
    return tuple(sorted(found))
