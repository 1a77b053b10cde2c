"""What borgmatic does around a backup: commands, dumps of databases, telling people."""

import os
import re
from collections.abc import Mapping
from typing import Final

from capkeep.takeover.draft import Draft, redacted
from capkeep.takeover.model import Kind, Path, Value
from capkeep.takeover.nodes import Node, Section, keyed
from capkeep.takeover.notices import channel
from capkeep.takeover.repositories import program_of
from capkeep.values import SecretSource

COMMANDS: Final = (
    "before_actions", "before_backup", "before_prune", "before_compact", "before_check",
    "before_extract", "after_backup", "after_compact", "after_prune", "after_check",
    "after_extract", "after_actions", "on_error", "before_everything", "after_everything",
)  # fmt: skip
DATABASES: Final = {
    "postgresql_databases": "postgresql", "mariadb_databases": "mariadb",
    "mysql_databases": "mysql", "sqlite_databases": "sqlite", "openldap_databases": "ldap",
}  # fmt: skip
OTHER_DATABASES: Final = ("mongodb_databases", "influxdb_databases")
PROGRAMS: Final = {
    "postgresql": "pg_dump_command", "mariadb": "mariadb_dump_command",
    "mysql": "mysql_dump_command", "ldap": "slapcat_command",
}  # fmt: skip
HERE: Final = ("", "localhost", "127.0.0.1", "::1")
ALL: Final = "*"  # while entries are read; not written, since all is what none named means
USERS: Final = {"postgresql": "postgres", "mariadb": "root", "mysql": "root"}
SERVICES: Final = {
    "cronitor": "", "cronhub": "", "pagerduty": "pagerduty://", "pushover": "pover://",
    "zabbix": "", "uptime_kuma": "", "loki": "", "sentry": "", "watchgoose": "",
}  # fmt: skip
DATABASE_LEFT: Final = {
    **keyed(("options", "list_options", "ssl_mode", "ssl_cert", "ssl_key", "ssl_root_cert",
             "ssl_crl", "tls", "psql_command", "mariadb_command", "mysql_command",
             "sqlite_command", "no_owner", "add_drop_database", "events", "routines",
             "tablespaces"),
            "a dump is made with options of capkeep's own"),
}  # fmt: skip
DATABASE_NOTED: Final = {
    **keyed(("format", "compression", "label"), "a dump has a form of capkeep's own"),
    **keyed(("password", "password_transport"),
            "a dump's room asks the server over its socket, as its own user, without a password"),
    **keyed(("pg_restore_command", "restore_hostname", "restore_port", "restore_username",
             "restore_password", "restore_options", "restore_path", "restore_container",
             "restore_socket_path", "restore_tls", "analyze_options", "slapadd_command",
             "sqlite_restore_command"),
            "is for restoring"),
}  # fmt: skip
NOTICE_LEFT: Final = keyed(
    ("verify_tls",), "certificates are always compared | name who signed yours: ca-file"
)
NOTICE_NOTED: Final = {
    **keyed(("start", "finish", "fail", "log"), "what is told is capkeep's own report"),
    **keyed(("logs_size_limit", "ping_body_limit", "send_logs"), "logs are cut to what is taken"),
}  # fmt: skip
_CREDENTIAL: Final = re.compile(r"\{credential +(\w+) +(.+)\}")
STATES: Final = ("start", "finish", "fail")


def secret(
    draft: Draft, section: Section, node: Node | None, key: str, name: str
) -> SecretSource | None:
    """Where a secret comes from: one of borgmatic's credentials, or a file it is to be put into."""
    text = section.text_of(node, key) if node else ""
    if not text:
        return None
    found = _CREDENTIAL.fullmatch(text.strip())
    if not found:
        return draft.secret(name, text)
    kind, rest = found[1], found[2].strip().strip("'\"")
    if kind == "file" and rest.startswith("/"):
        return SecretSource(file=rest)
    if kind in ("systemd", "container"):
        return SecretSource(credential=rest)
    section.say(Kind.LEFT, key, f"secrets out of {kind} are not fetched", node=node)
    return None


def commands(section: Section) -> None:
    """Commands before and after: shown, not taken over."""
    for key in (*COMMANDS, "commands"):
        node = section.take(key)
        for item in node.items() if node else ():
            runs = item.entries().get("run", item) if item.entries() else item
            for line in runs.items():
                said = f"the command is not run: {redacted(line.text() or '…')}"
                section.say(Kind.LEFT, key, said, "see whether the job still needs it", node=line)


# -- databases


def databases(draft: Draft, section: Section, job: Path) -> None:
    """Dumps of ours for what borgmatic dumps: one for each server."""
    found: list[str] = []
    for key in OTHER_DATABASES:
        node = section.take(key)
        for item in node.items() if node else ():
            hint = 'write [dumps.NAME] kind = "command" with the program that dumps it'
            section.say(Kind.LEFT, key, "there is no dump of that kind", hint, node=item)
    for key, kind in DATABASES.items():
        node = section.take(key)
        for item in node.items() if node else ():
            entry = Section(item, key, draft, job, section.expander)
            table = _database(draft, entry, kind)
            if table:
                found.append(table[1])
                entry.table = table
                entry.rest(DATABASE_LEFT, DATABASE_NOTED)
    for name in draft.names("dumps"):
        _all_of(draft, ("dumps", name))
    draft.set(job, "dumps", tuple(dict.fromkeys(found)))


def _database(draft: Draft, entry: Section, kind: str) -> Path | None:
    """The dump that one entry belongs to; None if it cannot be carried over."""
    name = entry.text("name")
    hostname, container = entry.text("hostname"), entry.text("container")
    if container or hostname not in HERE:
        said = f"{name} is at {container or hostname}: dumps are taken over a socket of this host"
        entry.say(Kind.LEFT, "hostname", said, "take the dump on that host, or by a command")
        return None
    user = entry.text("username")
    if user and user != USERS.get(kind):
        said = f"the dump asks as its own user of the system, not as {user}"
        entry.say(Kind.BY_HAND, "username", said, f"let that user read {name}, or write user = …")
    settings = _server(entry, kind)
    table = _same_server(draft, kind, settings)
    for key, value in settings.items():
        draft.set(table, key, value)
    if kind == "sqlite":
        path = entry.text("path")
        _add(draft, table, "paths", (os.path.expanduser(path),) if path else ())
    elif kind != "ldap":
        _choose(draft, table, entry, name)
    return table


def _server(entry: Section, kind: str) -> dict[str, Value]:
    settings: dict[str, Value] = {"kind": kind}
    port = entry.number("port")
    if port and kind == "postgresql":
        settings["port"] = port
    socket = entry.text("socket_path")
    if socket:
        settings["socket"] = socket
    key = PROGRAMS.get(kind, "")
    command = entry.text(key) if key else ""
    if command:
        program = "" if " " in command else program_of(command)
        if program:
            settings["program"] = program
        else:
            said = f"{redacted(command)} is no program of this host"
            entry.say(Kind.LEFT, key, said, "write program = …, or a dump by a command")
    return settings


def _same_server(draft: Draft, kind: str, settings: Mapping[str, Value]) -> Path:
    for table in (("dumps", name) for name in draft.names("dumps")):
        keys = ("kind", "port", "socket", "program")
        if all(draft.get(table, key) == settings.get(key) for key in keys):
            return table
    return draft.table("dumps", draft.free_name("dumps", kind))


def _choose(draft: Draft, table: Path, entry: Section, name: str) -> None:
    """Which databases: all that are named, or all but those that are not wanted."""
    skipped = tuple(text for text, _ in entry.texts("skip_names"))
    _add(draft, table, "exclude-databases", skipped)
    chosen = ALL if name == "all" else name
    _add(draft, table, "databases", (chosen,) if chosen else ())


def _all_of(draft: Draft, table: Path) -> None:
    """Where all are wanted, none is named; what one entry skips may be another's own."""
    named, skipped = draft.get(table, "databases"), draft.get(table, "exclude-databases")
    if isinstance(named, tuple) and ALL in named:
        draft.unset(table, "databases")
        draft.unset(table, "exclude-databases")
        if isinstance(skipped, tuple):
            left = tuple(str(n) for n in skipped if n not in named)
            draft.set(table, "exclude-databases", left)


def _add(draft: Draft, table: Path, key: str, values: tuple[str, ...]) -> None:
    held = draft.get(table, key)
    whole = (*(str(v) for v in (held if isinstance(held, tuple) else ())), *values)
    draft.set(table, key, tuple(dict.fromkeys(whole)))


# -- telling people


def monitoring(draft: Draft, section: Section, job: Path) -> None:
    """Channels of ours for the services that we have; the others told."""
    _healthchecks(draft, section, job)
    _ntfy(draft, section, job)
    _apprise(draft, section, job)
    for key, scheme in SERVICES.items():
        node = section.take(key)
        if node:
            hint = '[notify.NAME] kind = "webhook" sends a report of capkeep\'s own to an address'
            if scheme:
                hint = f'[notify.NAME] kind = "apprise" reaches it as {scheme}…'
            section.say(Kind.LEFT, key, "capkeep does not know that service", hint, node=node)


def _when(inner: Section, table: Path, draft: Draft, states: tuple[str, ...]) -> None:
    """Of which runs: borgmatic's states, as near as ours come."""
    told = tuple(text for text, _ in inner.texts("states")) or states
    draft.set(table, "when", "always" if "finish" in told else "failure")
    if "start" in told and "healthchecks" not in table[1]:
        inner.say(Kind.LEFT, "states", "nobody is told when a run begins")


def _opened(
    draft: Draft, section: Section, job: Path, key: str, *, alone: str = ""
) -> Section | None:
    """A service's settings; None if there are none. A value `alone` stands for that key."""
    node = section.take(key)
    if node is None or node.value is None:
        return None
    if alone and not node.entries():
        node = Node({alone: node}, node.file, node.line)
    return Section(node, key, draft, job, section.expander)


def _healthchecks(draft: Draft, section: Section, job: Path) -> None:
    inner = _opened(draft, section, job, "healthchecks", alone="ping_url")
    if inner is None:
        return
    address = inner.text("ping_url")
    if address and "://" not in address:
        address = f"https://hc-ping.com/{address}"
    if not address:
        return
    table = inner.table = channel(draft, "healthchecks", address, (job[1],))
    if inner.flag("send_logs") is False:
        draft.set(table, "log", False)
    if inner.take("create_slug"):
        inner.say(Kind.LEFT, "create_slug", "checks are not made by pinging them")
    _when(inner, table, draft, STATES)
    inner.rest(NOTICE_LEFT, NOTICE_NOTED)


def _ntfy(draft: Draft, section: Section, job: Path) -> None:
    inner = _opened(draft, section, job, "ntfy")
    if inner is None:
        return
    server, topic = inner.text("server") or "https://ntfy.sh", inner.text("topic")
    if not topic:
        return
    if not server.startswith("http"):
        server = f"https://{server}"
    table = inner.table = channel(draft, "ntfy", f"{server.rstrip('/')}/{topic}", (job[1],))
    token = secret(draft, inner, inner.take("access_token"), "access_token", "ntfy-token")
    draft.set(table, "token", token)
    if inner.take("username") or inner.take("password"):
        inner.take("password")
        hint = "make an access token for that user, and write token = { file = … }"
        inner.say(Kind.LEFT, "username", "ntfy is told who we are by a token alone", hint)
    _when(inner, table, draft, ("fail",))
    inner.rest(NOTICE_LEFT, NOTICE_NOTED)


def _apprise(draft: Draft, section: Section, job: Path) -> None:
    inner = _opened(draft, section, job, "apprise")
    if inner is None:
        return
    services = inner.take("services")
    table: Path = ()
    for item in services.items() if services else ():
        entry = Section(item, "apprise.services", draft, job, section.expander)
        entry.take("label")
        address = entry.text("url")
        if address:
            table = channel(draft, "apprise", address, (job[1],), key="urls")
            draft.set(table, "when", "failure")
        entry.rest({}, {})
    if table:
        inner.table = table
        _when(inner, table, draft, ("fail",))
    inner.rest(NOTICE_LEFT, NOTICE_NOTED)
