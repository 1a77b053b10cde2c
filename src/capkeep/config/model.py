"""The configuration as values: checked, defaults filled in, every setting with its origin."""

from collections.abc import Mapping
from dataclasses import dataclass

from capkeep.config.mistakes import Mistake, Place
from capkeep.config.read_data import ReadData
from capkeep.values import Glob, Keep, Location, SecretSource


@dataclass(frozen=True, kw_only=True)
class RepositoryConfig:
    """Where snapshots live, and what is needed to get there."""

    name: str
    engine: str
    program: str  # absolute path of the engine
    location: (
        Location  # a local one is resolved: no symbolic link in it; "pulled": its server has it
    )
    password: SecretSource  # an empty one where the engine knows none, or nobody here does
    credentials: tuple[tuple[str, SecretSource], ...] = ()  # environment variables, vault alone
    keeper_credentials: tuple[tuple[str, SecretSource], ...] = ()  # in place of those, to remove
    environment: tuple[tuple[str, str], ...] = ()
    identity: SecretSource | None = None  # private ssh key
    known_hosts: str = ""
    ca_file: str = ""
    port: int = 0
    region: str = ""
    remote_path: str = ""  # the engine's program on another machine
    engine_network: bool = False
    quota_bytes: int = 0  # 0: none
    key_exported: bool = False
    environment_folder: str = ""  # the virtual environment that the program lies in
    pulled_by: str = ""  # the public key of the server that has it: this host is a target
    target_keeps_password: bool = False  # it is a target's, and nobody here can open it
    owners: str = "metadata"  # of a mirror's files: "names" and "numbers" are for the disk too

    @property
    def secrets(self) -> tuple[SecretSource, ...]:
        """All its secrets, wherever they are used."""
        identity = (self.identity,) if self.identity else ()
        password = (self.password,) if self.password != SecretSource() else ()
        credentials = (*self.credentials, *self.keeper_credentials)
        return (*password, *(source for _, source in credentials), *identity)


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What a job may take of the machine and the network; 0 or "" is no limit."""

    nice: int
    io_class: str  # "best-effort", "idle"
    io_priority: int
    cpu_percent: int
    memory_bytes: int
    upload_bytes: int  # a second
    download_bytes: int
    lock_wait_seconds: int
    retries: int
    retry_wait_seconds: int


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
    schedule: tuple[str, ...]  # calendar expressions (systemd.time(7))
    resources: ResourcesConfig
    check: "CheckConfig | None" = None
    retention: "RetentionConfig | None" = None
    drill: "DrillConfig | None" = None
    copies: "CopiesConfig | None" = None
    notify: tuple[str, ...] = ()  # channels that are told of it; none named: all
    dumps: tuple[str, ...] = ()
    before: tuple[str, ...] = ()  # names of hooks
    after: tuple[str, ...] = ()
    on_success: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()
    spread_seconds: int = 0
    on_battery: bool = False
    on_metered: bool = False
    target: str = ""  # the host whose files these are; "" for this one


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """When a job's repositories are checked, and how much of their data is read."""

    after_backup: bool
    schedule: tuple[str, ...]
    read_data: ReadData


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Which of a job's snapshots stay, and when the others go."""

    keep: Keep
    prune: bool
    after_backup: bool
    schedule: tuple[str, ...]
    trust_clock: bool


@dataclass(frozen=True, kw_only=True)
class DrillConfig:
    """When and how much of a job's snapshots is restored for a moment, and compared."""

    after_backup: bool
    schedule: tuple[str, ...]
    sample: int  # files
    whole: bool  # every file instead
    max_bytes: int  # restored at a time
    timeout_seconds: int
    always: tuple[str, ...]  # paths
    scratch: str  # "" for the room's own cache
    old_every: int  # 0: never an old snapshot
    dumps: bool


@dataclass(frozen=True, kw_only=True)
class CopiesConfig:
    """Which of a job's snapshots are copied into further repositories, and when."""

    origin: str  # one of the job's repositories
    targets: tuple[str, ...]
    after_backup: bool
    schedule: tuple[str, ...]
    keep: Keep  # all are where it chooses none


@dataclass(frozen=True, kw_only=True)
class NotifyConfig:
    """Who is told of runs, and how."""

    name: str
    kind: str
    when: str
    jobs: tuple[str, ...]  # empty: all
    log: bool
    retry_seconds: int
    ca_file: str = ""
    url: str = ""  # unless it is a secret
    headers: tuple[tuple[str, str], ...] = ()  # those that are no secrets
    to: tuple[str, ...] = ()
    sender: str = ""
    host: str = ""
    port: int = 0
    tls: str = ""
    user: str = ""
    program: str = ""
    files: tuple[str, ...] = ()  # that the program reads
    secrets: tuple[tuple[str, SecretSource], ...] = ()  # by what they are for: "url", "password", …


@dataclass(frozen=True, kw_only=True)
class DumpConfig:
    """What to write out before a backup, as whom, and how."""

    name: str
    kind: str
    user: str
    databases: tuple[str, ...] = ()  # none: all
    exclude_databases: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()  # as written: links are followed by host.lent
    socket: str = ""  # of a directory or a socket; likewise
    port: int = 5432
    program: str = ""  # "" where the room chooses by the server's version
    command: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()  # files through which it tells a server that it reads
    timeout_seconds: int = 4 * 3600
    optional: bool = False
    stream: bool = False


@dataclass(frozen=True, kw_only=True)
class HookConfig:
    """A command before or after a backup, as whom it runs, and all that it may do."""

    name: str
    command: tuple[str, ...]
    user: str
    network: bool = False
    read: tuple[str, ...] = ()  # as written: links are followed by host.lent
    write: tuple[str, ...] = ()  # likewise
    sockets: tuple[str, ...] = ()  # likewise; of sockets or directories
    capabilities: tuple[str, ...] = ()
    polkit: str = ""  # a right of its user's: "ACTION" or "ACTION NAME=VALUE …"
    timeout_seconds: int = 300
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """A host whose files jobs of this one take, and how it is reached."""

    name: str
    host: str
    user: str
    host_keys: tuple[str, ...]
    identity: SecretSource  # private ssh key
    port: int = 22
    jump: str = ""
    jump_keys: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()
    host_name: str  # in its snapshots
    way: str = "engine"  # or "sftp"


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Names of capkeep's users on this host, and who starts its rooms."""

    user_prefix: str
    group: str
    start: str  # "auto", "systemd", "doors", "launcher"
    accept_missing: tuple[str, ...]  # of values.MAY_BE_MISSING
    members_restore: bool = False
    launcher_mark: str = "ep"  # "ep", "ei": of setcap(8)


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Resource limits of every room; None: the room's own default."""

    memory_bytes: int | None
    processes: int | None
    free_space_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """How runs that should have happened are found."""

    every_seconds: int
    grace_seconds: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that the configuration says."""

    directory: str
    files: tuple[str, ...]
    repositories: tuple[RepositoryConfig, ...]
    jobs: tuple[JobConfig, ...]
    host: HostConfig
    limits: LimitsConfig
    watch: WatchConfig
    settings: Mapping[str, "Setting"]  # effective settings by dotted key
    notify: tuple[NotifyConfig, ...] = ()
    metrics_directory: str = ""
    remarks: tuple[Mistake, ...] = ()
    dumps: tuple[DumpConfig, ...] = ()
    hooks: tuple[HookConfig, ...] = ()
    targets: tuple[TargetConfig, ...] = ()
    after_pulls: tuple[str, ...] = ()  # names of hooks
    parallel_pulls: int | None = None  # None: as many as there are processors; 0: all


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One effective setting, as it would be written, and where it was; None: built in."""

    value: object
    place: Place | None
