"""What the configuration may say: the tables as pydantic models, strict, with kebab-case keys.

The JSON Schema for editors comes from these models; so do the known keys and the value types.
What a setting needs beside its type (a file that exists, a repository of that name) is checked
later, so every key has a default here, and `required` is only told to the schema.
"""

# mypy: disable-error-code="explicit-any"
# pydantic's BaseModel has Any in the methods that it gives every model.

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    create_model,
)

from capkeep.config.mistakes import nearest
from capkeep.config.read_data import ReadData, read_read_data
from capkeep.engines import ENGINES
from capkeep.values import (
    MAY_BE_MISSING,
    SecretSource,
    ValueMistake,
    parse_cpu,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
)

SOURCE_HINT: Final = (
    'write { file = "/etc/capkeep/secrets/NAME" }, { credential = "NAME" }'
    ' or { command = ["/usr/bin/pass", "show", "NAME"] }'
)
SECRET_KEYS: Final = ("file", "credential", "command")


def _text(parse: Callable[[str], int], kind: str, example: str) -> Callable[[object], int]:
    """Reads a text by `parse`; says how such a text looks when it is none."""

    def read(value: object) -> int:
        if not isinstance(value, str):
            raise ValueMistake(
                f"must be {kind} in quotes, not {toml_kind(value)}", f'write "{example}"'
            )
        return parse(value)

    return read


def toml_kind(value: object) -> str:
    """What TOML calls a value's type."""
    for kind, name in _KINDS.items():
        if isinstance(value, kind):
            return name
    return "a date or time"


_KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a table",
}


def read_secret(value: object) -> SecretSource:
    """Where a secret comes from; never repeats a secret that was written in its place."""
    if isinstance(value, str):
        raise ValueMistake("a secret must not be written in the configuration", SOURCE_HINT)
    if not isinstance(value, dict):
        raise ValueMistake(f"must say where the secret is, not be {toml_kind(value)}", SOURCE_HINT)
    unknown = [str(k) for k in value if k not in SECRET_KEYS]
    if unknown or len(value) != 1:
        said = (
            f"does not know {', '.join(unknown)}" if unknown else "needs exactly one of the three"
        )
        raise ValueMistake(f"a secret's source {said}", SOURCE_HINT)
    ((key, source),) = value.items()
    if key == "command":
        return SecretSource(command=_command(source))
    if not isinstance(source, str) or not source:
        raise ValueMistake(f"{key} must be a text that is not empty", SOURCE_HINT)
    if key == "credential":
        return SecretSource(credential=_credential(source))
    if not source.startswith("/"):
        raise ValueMistake(f"{source!r} is not an absolute path", SOURCE_HINT)
    return SecretSource(file=source)


def read_text_or_secret(value: object) -> str | SecretSource:
    """A text that is no secret, or where the secret is."""
    return value if isinstance(value, str) else read_secret(value)


def read_texts(value: object) -> list[str]:
    """One text, or a list of them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise ValueMistake(
            f"must be a text or a list of texts, not {toml_kind(value)}", 'write "…" or ["…", "…"]'
        )
    return texts


def _credential(name: str) -> str:
    good = name.isascii() and name.isprintable() and "/" not in name and len(name) < 256
    if not good or name.startswith("."):
        raise ValueMistake(f"{name!r} is not a credential's name", "see systemd-creds(1)")
    return name


def _command(source: object) -> tuple[str, ...]:
    try:
        words = shlex.split(source) if isinstance(source, str) else source
    except ValueError as error:
        raise ValueMistake(f"the command has {str(error).lower()}", SOURCE_HINT) from error
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise ValueMistake("command must be a program and its arguments", SOURCE_HINT)
    if not words[0].startswith("/"):
        raise ValueMistake(f"program {words[0]!r} is not an absolute path", SOURCE_HINT)
    return tuple(words)


def _may_be_missing(name: str) -> str:
    if name not in MAY_BE_MISSING:
        guess = nearest(name.removesuffix("="), [n.lower() for n in MAY_BE_MISSING])
        named = next((n for n in MAY_BE_MISSING if n.lower() == guess), "")
        hint = f"did you mean {named}?" if named else f"known here: {', '.join(MAY_BE_MISSING)}"
        raise ValueMistake(f"{name!r} is no directive that rooms may do without", hint)
    return name


_SECRET_SCHEMA: Final = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "pattern": "^/"},
        "credential": {"type": "string"},
        "command": {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "string"},
            ]
        },
    },
}

Directive = Annotated[
    str, AfterValidator(_may_be_missing), WithJsonSchema({"enum": list(MAY_BE_MISSING)})
]
SecretText = Annotated[SecretSource, PlainValidator(read_secret), WithJsonSchema(_SECRET_SCHEMA)]
TextOrSecret = Annotated[
    str | SecretSource,
    PlainValidator(read_text_or_secret),
    WithJsonSchema({"anyOf": [{"type": "string"}, _SECRET_SCHEMA]}),
]
Texts = Annotated[
    list[str],
    PlainValidator(read_texts),
    WithJsonSchema({
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    }),
]  # fmt: skip
SizeText = Annotated[
    int,
    BeforeValidator(_text(parse_size, "a size", "8GiB")),
    WithJsonSchema({"type": "string", "examples": ["512M", "8GiB"]}),
]
DurationText = Annotated[
    int,
    BeforeValidator(_text(parse_duration, "a duration", "36h")),
    WithJsonSchema({"type": "string", "examples": ["36h", "1d 12h"]}),
]
PercentText = Annotated[
    int,
    BeforeValidator(_text(parse_percent, "a percentage", "50%")),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,3}%$"}),
]
ReadDataText = Annotated[
    ReadData,
    PlainValidator(read_read_data),
    WithJsonSchema({"type": "string", "examples": ["10%", "5G", "all", "rotate 30d"]}),
]
RateText = Annotated[
    int,
    BeforeValidator(_text(parse_rate, "a rate", "2MiB/s")),
    WithJsonSchema({"type": "string", "examples": ["512KiB/s", "2MiB/s"]}),
]
CpuText = Annotated[
    int,
    BeforeValidator(_text(parse_cpu, "a percentage of one processor", "150%")),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,6}%$"}),
]
NAME_PATTERN: Final = "^[a-z0-9][a-z0-9_-]{0,31}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def kebab(field: str) -> str:
    """The key as it is written in TOML."""
    return field.removesuffix("_").replace("_", "-")


class Table(BaseModel):
    """A table of the configuration: unknown keys are mistakes, nothing is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=kebab)


class Options(Table):
    """How a remote location is reached."""

    identity: SecretText = Field(
        default_factory=SecretSource, description="sftp, ssh: the private ssh key"
    )
    known_hosts: str = Field(
        default="", description="sftp, ssh: file with the host's key, as ssh-keyscan prints it"
    )
    ca_file: str = Field(
        default="", description="s3, rest: certificate authority that signed the server's (PEM)"
    )
    port: int = Field(default=0, ge=0, le=65535, description="sftp, ssh: port, 22 unless set")
    region: str = Field(default="", description="s3: region, where the endpoint needs one")
    remote_path: str = Field(
        default="", description='ssh: the engine\'s program there, "borg" unless set: "borg-1.4"'
    )


class Repository(Table):
    """Where snapshots live."""

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["engine"],
            "oneOf": [{"required": ["location"]}, {"required": ["pulled-by"]}],
        }
    )

    engine: str = Field(
        default="", description="The program that makes snapshots: restic, borg or rdiff-backup"
    )
    location: str = Field(
        default="",
        description="/path, sftp:user@host:/path, s3:https://host/bucket, rest:https://host/name,"
        " rclone:remote:path; of borg ssh://user@host/path; b2:, azure:, gs:, swift: with engine-network."
        " {target} in it stands for the name of a target: one repository for each",
    )
    pulled_by: str = Field(
        default="",
        description="In place of a location: the public ssh key of the server that comes for this"
        " host's files and has the repository",
    )
    password: SecretText = Field(
        default_factory=SecretSource, description="The repository's password"
    )
    password_kept_by: Literal["server", "target"] = Field(
        default="server",
        description="target: of a target's repository, the target alone has the password, and this host"
        " can open nothing of it",
    )
    credentials: dict[str, SecretText] = Field(
        default_factory=dict, description="Secret environment variables, for the vault alone"
    )
    keeper_credentials: dict[str, SecretText] = Field(
        default_factory=dict,
        description="Others for the keeper's vault, where the usual ones may only add",
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables that are no secrets"
    )
    options: Options = Field(default_factory=Options, description="ssh and TLS settings")
    owners: Literal["metadata", "names", "numbers"] = Field(
        default="metadata",
        description="rdiff-backup: whom the mirror's files belong to: the vault, with their owners in"
        " the metadata; or their owners, by the names or by the numbers that these have",
    )
    quota: SizeText = Field(
        default=0,
        description="restic and borg in a directory: backups are refused that would make it larger",
    )
    key_exported: bool = Field(
        default=False,
        description="The password is kept elsewhere too: do not remind of `capkeep key export`",
    )
    engine_network: bool = Field(
        default=False,
        description="Give the engine itself the network and the credentials: no vault between",
    )


class Check(Table):
    """Whether a job's repositories are whole, and how much of their data is read to know it."""

    after_backup: bool | None = Field(
        default=None, description="After each backup; unless set: if there is no schedule"
    )
    schedule: list[str] = Field(
        default_factory=list, description="When to check: calendar expressions of systemd.time(7)"
    )
    read_data: ReadDataText = Field(
        default=ReadData(),
        description='How much data is read: "" (structure only), "10%", "5G", "all", or'
        ' "rotate 30d": each check reads the next part, so that all is read every 30 days',
    )


class Keep(Table):
    """Which snapshots are chosen, by rules."""

    keep_last: int = Field(default=0, ge=0, description="The newest")
    keep_hourly: int = Field(default=0, ge=0, description="The newest of each of so many hours")
    keep_daily: int = Field(default=0, ge=0, description="… of so many days")
    keep_weekly: int = Field(default=0, ge=0, description="… of so many weeks")
    keep_monthly: int = Field(default=0, ge=0, description="… of so many months")
    keep_yearly: int = Field(default=0, ge=0, description="… of so many years")
    keep_within: DurationText = Field(
        default=0, description="All that are not this much older than the newest"
    )
    keep_tags: list[str] = Field(default_factory=list, description="All with one of these tags")


class Retention(Keep):
    """Which of a job's snapshots stay; without a keep-… all do."""

    prune: bool = Field(default=True, description="Remove data that no snapshot needs any more")
    after_backup: bool | None = Field(
        default=None, description="After each complete backup; unless set: if there is no schedule"
    )
    schedule: list[str] = Field(
        default_factory=list, description="When: calendar expressions of systemd.time(7)"
    )
    trust_clock: bool = Field(
        default=False,
        description="Remove snapshots though nothing keeps this host's clock right",
    )


class Drill(Table):
    """How much of a job's snapshots is restored for a moment, and compared with what it should be."""

    after_backup: bool = Field(default=False, description="After each complete backup too")
    schedule: list[str] = Field(
        default_factory=list, description="When: calendar expressions of systemd.time(7)"
    )
    sample: int = Field(
        default=200, ge=1, le=100_000, description="Files, chosen anew each time by size and age"
    )
    depth: Literal["sample", "all"] = Field(default="sample", description='"all": every file')
    max_size: SizeText = Field(
        default=1 << 30, description="Restored at a time; larger files are left out of samples"
    )
    timeout: DurationText = Field(
        default=6 * 3600, description="A drill that takes longer is stopped"
    )
    always: list[str] = Field(
        default_factory=list,
        description="Paths that every drill restores, with all that is below them",
    )
    scratch: str = Field(
        default="", description="Directory below which to restore; else the prover's own cache"
    )
    old_snapshots: int = Field(
        default=4, ge=0, description="Of so many drills one takes an older snapshot; 0: none"
    )
    dumps: bool = Field(
        default=True,
        description="Databases in the job's dumps are opened and counted too (sqlite)",
    )


class Copies(Keep):
    """Into which further repositories a job's snapshots are copied; without a keep-… all are."""

    repository: str = Field(
        default="", description="Which of the job's repositories is copied from; else its first"
    )
    into: list[str] = Field(
        default_factory=list, description="Names of repositories of the same engine"
    )
    after_backup: bool | None = Field(
        default=None, description="After each complete backup; unless set: if there is no schedule"
    )
    schedule: list[str] = Field(
        default_factory=list, description="When: calendar expressions of systemd.time(7)"
    )


class JobDefaults(Table):
    """What holds for every job that does not say otherwise; a job's own list replaces this one."""

    repositories: list[str] = Field(default_factory=list, description="Names of repositories")
    exclude: list[str] = Field(default_factory=list, description="The engine's exclude patterns")
    exclude_from: list[str] = Field(
        default_factory=list, description="Files with one exclude pattern a line"
    )
    may_miss: list[str] = Field(
        default_factory=list,
        description="Paths that need not be read for a run to be complete: *, ?, ** in an"
        " absolute path or after **/; what is below is covered too",
    )
    one_file_system: bool = Field(default=False, description="Stay on each include's file system")
    canary: bool = Field(
        default=True, description="Every snapshot must hold capkeep's own root-only file"
    )
    max_shrink: PercentText = Field(
        default=50, description="An include that lost more files or bytes than this is suspect"
    )
    tags: list[str] = Field(default_factory=list, description="Tags of every snapshot")
    host: str = Field(default="", description="Host name in the snapshots; else this host's own")
    timeout: DurationText = Field(default=86400, description="A run that takes longer is stopped")
    max_age: DurationText = Field(
        default=0, description="The last complete run must not be older than this"
    )
    schedule: list[str] = Field(
        default_factory=list,
        description='When to run: calendar expressions of systemd.time(7), such as "00:00" or'
        ' "Sun 04:00"',
    )
    spread: DurationText = Field(
        default=0,
        description="Scheduled runs begin up to so much later, by as much every time on one host",
    )
    on_battery: bool = Field(default=False, description="Scheduled runs also on battery")
    on_metered: bool = Field(
        default=False,
        description="Scheduled runs into remote repositories also over a metered network",
    )
    check: Check | None = Field(default=None, description="When and how repositories are checked")
    retention: Retention | None = Field(default=None, description="Which snapshots stay")
    drill: Drill | None = Field(default=None, description="Restores that are compared")
    copies: Copies | None = Field(
        default=None, description="Into which further repositories its snapshots are copied"
    )
    notify: list[str] = Field(
        default_factory=list, description="Channels that are told of its runs; all unless set"
    )
    nice: int = Field(
        default=0, ge=0, le=19, description="How much the reader steps back for others: nice(1)"
    )
    io_class: Literal["", "best-effort", "idle"] = Field(
        default="", description="The reader's turn at the disk: ionice(1)"
    )
    io_priority: int = Field(
        default=4, ge=0, le=7, description="Within best-effort: 0 comes first, 7 last"
    )
    cpu_limit: CpuText = Field(
        default=0, description="Processor time of the reader: percent of one processor"
    )
    memory_limit: SizeText = Field(
        default=0, description="Memory of the reader: of each process, and under systemd of all"
    )
    upload_limit: RateText = Field(
        default=0, description="Bytes per second into each of the job's repositories"
    )
    download_limit: RateText = Field(
        default=0, description="Bytes per second out of each of the job's repositories"
    )
    before: list[str] = Field(
        default_factory=list, description="Hooks that run before everything else of a backup"
    )
    after: list[str] = Field(
        default_factory=list,
        description="Hooks that run when all has been read, whatever came of it",
    )
    on_success: list[str] = Field(
        default_factory=list, description="Hooks that run at the end of a complete backup"
    )
    on_failure: list[str] = Field(
        default_factory=list, description="Hooks that run at the end of any other backup"
    )
    lock_wait: DurationText = Field(
        default=0, description="Wait so long for another run, or a locked repository, to end"
    )
    retries: int = Field(
        default=0, ge=0, le=20, description="Try again so often when a repository is out of reach"
    )
    retry_wait: DurationText = Field(
        default=30, description="Before the first of these tries; twice as long before each next"
    )


class Job(JobDefaults):
    """What to keep, and what counts as complete."""

    include: list[str] = Field(default_factory=list, description="Absolute paths to keep")
    include_from: list[str] = Field(
        default_factory=list, description="Files with one absolute path a line"
    )
    allow_empty: list[str] = Field(default_factory=list, description="Includes that may be empty")
    dumps: list[str] = Field(
        default_factory=list,
        description='Names of dumps, taken before every backup and part of it; "*" for all there are',
    )
    targets: list[str] = Field(
        default_factory=list,
        description='Whose files these are, in place of this host\'s: names of targets, "@" and the name'
        ' of a group, "@all"',
    )


class Pull(Table):
    """What holds for all targets."""

    identity: SecretText = Field(
        default_factory=SecretSource,
        description="The private ssh key to log in with; {target} stands for the target's name",
    )
    parallel: int | None = Field(
        default=None, ge=0, le=10_000,
        description="Targets that are worked on at a time: as many as there are processors unless set;"
        " 0: all",
    )  # fmt: skip
    after: list[str] = Field(
        default_factory=list, description="Hooks that run when no target is left to be pulled from"
    )


class Target(Table):
    """A host whose files this one comes for, over ssh."""

    model_config = ConfigDict(json_schema_extra={"required": ["host-key"]})

    host: str = Field(default="", description="Its name or address; the table's name unless set")
    host_name: str = Field(
        default="", description="Host name in its snapshots; the table's name unless set"
    )
    host_key: Texts = Field(
        default_factory=list,
        description="Its public host keys, as `capkeep target scan` prints them: no other is believed",
    )
    user: str = Field(default="capkeep-answerer", description="Whom to log in as there")
    port: int = Field(default=22, ge=1, le=65535, description="Where its ssh server listens")
    jump: str = Field(
        default="", description="A host on the way to it: user@host or user@host:port"
    )
    jump_host_key: Texts = Field(
        default_factory=list, description="That one's public host keys: no other is believed"
    )
    identity: SecretText = Field(
        default_factory=SecretSource,
        description="The private ssh key to log in with, in place of [pull]'s",
    )
    groups: list[str] = Field(
        default_factory=list, description='Groups that it is in; jobs name one as "@GROUP"'
    )
    way: Literal["engine", "sftp"] = Field(
        default="engine",
        description="Who reads its files: capkeep and an engine there, or a room here, through an"
        " sftp-server there, which loses what SFTP does not carry",
    )
    options: dict[str, str] = Field(
        default_factory=dict,
        description="Of ssh_config(5): Compression, Ciphers, MACs, KexAlgorithms, HostKeyAlgorithms,"
        " IPQoS, AddressFamily, BindAddress, ConnectTimeout",
    )


class Dump(Table):
    """What a server holds, written out before a backup by a room of its own."""

    kind: str = Field(
        default="",
        description="postgresql, mariadb, mysql, sqlite, redis, valkey, ldap or command; the table's"
        " name unless set",
    )
    user: str = Field(
        default="",
        description="Whom the room runs as; as Debian's package of the server unless set, and for"
        " sqlite the file's owner",
    )
    databases: list[str] = Field(
        default_factory=list, description="postgresql, mariadb, mysql: these only; else all"
    )
    exclude_databases: list[str] = Field(
        default_factory=list, description="postgresql, mariadb, mysql: all but these"
    )
    paths: list[str] = Field(
        default_factory=list,
        description="sqlite: the databases; ldap, command: what the room may read beside programs",
    )
    socket: str = Field(
        default="",
        description="The server's unix socket; postgresql: its directory; command: what it may reach",
    )
    port: int = Field(
        default=5432, ge=1, le=65535, description="postgresql: the number in its socket's name"
    )
    program: str = Field(
        default="", description="Absolute path of what makes the dump; else Debian's"
    )
    command: list[str] = Field(
        default_factory=list,
        description="command: a program and its arguments; what it prints is kept",
    )
    timeout: DurationText = Field(
        default=4 * 3600, description="A dump that takes longer is stopped"
    )
    optional: bool = Field(default=False, description="A dump that fails does not fail the run")
    stream: bool = Field(
        default=False,
        description="Straight into the repositories, as snapshots of its own, without touching the disk",
    )


class Hook(Table):
    """A command of the administrator's, in a room of its own with nothing but what is stated here."""

    model_config = ConfigDict(json_schema_extra={"required": ["command"]})

    command: list[str] = Field(
        default_factory=list, description="A program by its absolute path, and its arguments"
    )
    user: str = Field(
        default="", description="Whom it runs as: a user that is there already, never root"
    )
    network: bool = Field(default=False, description="It has the network")
    read: list[str] = Field(
        default_factory=list, description="What it sees beside the system's programs"
    )
    write: list[str] = Field(
        default_factory=list, description="Where it may write, as far as its user may"
    )
    sockets: list[str] = Field(
        default_factory=list, description="Unix sockets, or directories of them, that it may reach"
    )
    capabilities: list[str] = Field(
        default_factory=list,
        description="CAP_DAC_READ_SEARCH: it reads what it sees, whoever's that is",
    )
    polkit: str = Field(
        default="",
        description="The one right that polkit gives its user: ACTION, or ACTION NAME=VALUE…",
    )
    timeout: DurationText = Field(default=300, description="If it takes longer it has failed")
    optional: bool = Field(default=False, description="If it fails the run has not")


class Notify(Table):
    """Who is told of runs, and how."""

    kind: Literal["", "mail", "healthchecks", "webhook", "ntfy", "apprise"] = Field(
        default="", description="How; unless set, the table's name says it"
    )
    when: Literal["", "failure", "always", "change"] = Field(
        default="", description="Of which runs: failure unless set; healthchecks: always"
    )
    jobs: list[str] = Field(default_factory=list, description="Of which jobs; all unless set")
    log: bool = Field(default=True, description="mail, healthchecks: the log goes along")
    retry_for: DurationText = Field(
        default=600, description="For so long it is tried; then again with the next run"
    )
    ca_file: str = Field(
        default="", description="Certificate authority that signed the server's (PEM)"
    )
    to: Texts = Field(default_factory=list, description="mail: whom to write to")
    from_: str = Field(default="", description="mail: the sender; capkeep@HOST unless set")
    smtp: str = Field(
        default="", description="mail: host:port of the server, localhost:25 unless set"
    )
    tls: Literal["", "starttls", "tls", "none"] = Field(
        default="",
        description="mail: unless set, tls on port 465, none to this host itself, else starttls",
    )
    user: str = Field(default="", description="mail: log in as")
    password: SecretText = Field(
        default_factory=SecretSource, description="mail: the password of that user"
    )
    sendmail: str = Field(
        default="", description="mail: a program that takes mail as sendmail does, such as msmtp"
    )
    sendmail_files: list[str] = Field(
        default_factory=list, description="mail: files that this program reads"
    )
    url: TextOrSecret = Field(
        default="", description="healthchecks, webhook, ntfy: where to; a secret, or a text"
    )
    headers: dict[str, TextOrSecret] = Field(
        default_factory=dict, description="webhook, ntfy: more header fields; secrets, or texts"
    )
    token: SecretText = Field(default_factory=SecretSource, description="ntfy: the access token")
    urls: list[SecretText] = Field(
        default_factory=list, description="apprise: where to, as Apprise writes it"
    )


class Metrics(Table):
    """Numbers for monitoring."""

    directory: str = Field(
        default="", description="Where node_exporter's textfile collector looks for capkeep.prom"
    )


class Host(Table):
    """capkeep's users on this host."""

    user_prefix: str = Field(
        default="capkeep",
        pattern="^[a-z_][a-z0-9_-]{0,22}$",
        description="Users are PREFIX, PREFIX-reader, PREFIX-vault, …",
    )
    group: str = Field(
        default="",
        pattern="^([a-z_][a-z0-9_-]{0,31})?$",
        description="Group whose members may ask for runs; the prefix unless set",
    )
    start: Literal["auto", "systemd", "doors", "launcher"] = Field(
        default="auto",
        description="Who starts the rooms: systemd's sockets, `capkeep doors`, or their one user with"
        " a launcher for each reader; auto is systemd where it runs this host, unless below --prefix",
    )
    launcher_mark: Literal["ep", "ei"] = Field(
        default="ep",
        description="What launchers are marked with (setcap(8)): ep gives the capability to their"
        " user, ei only where his login has made it inheritable (pam_cap)",
    )
    accept_missing: list[Directive] = Field(
        default_factory=list,
        description="systemd's directives that this host cannot give, and that rooms may do without;"
        " every record says so",
    )
    members_restore: bool = Field(
        default=False,
        description="Whether members of the group may list and restore, by themselves, what they could"
        " read on this host when it was backed up",
    )


class Limits(Table):
    """Resource limits of every room."""

    memory: SizeText = Field(default=8 << 30, description="Memory of one process")
    processes: int = Field(default=512, ge=16, le=65536, description="Processes and threads")
    free_space: SizeText = Field(
        default=256 << 20, description="Stop when a place that is written to has less than this"
    )


class Watch(Table):
    """How runs that should have happened are found."""

    every: DurationText = Field(default=600, description="How often is looked")
    grace: DurationText = Field(
        default=900, description="A run that has not begun so long after its time is missed"
    )


class Engine(Table):
    """An engine on this host."""

    program: str = Field(
        default="", description="Absolute path; else looked for in /usr/bin and /usr/local/bin"
    )


if TYPE_CHECKING:
    Engines = Table
else:
    Engines = create_model(
        "Engines", __base__=Table, __doc__="The engines on this host.",
        **{
            name.replace("-", "_"): (Engine, Field(default_factory=Engine)) for name in ENGINES
        },
    )  # fmt: skip


class Document(Table):
    """A configuration for capkeep: capkeep.toml and the drop-ins in conf.d."""

    repositories: dict[Name, Repository] = Field(default_factory=dict)
    jobs: dict[Name, Job] = Field(default_factory=dict)
    dumps: dict[Name, Dump] = Field(default_factory=dict)
    hooks: dict[Name, Hook] = Field(default_factory=dict)
    targets: dict[Name, Target] = Field(default_factory=dict)
    pull: Pull = Field(default_factory=Pull)
    defaults: JobDefaults = Field(default_factory=JobDefaults)
    notify: dict[Name, Notify] = Field(default_factory=dict)
    metrics: Metrics = Field(default_factory=Metrics)
    host: Host = Field(default_factory=Host)
    limits: Limits = Field(default_factory=Limits)
    watch: Watch = Field(default_factory=Watch)
    engines: Engines = Field(default_factory=Engines)
