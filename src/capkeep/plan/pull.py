"""Pulling in the plan: who stands for the reader of another host, and whom this host answers; pure.

On the server a puller takes a reader's place, at the same door and with the same wire. On a target a
reader is asked by the login that the server's key opens, and is given its wire by it.
"""

from collections.abc import Mapping
from typing import Final

from capkeep.config.model import Config, JobConfig, RepositoryConfig, TargetConfig
from capkeep.plan.model import (
    Access,
    Answer,
    Grant,
    Origin,
    Places,
    Room,
    RoomKind,
    Secret,
    Target,
    Way,
    Wire,
)

# Of each target, which is a host of its own and not below a prefix: its capkeep makes it.
CANARY: Final = Places("/etc/capkeep", "", "", "", "").canary


def login(prefix: str) -> str:
    """The user that servers log in as."""
    return f"{prefix}-answerer"


def logins(config: Config) -> tuple[str, ...]:
    """That user, where some server may."""
    pulled = any(repository.pulled_by for repository in config.repositories)
    return (login(config.host.user_prefix),) if pulled else ()


def target(target: TargetConfig) -> Target:
    """The target as its puller needs it; the key to log in with is a secret."""
    return Target(
        name=target.name,
        host=target.host,
        user=target.user,
        host_keys=target.host_keys,
        port=target.port,
        jump=target.jump,
        jump_keys=target.jump_keys,
        options=target.options,
        way=Way(target.way),
    )


def taken(config: Config) -> tuple[TargetConfig, ...]:
    """The targets whose files some job takes."""
    names = {job.target for job in config.jobs}
    return tuple(target for target in config.targets if target.name in names)


def parallel(config: Config, processors: int) -> int:
    """How many are worked on at a time; 0: all."""
    if config.parallel_pulls is None:
        return processors if config.targets else 0
    return config.parallel_pulls


def is_foreign(config: Config, repository: str) -> bool:
    """Whether a repository holds files of another host, where users' numbers mean others."""
    return any(
        repository in (*job.repositories, *(job.copies.targets if job.copies else ()))
        for job in config.jobs
        if job.target
    )


def reader_name(job: JobConfig, repository: RepositoryConfig) -> str:
    """What the room is called that brings a job's files, or stands for the one that does."""
    return f"{RoomKind.READER}-{job.name}-{repository.name}"


def puller(room: Room, found: TargetConfig) -> Room:
    """A room that logs in to the target: it has the network, and sees no file.

    `room` is what whoever brings a job's files has.
    """
    grant = room.grant._replace(network=True)
    return room._replace(grant=grant, secrets=(*room.secrets, Secret("identity", found.identity)))


def through_sftp(found: TargetConfig) -> bool:
    """Whether a room here reads the target's files."""
    return found.way == Way.SFTP


def mounter(room: Room) -> Room:
    """A room that reads the target's files through a mount, and has no way to it but its link's wire.

    `room` is what whoever brings a job's files has.
    """
    limits = room.grant.limits
    # Its sshfs and its engine hold what the target says there is.
    most = limits.all_memory_bytes or limits.memory_bytes
    grant = room.grant._replace(mounts=True, limits=limits._replace(all_memory_bytes=most))
    link = Origin("", Wire(link_name(room), Access.READ))
    return room._replace(grant=grant, origin=link)


def link_name(room: Room) -> str:
    """What the link of a mounter's room is called."""
    return f"{RoomKind.LINK}-{room.job}-{room.repository}"


def link(room: Room, grant: Grant, found: TargetConfig, cache: str) -> Room:
    """The only one that logs in to the target of that mounter: it knows no password, and sees no file."""
    name = link_name(room)
    return Room(
        name=name,
        kind=RoomKind.LINK,
        grant=grant._replace(network=True, write=(f"{cache}/{name}",)),
        job=room.job,
        secrets=(Secret("identity", found.identity),),
    )


def answers(config: Config, users: Mapping[str, tuple[int, int]]) -> tuple[Answer, ...]:
    """Whose key asks which reader of this host; `users`: uid and gid of each."""
    name = login(config.host.user_prefix)
    return tuple(
        Answer(
            repository.name, reader_name(job, repository), repository.pulled_by, name, *users[name]
        )
        for job, repository in answered(config)
    )


def answered(config: Config) -> tuple[tuple[JobConfig, RepositoryConfig], ...]:
    """The jobs whose files a server comes for, each with the one repository that it has."""
    by_name = {repository.name: repository for repository in config.repositories}
    return tuple(
        (job, by_name[name])
        for job in config.jobs
        for name in job.repositories
        if by_name[name].pulled_by
    )
