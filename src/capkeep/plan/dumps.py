"""Dumps in the plan: what is written out before a backup, in which room, and where it lies; pure."""

from capkeep.config.model import Config, DumpConfig
from capkeep.plan.model import (
    BEFORE,
    UNFINISHED,
    Door,
    Dump,
    Grant,
    Job,
    Places,
    Room,
    RoomKind,
)


def taken(config: Config) -> tuple[DumpConfig, ...]:
    """The dumps that some job takes."""
    names = {name for job in config.jobs for name in job.dumps}
    return tuple(dump for dump in config.dumps if dump.name in names)


def users_lent(config: Config) -> tuple[str, ...]:
    """Users that rooms run as and that are not ours: looked up, never made or taken away."""
    return tuple(dict.fromkeys(dump.user for dump in taken(config)))


def staging(places: Places, name: str) -> str:
    """The only directory that a dump's room can write; every backup of the job holds it."""
    return places.staging(name)


def compiled(dump: DumpConfig) -> Dump:
    """The dump as its room needs it."""
    return Dump(
        name=dump.name,
        kind=dump.kind,
        databases=dump.databases,
        exclude_databases=dump.exclude_databases,
        paths=dump.paths,
        socket=dump.socket,
        port=dump.port,
        program=dump.program,
        command=dump.command,
        timeout_seconds=dump.timeout_seconds,
        optional=dump.optional,
        stream=dump.stream,
    )


def room(dump: DumpConfig, places: Places, lent: Grant, runner: tuple[int, int]) -> Room:
    """A room as the server's own user, with its socket and what it must read, and no capability.

    `lent` is what every room of that user's has.
    """
    name = f"{RoomKind.DUMPER}-{dump.name}"
    grant = lent._replace(
        read=_read(dump),
        write=(staging(places, dump.name),),
        sockets=(_socket_folder(dump),) if dump.socket else (),
        # Whole: slapcat wants to make a file beside the lock, and a bind of the files alone would
        # follow links that are the user's.
        shared=tuple(dict.fromkeys(path.rpartition("/")[0] for path in dump.locks)),
    )
    door = Door(f"{places.run}/{name}.sock", *runner, 0o600, visits(stream=dump.stream))
    return Room(name=name, kind=RoomKind.DUMPER, grant=grant, door=door, dump=dump.name)


def visits(*, stream: bool) -> int:
    """Connections to a room at a time: a run streams one file after the other.

    A room that has given its result may still be ending when the same run comes again. A run has
    its job for itself, and a dumper that streams writes nothing of its own.
    """
    return 3 if stream else 1


def streams(config: Config, names: tuple[str, ...]) -> bool:
    """Whether one of these dumps is streamed."""
    return any(dump.stream for dump in config.dumps if dump.name in names)


def _socket_folder(dump: DumpConfig) -> str:
    """A server that starts anew makes its socket anew, so that its directory must be seen.

    Not so of one that lies among everybody's.
    """
    folder = dump.socket.rpartition("/")[0]
    alone = dump.kind == "postgresql" or folder in ("", "/run", "/var/run")
    return dump.socket if alone else folder


def _read(dump: DumpConfig) -> tuple[str, ...]:
    # The journals of a database of SQLite's come and go beside it.
    found = [p.rpartition("/")[0] if dump.kind == "sqlite" else p for p in dump.paths]
    found += [dump.command[0]] if dump.command else []
    found += [dump.program] if dump.program else []
    return tuple(dict.fromkeys(p for p in found if not p.startswith(("/usr/", "/bin/"))))


def with_dumps(job: Job, names: tuple[str, ...], config: Config, places: Places) -> Job:
    """The job with its dumps among its sources; unfinished ones are no part of it."""
    optional = {dump.name for dump in config.dumps if dump.optional}
    streamed = {dump.name for dump in config.dumps if dump.stream}
    folders = {name: staging(places, name) for name in names if name not in streamed}
    return job._replace(
        dumps=names,
        include=tuple(dict.fromkeys((*job.include, *folders.values()))),
        exclude=(
            *job.exclude,
            *(f"{path}/{name}" for path in folders.values() for name in (UNFINISHED, BEFORE)),
        ),
        allow_empty=(*job.allow_empty, *(f for n, f in folders.items() if n in optional)),
    )
