"""The compiled plan: everything that a run or a room needs, decided once, at `apply`.

Named tuples rather than dataclasses: every room's program reads these values, and importing
`dataclasses` costs a room 8 ms of its start, `typing` 3 ms (CPython 3.11).
Paths are absolute strings. No secret is ever in here, only where a secret comes from.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.plan.places import Mode as Mode
from capkeep.plan.places import Places as Places
from capkeep.values import Keep, is_at_or_below
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
    NOTIFIER = "notifier"  # tells people and machines outside; has the network and no file
    DUMPER = "dumper"  # writes out what a server holds, as that server's own user
    HOOK = "hook"  # runs a command of the administrator's, with what the configuration grants it
    PROVER = "prover"  # restores a part of a snapshot for a moment, and compares it
    COPIER = "copier"  # copies snapshots from one repository into another; sees no file
    GIVER = "giver"  # gives members of the group what they could read themselves; no capability
    PULLER = "puller"  # stands for the reader of another host, which it reaches over ssh
    MOUNTER = "mounter"  # reads another host's files through a mount of its own; has no network
    LINK = "link"  # carries what that mount asks to that host's sftp-server, over ssh


# Those that run as users who are there already, and are not ours.
LENT: Final = frozenset((RoomKind.DUMPER, RoomKind.HOOK))
# Those that every member of the group may ask.
OPEN_TO_MEMBERS: Final = frozenset((RoomKind.RUNNER, RoomKind.GIVER))
# Those that are reached by wire only, and have no door: whoever has the wire starts one for himself.
WIRED: Final = frozenset((RoomKind.VAULT, RoomKind.LINK))
# Those that run as the user of another kind: a link is half a puller.
SHARED: Final = frozenset((RoomKind.GIVER, RoomKind.LINK))


def room_user(prefix: str, kind: RoomKind) -> str:
    """The user that rooms of a kind run as; the runner's is the prefix alone."""
    return prefix if kind is RoomKind.RUNNER else f"{prefix}-{kind}"


def room_users(prefix: str) -> tuple[str, ...]:
    """All of them, the runner's first."""
    own = (kind for kind in RoomKind if kind not in LENT | SHARED)
    return tuple(room_user(prefix, kind) for kind in own)


class Starter(StrEnum):
    """Who starts the rooms when somebody connects to their sockets."""

    DOORS = "doors"  # `capkeep doors`, through bubblewrap
    SYSTEMD = "systemd"  # socket units
    LAUNCHER = "launcher"  # the rooms' one user; readers by programs that carry the capability


class View(StrEnum):
    """What a room's root directory shows."""

    HOST = "host"  # the machine's filesystems, read-only, at their real paths
    TOOLS = "tools"  # programs and nothing of the machine


class Access(StrEnum):
    """What a wire allows towards the repository."""

    APPEND = "append"  # add and read; never remove or change
    ADMIN = "admin"  # the keeper's: may also remove
    READ = "read"  # read, and make locks of its own; add nothing else
    COPY = "copy"  # as APPEND, for copiers: where each right has a socket, it has one owner


class Limits(NamedTuple):
    """Resource limits of a room, per process unless said otherwise (setrlimit(2))."""

    memory_bytes: int = 8 << 30  # RLIMIT_DATA
    processes: int = 512  # RLIMIT_NPROC: threads of the room's user
    open_files: int = 8192
    free_space_bytes: int = 256 << 20  # stop writing when a writable place has less than this
    nice: int = 0  # nice(2)
    io_class: str = ""  # "best-effort", "idle": ioprio_set(2); "" leaves it as it is
    io_priority: int = 4
    cpu_percent: int = 0  # of one processor; 0 for no limit
    all_memory_bytes: int = 0  # of the room's processes together, where systemd starts it


# For giving a user namespace its ids (user_namespaces(7)); given up with that, before any engine.
MAPPING_CAPABILITIES: Final = ("CAP_SETGID", "CAP_SETUID")
# For making one mount in the room's own namespace; given up with that, before anything foreign is read.
MOUNTING_CAPABILITIES: Final = ("CAP_SETPCAP", "CAP_SYS_ADMIN")


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
    sockets: tuple[str, ...] = ()  # directories of unix sockets that it may connect to, if there
    shared: tuple[str, ...] = ()  # directories of the user's own, bound writable, if there
    groups: tuple[int, ...] = ()  # further ones of a user that is only lent: systemd joins them
    # First and number of ids that belong to the user and to nobody else: the room makes itself a
    # user namespace in which files can have their own owners, and has its capabilities there alone.
    subordinate: tuple[int, int] = (0, 0)
    servers: bool = False  # starts servers of its own for a moment, on unix sockets
    callers: bool = False  # it decides by who its caller is: by the host's own ids
    mounts: bool = False  # makes itself a mount that a program in it answers for (fuse(4))

    @property
    def held_first(self) -> tuple[str, ...]:
        """The capabilities that a room is started with; with a namespace of its own to be made, others."""
        if self.mounts:
            return MOUNTING_CAPABILITIES
        return MAPPING_CAPABILITIES if self.subordinate[1] else self.capabilities

    @property
    def changes_owners(self) -> bool:
        """Whether it may take files of this host from their owners, wherever it reaches any."""
        return not self.subordinate[1] and "CAP_CHOWN" in self.capabilities

    @property
    def writable(self) -> tuple[str, ...]:
        """Every place that is mounted writable in the room, whatever becomes of it."""
        return (*self.write, *self.shared)


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


class Origin(NamedTuple):
    """Where a room has what it keeps from, if not from files that it sees."""

    repository: str  # that a copier copies from; "" for a mounter, whose wire leads to its target
    wire: Wire


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
    dump: str = ""
    hook: str = ""
    origin: Origin | None = None  # of a copier or mounter

    @property
    def wires(self) -> tuple[Wire, ...]:
        """All of them."""
        origin = (self.origin.wire,) if self.origin else ()
        return (*((self.wire,) if self.wire else ()), *origin)


class NotifyKind(StrEnum):
    """How somebody outside is told."""

    MAIL = "mail"
    HEALTHCHECKS = "healthchecks"
    WEBHOOK = "webhook"
    NTFY = "ntfy"
    APPRISE = "apprise"


class When(StrEnum):
    """Of which runs a channel tells."""

    FAILURE = "failure"  # of every one that is not complete
    ALWAYS = "always"
    CHANGE = "change"  # of those that did not end as the one before


class Notify(NamedTuple):
    """A channel: who is told, how, and of what. Its secrets are the notifier's, as NAME.KEY."""

    name: str
    kind: NotifyKind
    when: When
    jobs: tuple[str, ...]  # of whose runs it tells
    repositories: tuple[str, ...]  # of which work on repositories, apart from jobs
    log: bool  # whether the log goes along
    retry_seconds: int  # for so long it is tried in one go
    ca_file: str = ""
    url: str = ""  # unless it is a secret
    headers: tuple[tuple[str, str], ...] = ()  # those that are no secrets
    to: tuple[str, ...] = ()
    sender: str = ""
    host: str = ""
    port: int = 0
    tls: str = ""  # "starttls", "tls", "none"
    user: str = ""
    program: str = ""  # takes mail on its standard input, in place of host and port


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
    ] = ()  # "known-hosts", "ca-file", "port", "region", "rclone", "remote-path"
    engine_network: bool = (
        False  # the engine itself gets the network: no vault, said in every record
    )
    key_exported: bool = False  # its password is kept elsewhere: nobody needs to be reminded
    environment_folder: str = (
        ""  # Python's, that the program lies in: rooms with the program see it
    )
    quota_bytes: int = 0  # who may only add may not add more than that in all; 0: no limit
    # On a target: the public key of the server that has the repository. Its readers are given their
    # wire, and unless they have a password of their own that too, by whoever asks them.
    pulled_by: str = ""
    # Of files of a mirror that belong to their owners: whom a "names" or "numbers" means. "": they
    # all belong to the vault, and who they were is in the metadata.
    owners: str = ""
    # The target whose files are in it has its password, and nobody here: it is made by the target's
    # engine, and whoever opens it here brings the password along.
    target_keeps_password: bool = False


def closed(repository: str) -> tuple[str, str]:
    """Why nobody here can look into a repository whose password its target keeps, and what to do."""
    return (
        f"nobody here can open repository {repository}: its target keeps the password",
        "root can bring it along for one command that looks or restores: --password-file FILE",
    )


class Way(StrEnum):
    """Who reads a target's files."""

    ENGINE = "engine"  # capkeep and an engine there
    SFTP = "sftp"  # a room here, by what an sftp-server there tells


class Target(NamedTuple):
    """A host whose files a job of this one takes: how its login is reached, over ssh."""

    name: str
    host: str  # name or address
    user: str
    host_keys: tuple[str, ...]  # "ssh-ed25519 AAAA…": the only ones that are believed
    port: int = 22
    jump: str = ""  # "user@host:port" of a host on the way; "" for none
    jump_keys: tuple[str, ...] = ()  # that one's host keys
    options: tuple[tuple[str, str], ...] = ()  # of ssh_config(5), from a fixed vocabulary
    way: Way = Way.ENGINE


class Answer(NamedTuple):
    """On a target: which key of a server's may ask which reader, and nothing else."""

    repository: str
    reader: str  # the room's name
    key: str  # public, as authorized_keys(5) has it, without options
    user: str  # the login
    uid: int
    gid: int


class Resources(NamedTuple):
    """What a job may take of the network, and how patient it is; 0 is no limit, or none at all."""

    upload_bytes: int = 0  # a second, into each repository
    download_bytes: int = 0
    lock_wait_seconds: int = 0
    retries: int = 0  # when a repository is out of reach
    retry_wait_seconds: int = 30  # before the first, then twice as long each time


class Check(NamedTuple):
    """When a job's repositories are checked, and how much of their data is read."""

    after_backup: bool = True
    schedule: tuple[str, ...] = ()  # calendar expressions (systemd.time(7))
    read_data: str = ""  # "", "all", "10%", "5120M"
    rotate_seconds: int = 0  # each check reads the next part, so that all is read in that time


class Drill(NamedTuple):
    """When and how much of a job's snapshots is restored for a moment, and compared."""

    after_backup: bool = False
    schedule: tuple[str, ...] = ()  # calendar expressions (systemd.time(7))
    sample: int = 200  # files
    whole: bool = False  # every file instead
    max_bytes: int = 1 << 30  # restored at a time
    timeout_seconds: int = 6 * 3600
    always: tuple[str, ...] = ()  # paths that every drill restores, with what is below them
    scratch: str = ""  # directory below which to restore; "" is the room's own cache
    old_every: int = 4  # of so many drills one takes an old snapshot; 0 for none
    dumps: bool = True  # what dumps have written is loaded, and compared with what they noted


class Retention(NamedTuple):
    """Which of a job's snapshots stay, and when the others go."""

    keep: Keep
    prune: bool = True
    after_backup: bool = True
    schedule: tuple[str, ...] = ()  # calendar expressions (systemd.time(7))
    trust_clock: bool = False  # remove snapshots though nothing keeps the clock right


class Copy(NamedTuple):
    """From which of a job's repositories its snapshots are copied, into which others, and when."""

    origin: str
    targets: tuple[str, ...]
    keep: Keep = Keep()  # those are copied that such rules would keep; all without any
    after_backup: bool = True
    schedule: tuple[str, ...] = ()  # calendar expressions (systemd.time(7))


def job_tag(job: str) -> str:
    """The tag by which a job's snapshots are known, beside their host."""
    return f"capkeep:{job}"


class Hooks(NamedTuple):
    """The hooks of a job's backups, by name, in their order."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    on_success: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()


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
    schedule: tuple[str, ...] = ()  # calendar expressions (systemd.time(7))
    check: Check | None = None
    retention: Retention | None = None
    dumps: tuple[str, ...] = ()  # made before every backup; their directories are in `include`
    spread_seconds: int = 0  # scheduled runs begin up to so much later, on each host by as much
    on_battery: bool = False  # scheduled runs also then
    on_metered: bool = False
    resources: Resources = Resources()
    hooks: Hooks = Hooks()
    drill: Drill | None = None
    copies: Copy | None = None
    target: str = ""  # the host whose files these are; "" for this one

    @property
    def renumbered(self) -> bool:
        """Whether files have other inode numbers each time: they are looked at through a mount."""
        return bool(self.target)

    def holds(self, path: str) -> bool:
        """Whether that plain path is a source's, or the canary."""
        tops = (*self.include, self.canary) if self.canary else self.include
        plain = path.startswith("/") and "//" not in path and "\0" not in path
        return (
            plain and not {".", ".."} & {*path.split("/")}
            and any(is_at_or_below(path, top) for top in tops)
        )  # fmt: skip


UNFINISHED: Final = "unfinished"  # in a dump's directory: what is no dump yet
BEFORE: Final = "unfinished.before"  # the last good one, while the next takes its place


class Dump(NamedTuple):
    """What a room writes out before a backup: of which server, and how."""

    name: str
    kind: str  # of rooms.dumps.KINDS
    databases: tuple[str, ...] = ()  # none: all
    exclude_databases: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    socket: str = ""  # postgresql: its directory
    port: int = 5432
    program: str = ""  # "" where the room chooses by the server's version
    command: tuple[str, ...] = ()
    timeout_seconds: int = 4 * 3600
    optional: bool = False  # one that fails does not fail the run
    stream: bool = False  # into the repositories, as snapshots of its own


class Hook(NamedTuple):
    """A command that a room runs before or after a backup."""

    name: str
    command: tuple[str, ...]
    write: tuple[str, ...] = ()  # what is bound for it may be more: a directory above that is firm
    timeout_seconds: int = 300
    optional: bool = False  # one that fails does not fail the run
    polkit: str = ""  # the right that its user is given: "ACTION" or "ACTION NAME=VALUE …"


def stream_tag(job: str, dump: str) -> str:
    """The tag by which a job's snapshots of a dump are known, beside their host."""
    return f"capkeep:{job}:{dump}"


def stream_path(dump: str, file: str) -> str:
    """Where such a snapshot holds what was streamed: restic 0.18.0 can do no directories there."""
    return f"/{dump}.{file}"


class Watch(NamedTuple):
    """How runs that should have happened are found."""

    every_seconds: int = 600  # between two looks
    grace_seconds: int = 900  # a run that has not begun so long after its time is missed


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
    starter: Starter = Starter.DOORS
    accepted: tuple[str, ...] = ()  # systemd's directives that may be missing
    name: str = "capkeep"  # what users and units of this installation begin with
    created_users: tuple[str, ...] = ()  # users and groups made by apply, which remove takes away
    notify: tuple[Notify, ...] = ()
    metrics: str = ""  # directory for Prometheus' text files; "" for none
    version: int = PLAN_VERSION
    dumps: tuple[Dump, ...] = ()
    watch: Watch = Watch()
    hooks: tuple[Hook, ...] = ()
    targets: tuple[Target, ...] = ()
    after_pulls: tuple[str, ...] = ()  # hooks that run when no target is left to be pulled from
    parallel_pulls: int = 0  # jobs of targets that run at a time; 0: as many as there are
    launcher_mark: str = ""  # of kernel.launcher.Mark: where a launcher's capability comes from
    answers: tuple[Answer, ...] = ()
    # Of these: whose files are come for, and the repositories that are elsewhere. Nothing of them is
    # run, looked at or told of on this host.
    answered_jobs: tuple[Job, ...] = ()
    answered_repositories: tuple[Repository, ...] = ()

    @property
    def runner(self) -> Room:
        """The room that walks jobs through the others."""
        return next(r for r in self.rooms if r.kind is RoomKind.RUNNER)

    @property
    def opener(self) -> int:
        """The uid of whoever opens the doors, where systemd does not."""
        root = self.mode is Mode.SYSTEM and self.starter is not Starter.LAUNCHER
        return 0 if root else self.runner.grant.uid

    def launched(self, room: Room) -> bool:
        """Whether it is started by a launcher, in the machine's own namespaces."""
        return self.starter is Starter.LAUNCHER and room.kind is RoomKind.READER

    def mode_of(self, room: Room) -> Mode:
        """How a room is made: without a root parent as in user mode, by the rooms' one user.

        A restorer's capabilities only root can give, who starts it by hand.
        """
        apart = room.kind is RoomKind.RESTORER or self.launched(room)
        return self.mode if self.starter is not Starter.LAUNCHER or apart else Mode.USER

    def room(self, name: str) -> Room:
        """The room of that name. Raises KeyError."""
        return {r.name: r for r in self.rooms}[name]

    def job(self, name: str) -> Job:
        """The job of that name, also of an answered one. Raises KeyError."""
        return {j.name: j for j in (*self.jobs, *self.answered_jobs)}[name]

    def dump(self, name: str) -> Dump:
        """The dump of that name. Raises KeyError."""
        return {d.name: d for d in self.dumps}[name]

    def hook(self, name: str) -> Hook:
        """The hook of that name. Raises KeyError."""
        return {h.name: h for h in self.hooks}[name]

    def target(self, name: str) -> Target:
        """The target of that name. Raises KeyError."""
        return {t.name: t for t in self.targets}[name]

    def repository(self, name: str) -> Repository:
        """The repository of that name, also of an answered one. Raises KeyError."""
        return {r.name: r for r in self.all_repositories}[name]

    @property
    def all_repositories(self) -> tuple[Repository, ...]:
        """Those that are elsewhere too: their engines run here."""
        return (*self.repositories, *self.answered_repositories)


class Walls(NamedTuple):
    """What stands between a room and the machine, by the way in which rooms are started here."""

    namespaces: tuple[str, ...]  # that are the room's own
    writable: tuple[str, ...] = ()  # mounts of the room that keep nothing of what is written there
    starter: Starter = Starter.DOORS
    accepted: tuple[str, ...] = ()  # systemd's directives that may be missing
    filters: int = 0  # system call filters that everything on this host has


# Of a reader that a launcher starts: nothing but Landlock and a system call filter.
NO_WALLS: Final = Walls((), starter=Starter.LAUNCHER)


class Outside(NamedTuple):
    """What a room cannot find out from inside."""

    namespaces: tuple[tuple[str, int], ...]  # name → inode on the host
    filters: int = 0  # system call filters that everything on this host has


class Brief(NamedTuple):
    """What a room's program is told when it is started: its own part of the plan, and secrets.

    Handed over in memory: a descriptor, or credentials of systemd's (rooms/brief.py).
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
    walls: Walls
    secrets: tuple[tuple[str, str], ...] = ()
    notify: tuple[Notify, ...] = ()  # for the notifier
    left_out: tuple[tuple[str, str], ...] = ()  # mount points below a source not shown, and why
    source_root: str = ""  # where the machine's "/" is seen in this room, unless at "/"
    shown: tuple[str, ...] = ()  # mount points that are seen there
    wire_path: str = ""  # socket of the vault, unless the wire is a descriptor
    # For a keeper, prover or giver: those that have the repository. For a viewer or restorer also
    # those that copy into it.
    jobs: tuple[Job, ...] = ()
    dump: Dump | None = None
    hook: Hook | None = None
    origin: Repository | None = None  # for a copier: what it copies from
    origin_path: str = ""  # socket of that one's vault, unless the wire is a descriptor
    target: Target | None = None  # for a puller, mounter or link

    @property
    def pulled(self) -> bool:
        """Whether another host has the repository, and asks for what this room does."""
        return self.repository is not None and bool(self.repository.pulled_by)


_FAR: Final = frozenset((RoomKind.PULLER, RoomKind.MOUNTER, RoomKind.LINK))


def outline(plan: Plan, room: Room, walls: Walls) -> Brief:
    """The part of a room's brief that follows from the plan."""
    origin = room.origin.repository if room.origin else ""
    return Brief(
        room=room,
        mode=plan.mode_of(room),
        places=plan.places,
        job=plan.job(room.job) if room.job else None,
        repository=plan.repository(room.repository) if room.repository else None,
        jobs=tuple(
            j
            for j in plan.jobs
            if (
                room.kind in (RoomKind.KEEPER, RoomKind.PROVER, RoomKind.GIVER)
                and room.repository in j.repositories
            )
            or (
                room.kind in (RoomKind.VIEWER, RoomKind.RESTORER)
                and room.repository in (*j.repositories, *(j.copies.targets if j.copies else ()))
            )
        ),
        access=None,
        peer_uid=NOBODY_YET,
        hostname="",
        host_namespaces=(),
        walls=walls,
        notify=plan.notify if room.kind is RoomKind.NOTIFIER else (),
        dump=plan.dump(room.dump) if room.dump else None,
        hook=plan.hook(room.hook) if room.hook else None,
        origin=plan.repository(origin) if origin else None,
        target=plan.target(plan.job(room.job).target) if room.kind in _FAR else None,
    )
