"""The configuration as values: checked, defaults filled in, every setting with its origin."""

from collections.abc import Mapping
from dataclasses import dataclass

from capkeep.config.mistakes import Mistake, Place
from capkeep.values import Glob, Location, SecretSource


@dataclass(frozen=True, kw_only=True)
class RepositoryConfig:
    """Where snapshots live, and what is needed to get there."""

    name: str
    engine: str
    program: str  # absolute path of the engine
    location: Location  # a local one is resolved: no symbolic link in it
    password: SecretSource
    credentials: tuple[tuple[str, SecretSource], ...] = ()  # environment variables, vault alone
    environment: tuple[tuple[str, str], ...] = ()
    identity: SecretSource | None = None  # private ssh key
    known_hosts: str = ""
    ca_file: str = ""
    port: int = 0
    region: str = ""
    engine_network: bool = False

    @property
    def secrets(self) -> tuple[SecretSource, ...]:
        """All its secrets, wherever they are used."""
        identity = (self.identity,) if self.identity else ()
        return (self.password, *(source for _, source in self.credentials), *identity)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What to keep, in which repositories, and what counts as complete."""

    name: str
    repositories: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    may_miss: tuple[Glob, ...]
    allow_empty: tuple[str, ...]
    one_file_system: bool
    canary: bool
    max_shrink_percent: int
    tags: tuple[str, ...]
    host: str  # "" for the host's own name
    timeout_seconds: int
    max_age_seconds: int  # 0: no promise


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Names of capkeep's users on this host."""

    user_prefix: str
    group: str


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Resource limits of every room; None: the room's own default."""

    memory_bytes: int | None
    processes: int | None
    free_space_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that the configuration says."""

    directory: str
    files: tuple[str, ...]
    repositories: tuple[RepositoryConfig, ...]
    jobs: tuple[JobConfig, ...]
    host: HostConfig
    limits: LimitsConfig
    settings: Mapping[str, "Setting"]  # effective settings by dotted key
    remarks: tuple[Mistake, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One effective setting, as it would be written, and where it was; None: built in."""

    value: object
    place: Place | None
