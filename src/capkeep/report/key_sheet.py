"""What opens a repository on an empty machine, written down for whoever stands before one."""

import json
import shlex
import time
from typing import Final, NamedTuple

from capkeep.plan.model import Repository
from capkeep.report.text import clean, clean_lines

NOT_SECRET: Final = ("known-hosts", "ca-file", "port", "region", "remote-path")
IDENTITY: Final = "identity"


class Sheet(NamedTuple):
    """All that is written down. `needed` names what logs in, `credentials` holds it if asked for."""

    repository: Repository
    engine: str  # such as "restic 0.18.0"
    key: str  # id of the key that the password is for
    hostname: str
    password: str
    credentials: tuple[tuple[str, str], ...] = ()
    needed: tuple[str, ...] = ()
    exported: str = ""  # what the engine itself needs, if the repository has lost it


def as_json(sheet: Sheet) -> str:
    """For another program."""
    repository = sheet.repository
    return json.dumps({
        "repository": repository.name, "engine": sheet.engine, "location": repository.location,
        "key": sheet.key, "host": sheet.hostname, "password": sheet.password,
        "environment": dict(repository.environment), "options": _options(repository),
        "credentials": dict(sheet.credentials), "credentials_needed": list(sheet.needed),
        "exported": sheet.exported,
    }) + "\n"  # fmt: skip


def as_text(sheet: Sheet) -> str:
    """For people, on paper too."""
    head = [
        f"capkeep: what opens repository {sheet.repository.name} of {clean(sheet.hostname)}",
        time.strftime("written down %Y-%m-%d %H:%M UTC", time.gmtime()),
        "",
        "Whoever has this can read every file in the backup. Keep it away from the machine, and safe.",
        "",
    ]
    return "\n".join([*head, *body(sheet)]) + "\n"


def body(sheet: Sheet) -> list[str]:
    """What opens the repository, and how: the lines without a heading."""
    repository = sheet.repository
    lines = [
        f"engine     {clean(sheet.engine)} (any newer one reads it too)",
        f"location   {clean(repository.location)}",
        f"key        {clean(sheet.key)}",
        f"password   {sheet.password}",
        *(f"{name:10} {clean(value)}" for name, value in _options(repository).items()),
    ]
    how = HOW.get(repository.engine, _nothing)
    return [*lines, *_log_in(sheet), *how(sheet)]


def _options(repository: Repository) -> dict[str, str]:
    return {k: v for k, v in repository.options if k in NOT_SECRET}


def _log_in(sheet: Sheet) -> list[str]:
    given = dict(sheet.credentials)
    if not sheet.needed:
        return []
    if not given:
        return ["", f"Not in here, and needed to get there: {', '.join(sheet.needed)}"]
    lines = [""]
    for name, value in given.items():
        several = "\n" in value
        lines += [f"{name}:", value.rstrip("\n")] if several else [f"{name:10} {value}"]
    return lines


def _how(sheet: Sheet) -> list[str]:
    """The commands on a machine that has nothing but the engine."""
    repository = sheet.repository
    words = ["restic", *_transport(repository), "-r", repository.location]
    restic = " ".join(map(shlex.quote, words))
    plain = [f"export {k}={shlex.quote(v)}" for k, v in repository.environment]
    secret = [n for n in sheet.needed if n != IDENTITY]
    return [
        "",
        "On an empty machine, in bash:",
        "",
        "    read -rs RESTIC_PASSWORD && export RESTIC_PASSWORD      # then write the password",
        *(f"    read -rs {name} && export {name}" for name in secret),
        *(f"    {line}" for line in plain),
        f"    {restic} snapshots",
        f"    {restic} restore latest --target /mnt",
    ]


def _how_borg(sheet: Sheet) -> list[str]:
    """The same with borg, whose key is in the repository, and here for the case that it is damaged."""
    where = shlex.quote(sheet.repository.location)
    options = dict(sheet.repository.options)
    port = f" -p {options['port']}" if "port" in options else ""
    rsh = f"export BORG_RSH='ssh -i identity -o UserKnownHostsFile=known_hosts{port}'"
    there = f"export BORG_REMOTE_PATH={shlex.quote(options.get('remote-path', ''))}"
    return [
        "",
        "On an empty machine, in bash:",
        "",
        "    read -rs BORG_PASSPHRASE && export BORG_PASSPHRASE      # then write the password",
        *([f"    {rsh}"] if sheet.repository.location.startswith("ssh:") else []),
        *([f"    {there}"] if "remote-path" in options else []),
        f"    borg list {where}",
        f"    cd /mnt && borg extract --numeric-ids {where}::ARCHIVE",
        "",
        "If the repository has lost its key, write this to a file, and: borg key import REPOSITORY FILE",
        "",
        *clean_lines(sheet.exported.rstrip("\n")),
    ]


def _transport(repository: Repository) -> list[str]:
    """What the engine must be told of ssh and TLS, with files as they will lie there."""
    options = dict(repository.options)
    words = ["--cacert", "ca.pem"] if "ca-file" in options else []
    if repository.location.startswith("sftp:"):
        port = f" -p {options['port']}" if "port" in options else ""
        words += ["-o", f"sftp.args=-i identity -o UserKnownHostsFile=known_hosts{port}"]
    return words


def _nothing(_: Sheet) -> list[str]:
    """Of an engine whose commands nobody has written down here."""
    return []


HOW: Final = {"restic": _how, "borg": _how_borg}
