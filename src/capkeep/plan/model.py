"""The compiled plan: everything that a run or a room needs, decided once, at `apply`.

Named tuples rather than dataclasses: every room's program reads these values, and importing
`dataclasses` costs a room 8 ms of its start, `typing` 3 ms (CPython 3.11).
Paths are absolute strings. No secret is ever in here, only where a secret comes from.
"""

from enum import StrEnum
from typing import NamedTuple

from capkeep.plan.places import Mode as Mode
from capkeep.plan.places import Places as Places
from capkeep.values import SecretSource as SecretSource

PLAN_VERSION = 1
NOBODY_YET = -1  # Brief.peer_uid of a runner that is started ahead of its caller


class RoomKind(StrEnum):
    """The one purpose of a room."""

    RUNNER = "runner"
    READER = "reader"
    VAULT = "vault"
    KEEPER = "keeper"
    VIEWER = "viewer"  # lists and compares snapshots for root; no capability
    RESTORER = "restorer"


class View(StrEnum):
    """What a room's root directory shows."""

    HOST = "host"  # the machine's filesystems, read-only, at their real paths
    TOOLS = "tools"  # programs and nothing of the machine


class Access(StrEnum):
    """What a wire allows towards the repository."""

    APPEND = "append"  # add and read; never remove or change
    ADMIN = "admin"  # the keeper's: may also remove


class Limits(NamedTuple):
    """Resource limits of a room, per process unless said otherwise (setrlimit(2))."""

    memory_bytes: int = 8 << 30  # RLIMIT_DATA
    processes: int = 512  # RLIMIT_NPROC: threads of the room's user
    open_files: int = 8192
    free_space_bytes: int = 256 << 20  # stop writing when a writable place has less than this


class Grant(NamedTuple):
    """What a room may do. bubblewrap and systemd units are two renderings of this value."""

    user: str
    uid: int
    gid: int
    capabilities: tuple[str, ...] = ()  # such as "CAP_DAC_READ_SEARCH"; the only ones it has
    view: View = View.TOOLS
    sources: tuple[str, ...] = ()  # HOST view: the paths whose filesystems must be visible
    read: tuple[str, ...] = ()  # bound read-only at their own paths (TOOLS view)
    write: tuple[str, ...] = ()  # bound writable at their own paths
    hide: tuple[str, ...] = ()  # HOST view: shown as empty
    network: bool = False
    limits: Limits = Limits()


class Secret(NamedTuple):
    """A secret that a room receives in memory, by name: `password` or an environment variable."""

    name: str
    source: SecretSource


class Door(NamedTuple):
    """A unix socket; whoever may connect may ask for that room's one job."""

    path: str
    uid: int
    gid: int
    mode: int
    connections: int = 1  # more callers at a time are turned away


class Wire(NamedTuple):
    """Which vault a room is connected to, and with what right."""

    vault: str  # the vault room's name
    access: Access


class Room(NamedTuple):
    """One room: who may ask, what it may do, and what it is connected to."""

    name: str
    kind: RoomKind
    grant: Grant
    door: Door | None = None  # a vault has none: it is reached by wire only
    job: str = ""
    repository: str = ""
    wire: Wire | None = None
    secrets: tuple[Secret, ...] = ()


class Repository(NamedTuple):
    """Where snapshots live, and how that place is reached."""

    name: str
    engine: str  # "restic"
    location: (
        str  # as written: "/srv/repo", "sftp:user@host:/path", "s3:https://…", "rest:https://…"
    )
    program: str  # absolute path of the engine
    environment: tuple[tuple[str, str], ...] = ()  # plain (not secret) settings for the vault
    options: tuple[
        tuple[str, str], ...
    ] = ()  # "known-hosts", "ca-file", "port", "region", "rclone"
    engine_network: bool = (
        False  # the engine itself gets the network: no vault, said in every record
    )


class Job(NamedTuple):
    """What to keep, and what counts as complete."""

    name: str
    repositories: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    may_miss: tuple[str, ...] = ()  # patterns of paths that need not be read
    one_file_system: bool = False
    canary: str = ""  # a root-only file that every snapshot must hold; "" for none
    max_shrink_percent: int = 50  # a source that lost more files or bytes than this is suspect
    allow_empty: tuple[str, ...] = ()  # sources that may be empty
    tags: tuple[str, ...] = ()
    host: str = ""  # the snapshot's host name
    timeout_seconds: int = 24 * 3600
    max_age_seconds: int = 0  # 0: no promise about the age of the last complete run


class Plan(NamedTuple):
    """All that `apply` decided."""

    mode: Mode
    places: Places
    group: int  # gid whose members may ask for runs
    interpreter: str  # absolute path of the Python that rooms run
    package: str  # directory that holds the capkeep package
    repositories: tuple[Repository, ...]
    jobs: tuple[Job, ...]
    rooms: tuple[Room, ...]
    capkeep_version: str
    created_users: tuple[str, ...] = ()  # users and groups made by apply, which remove takes away
    version: int = PLAN_VERSION

    def room(self, name: str) -> Room:
        """The room of that name. Raises KeyError."""
        return {r.name: r for r in self.rooms}[name]

    def job(self, name: str) -> Job:
        """The job of that name. Raises KeyError."""
        return {j.name: j for j in self.jobs}[name]

    def repository(self, name: str) -> Repository:
        """The repository of that name. Raises KeyError."""
        return {r.name: r for r in self.repositories}[name]


class Brief(NamedTuple):
    """What a room's program is told when it is started: its own part of the plan, and secrets.

    Handed over in memory (a sealed descriptor), never on a disk.
    """

    room: Room
    mode: Mode
    places: Places
    job: Job | None
    repository: Repository | None
    access: Access | None  # for a vault: what the wire that started it allows
    peer_uid: int  # who asked
    hostname: str
    host_namespaces: tuple[tuple[str, int], ...]  # name → inode on the host
    secrets: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()  # mount points below a source not shown, and why
