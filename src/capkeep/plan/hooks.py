"""Hooks in the plan: which room runs what, and with what right; pure."""

from typing import Final

from capkeep.config.model import Config, HookConfig, JobConfig
from capkeep.plan import dumps
from capkeep.plan.model import Door, Grant, Hook, Hooks, Places, Room, RoomKind

CALLERS: Final = 16  # several jobs may have the same hook, and run at the same time


def of_job(job: JobConfig) -> Hooks:
    """The hooks of a job's backups."""
    return Hooks(job.before, job.after, job.on_success, job.on_failure)


def taken(config: Config) -> tuple[HookConfig, ...]:
    """The hooks that some job has, or that come after pulls."""
    names = {name for job in config.jobs for moment in of_job(job) for name in moment}
    names |= {*config.after_pulls}
    return tuple(hook for hook in config.hooks if hook.name in names)


def users_lent(config: Config) -> tuple[str, ...]:
    """Users that rooms run as and that are not ours: looked up, never made or taken away."""
    return tuple(dict.fromkeys((*dumps.users_lent(config), *(h.user for h in taken(config)))))


def compiled(hook: HookConfig) -> Hook:
    """The hook as its room needs it."""
    return Hook(
        hook.name, hook.command, hook.write, hook.timeout_seconds, hook.optional, hook.polkit
    )


def room(hook: HookConfig, places: Places, lent: Grant, runner: tuple[int, int]) -> Room:
    """A room with what is stated, and with its own program, as the user that `lent` is of."""
    name = f"{RoomKind.HOOK}-{hook.name}"
    program = hook.command[0]
    own = () if program.startswith(("/usr/", "/bin/", "/sbin/")) else (program,)
    grant = lent._replace(
        capabilities=hook.capabilities,
        read=tuple(dict.fromkeys((*hook.read, *own))),
        sockets=hook.sockets,
        shared=hook.write,
        network=hook.network,
    )
    door = Door(f"{places.run}/{name}.sock", *runner, 0o600, CALLERS)
    return Room(name=name, kind=RoomKind.HOOK, grant=grant, door=door, hook=hook.name)
