"""Drills in the plan: for which repositories there is a prover, and where it restores; pure."""

from typing import Final

from capkeep.config.model import Config

SERVERS: Final = frozenset(("postgresql", "mariadb", "mysql"))  # dumps that a server alone can read
# In the room's own namespace: to start servers as somebody who is nobody else, and to end them.
SERVER_CAPABILITIES: Final = ("CAP_KILL", "CAP_SETGID", "CAP_SETUID")


def scratches(config: Config, repository: str) -> tuple[str, ...]:
    """The directories below which this repository's drills restore; "" is the room's own cache.

    None where no job has drills there.
    """
    jobs = [job for job in config.jobs if repository in job.repositories]
    return tuple(dict.fromkeys(job.drill.scratch for job in jobs if job.drill))


def all_scratches(config: Config) -> tuple[str, ...]:
    """Those of all repositories."""
    return tuple(dict.fromkeys(job.drill.scratch for job in config.jobs if job.drill))


def servers(config: Config, repository: str) -> bool:
    """Whether drills there load dumps into servers that they start."""
    kinds = {dump.name: dump.kind for dump in config.dumps if not dump.stream}
    return any(
        kinds.get(name) in SERVERS
        for job in config.jobs
        if repository in job.repositories and job.drill and job.drill.dumps
        for name in job.dumps
    )
