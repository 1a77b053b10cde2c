"""What the configuration may say: the tables as pydantic models, strict, with kebab-case keys.

The JSON Schema for editors comes from these models; so do the known keys and the value types.
What a setting needs beside its type (a file that exists, a repository of that name) is checked
later, so every key has a default here, and `required` is only told to the schema.
"""

# mypy: disable-error-code="explicit-any"
# pydantic's BaseModel has Any in the methods that it gives every model.

import shlex
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from capkeep.values import (
    SecretSource,
    ValueMistake,
    parse_duration,
    parse_percent,
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

SecretText = Annotated[SecretSource, PlainValidator(read_secret), WithJsonSchema(_SECRET_SCHEMA)]
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
NAME_PATTERN: Final = "^[a-z0-9][a-z0-9_-]{0,31}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def kebab(field: str) -> str:
    """The key as it is written in TOML."""
    return field.replace("_", "-")


class Table(BaseModel):
    """A table of the configuration: unknown keys are mistakes, nothing is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=kebab)


class Options(Table):
    """How a remote location is reached."""

    identity: SecretText = Field(
        default_factory=SecretSource, description="sftp: the private ssh key"
    )
    known_hosts: str = Field(
        default="", description="sftp: file with the host's key, as ssh-keyscan prints it"
    )
    ca_file: str = Field(
        default="", description="s3, rest: certificate authority that signed the server's (PEM)"
    )
    port: int = Field(default=0, ge=0, le=65535, description="sftp: port, 22 unless set")
    region: str = Field(default="", description="s3: region, where the endpoint needs one")


class Repository(Table):
    """Where snapshots live."""

    model_config = ConfigDict(json_schema_extra={"required": ["engine", "location", "password"]})

    engine: str = Field(default="", description="The program that makes snapshots: restic")
    location: str = Field(
        default="",
        description="/path, sftp:user@host:/path, s3:https://host/bucket, rest:https://host/name,"
        " rclone:remote:path; b2:, azure:, gs:, swift: with engine-network",
    )
    password: SecretText = Field(
        default_factory=SecretSource, description="The repository's password"
    )
    credentials: dict[str, SecretText] = Field(
        default_factory=dict, description="Secret environment variables, for the vault alone"
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables that are no secrets"
    )
    options: Options = Field(default_factory=Options, description="ssh and TLS settings")
    engine_network: bool = Field(
        default=False,
        description="Give the engine itself the network and the credentials: no vault between",
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


class Job(JobDefaults):
    """What to keep, and what counts as complete."""

    include: list[str] = Field(default_factory=list, description="Absolute paths to keep")
    include_from: list[str] = Field(
        default_factory=list, description="Files with one absolute path a line"
    )
    allow_empty: list[str] = Field(default_factory=list, description="Includes that may be empty")


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


class Limits(Table):
    """Resource limits of every room."""

    memory: SizeText = Field(default=8 << 30, description="Memory of one process")
    processes: int = Field(default=512, ge=16, le=65536, description="Processes and threads")
    free_space: SizeText = Field(
        default=256 << 20, description="Stop when a place that is written to has less than this"
    )


class Engine(Table):
    """An engine on this host."""

    program: str = Field(
        default="", description="Absolute path; else looked for in /usr/bin and /usr/local/bin"
    )


class Engines(Table):
    """The engines on this host."""

    restic: Engine = Field(default_factory=Engine)


class Document(Table):
    """A configuration for capkeep: capkeep.toml and the drop-ins in conf.d."""

    repositories: dict[Name, Repository] = Field(default_factory=dict)
    jobs: dict[Name, Job] = Field(default_factory=dict)
    defaults: JobDefaults = Field(default_factory=JobDefaults)
    host: Host = Field(default_factory=Host)
    limits: Limits = Field(default_factory=Limits)
    engines: Engines = Field(default_factory=Engines)
