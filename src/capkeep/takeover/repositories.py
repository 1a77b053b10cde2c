"""A repository of ours out of what another program knows of it: location, password, environment."""

import os
import re
import shlex
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from capkeep.engines import ENGINES
from capkeep.takeover.draft import Draft, redacted, slug
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Node
from capkeep.takeover.ssh import ssh_needs, ssh_options
from capkeep.values import ENGINE_SCHEMES, SecretSource, ValueMistake, parse_location

# Of the environment of restic and of what it reaches remotes with (restic(1), rclone(1)).
SECRET_WORDS: Final = (
    "PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "USERNAME", "SAS", "AUTHORIZATION", "HEADERS",
    "CONNECTION_STRING", "COOKIE",
)  # fmt: skip
REMOTES: Final = ("AWS_", "B2_", "AZURE_", "GOOGLE_", "OS_", "ST_", "RCLONE_", "RESTIC_REST_")
REGIONS: Final = ("AWS_DEFAULT_REGION", "AWS_REGION")
FOLDERS: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LOGIN: Final = re.compile(r"(sftp:(?://)?|ssh://|(?=[^:/]*:[^@/]*@[^:/]*:))([^:@/]+):[^@/]*@")
_INLINE: Final = re.compile(r"(?i)(pass|secret|token|key)\w{0,64}=")
_AUTHORITY: Final = re.compile(r"://[^/]*@")
LOGINS: Final = {
    "rest": ("RESTIC_REST_USERNAME", "RESTIC_REST_PASSWORD"),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
}
_SHELL: Final = re.compile(r"[|&;<>()`$*?\[\]{}~]")


class Known(NamedTuple):
    """What another program knows of a repository."""

    engine: str
    location: str
    node: Node  # where it is said
    key: str
    password: SecretSource | None
    environment: Mapping[str, Node] = {}
    name: str = ""  # its label
    ssh: Node | None = None  # the command that reaches it, and the key that says it
    ssh_key: str = ""
    remote_path: str = ""  # the engine's program there


class Address(NamedTuple):
    """A location without the secrets that stood in it."""

    location: str
    login: tuple[tuple[str, str], ...] = ()  # variables that say them instead
    problem: str = ""
    hint: str = ""


def add_repository(draft: Draft, known: Known) -> Path:
    """The table of a repository; the same one for one that is there already."""
    address = without_secrets(known)
    location = address.location
    for path in (("repositories", n) for n in draft.names("repositories")):
        if draft.get(path, "location") == location and draft.get(path, "engine") == known.engine:
            if known.password and draft.get(path, "password") != known.password:
                said = "the repository is named before with another password, which is taken"
                draft.say(Kind.LEFT, known.node, known.key, said, table=path)
            return path
    name = draft.free_name("repositories", known.name or _named(location))
    table = draft.table("repositories", name)
    draft.set(table, "engine", known.engine)
    draft.set(table, "location", location)
    if address.problem:
        draft.say(Kind.LEFT, known.node, known.key, address.problem, address.hint, table=table)
    if known.password:
        draft.set(table, "password", known.password)
    else:
        said = "nothing says where the password comes from"
        hint = f'write password = {{ file = "{draft.directory}/{name}" }}'
        draft.say(Kind.BY_HAND, known.node, known.key, said, hint, table=table)
    for variable, text in address.login:
        draft.set(table, variable, draft.secret(f"{name}-{variable}", text), below="credentials")
    for variable, node in known.environment.items():
        _variable(draft, table, location, variable, node)
    _needs(draft, table, location, known)
    return table


def _named(location: str) -> str:
    """What people would call it: the last part of its place."""
    parts = [slug(p) for p in re.split(r"[/:]", location)]
    plain = () if location.startswith("/") else ("repo", "backup")
    return next((p for p in reversed(parts) if p and p not in plain), "repository")


def without_secrets(known: Known) -> Address:
    """The location without user and password; what can be said by variables is."""
    location, problem = known.location, ""
    found = _LOGIN.match(location)
    if found:
        problem = "a password stands in the address; ssh takes keys here"
        location = f"{found[1]}{found[2]}@{location[found.end() :]}"
    if known.engine == "borg":
        return Address(borg_location(location), problem=problem)
    if location.startswith("rclone:") and _INLINE.search(location):
        said = "a secret stands in the address: where it leads is to be said by variables"
        hint = 'location = "rclone:NAME:PATH", environment.RCLONE_CONFIG_NAME_TYPE and the like'
        return Address("rclone:NAME:", (), said, hint)
    scheme, _, rest = location.partition(":")
    if scheme in LOGINS and "@" in rest:
        try:
            parts = urlsplit(rest)
        except ValueError:
            return Address(f"{scheme}:", (), "is no address")
        texts = [unquote(text) if text else "" for text in (parts.username, parts.password)]
        login = tuple(pair for pair in zip(LOGINS[scheme], texts, strict=True) if pair[1])
        host = parts.netloc.rpartition("@")[2]
        return Address(f"{scheme}:{urlunsplit(parts._replace(netloc=host))}", login)
    if scheme not in ("sftp", "ssh") and "@" in location.partition("://")[2].partition("/")[0]:
        return Address(_AUTHORITY.sub("://", location), (), "who logs in stands in the address")
    return Address(location, problem=problem)


def borg_location(location: str) -> str:
    """`user@host:path` as the address that it stands for, and a local path as it is."""
    if location.startswith("file://"):
        return location.removeprefix("file://")
    if "://" in location or location.startswith(("/", "~")) or ":" not in location:
        return location
    host, _, path = location.partition(":")
    return f"ssh://{host}{path}" if path.startswith("/") else f"ssh://{host}/./{path}"


def _variable(draft: Draft, table: Path, location: str, variable: str, node: Node) -> None:
    """One variable of a remote: its region, a secret, or what may be read by all."""
    text = node.text() or ""
    if not _NAME.fullmatch(variable):
        draft.say(Kind.LEFT, node, variable, "cannot be an environment variable", table=table)
        return
    if variable in REGIONS and location.startswith("s3:"):
        draft.set(table, "region", text, below="options")
        return
    if variable == "GOOGLE_APPLICATION_CREDENTIALS":
        said = "is a file, which the room that has the network must be able to read"
        draft.say(
            Kind.BY_HAND,
            node,
            variable,
            said,
            f"chgrp capkeep-reader {shlex.quote(text)}",
            table=table,
        )
    secret = any(word in variable.upper() for word in SECRET_WORDS) or _AUTHORITY.search(text)
    if secret or variable.endswith(("_ID", "_NAME")):
        source = draft.secret(f"{table[-1]}-{variable}", text)
        draft.set(table, variable, source, below="credentials")
    else:
        draft.set(table, variable, text, below="environment")


def _needs(draft: Draft, table: Path, location: str, known: Known) -> None:
    """What the kind of place asks for beyond what the other program said."""
    if location.startswith(("sftp:", "ssh://")):
        if known.ssh:
            ssh_options(draft, table, known.ssh, known.ssh_key)
        ssh_needs(draft, table, location, (known.node, known.key))
        if known.remote_path:
            draft.set(table, "remote-path", known.remote_path, below="options")
    if location.startswith("/"):
        said = "the vault's user alone may write it: hand it over, and stop who writes it now"
        hint = f"chown -R capkeep-vault: {shlex.quote(location)}"
        draft.say(Kind.NOTE, known.node, known.key, said, hint, table=table)
    scheme = location.partition(":")[0]
    if scheme in ENGINE_SCHEMES and known.engine == "restic":
        draft.set(table, "engine-network", True)
        said = "restic alone reaches it: the process that reads your files has the network too"
        hint = 'the same place through the vault: location = "rclone:REMOTE:PATH"'
        draft.say(Kind.NOTE, known.node, known.key, said, hint, table=table)
    try:
        kind = parse_location(location).scheme
    except ValueMistake as mistake:
        hint = mistake.hint if known.engine == "restic" else "write an absolute path"
        draft.say(Kind.LEFT, known.node, known.key, mistake.problem, hint, table=table)
        return
    if kind not in ENGINES[known.engine].traits.schemes:
        said = f"{known.engine} has no repositories at {kind}: locations here"
        hint = "keep what backs up there now, or name a directory of this host, or ssh://user@host/path"
        draft.say(Kind.LEFT, known.node, known.key, said, hint, table=table)


def program_of(word: str) -> str:
    """A program's absolute path; "" where it is not found."""
    if word.startswith("/"):
        return word
    found = (f"{folder}/{word}" for folder in FOLDERS)
    return next((p for p in found if "/" not in word and os.access(p, os.X_OK)), "")


def command_source(draft: Draft, name: str, command: str) -> tuple[SecretSource | None, str]:
    """A command that prints a secret, as ours; or why it cannot be. No shell runs it here."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if len(words) == 2 and words[0].rpartition("/")[2] in ("echo", "printf"):
        return draft.secret(name, words[1]), ""
    if not words or _SHELL.search(command):
        return None, "the command needs a shell, and none is run here"
    if words[0].rpartition("/")[2] == "cat" and len(words) == 2 and words[1].startswith("/"):
        return SecretSource(file=words[1]), ""
    program = program_of(words[0])
    if not program:
        return None, f"program {words[0]} is not here"
    if redacted(" ".join(words[1:])) != " ".join(words[1:]):
        return None, "a secret may stand in the command itself"
    return SecretSource(command=(program, *words[1:])), ""
