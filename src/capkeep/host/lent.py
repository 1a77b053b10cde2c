"""What the room of a dump or hook is shown: nothing that its user can lead elsewhere.

A bind is made by root. It follows links, and whoever gets it need not be let through the directories
above. So what is bound is the first thing on the way that root alone can exchange, and links inside
it lead only to what the room's own root directory has, with its user's rights.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from capkeep.config.model import Config, DumpConfig, HookConfig
from capkeep.errors import RefusedError
from capkeep.host.trust import firm
from capkeep.plan.model import LENT, Grant, Mode, Plan, Room

NOT_WHOLE: Final = frozenset(("/", "/run", "/dev", "/proc", "/sys"))  # a room has its own


def resolved(config: Config, mode: Mode) -> Config:
    """The configuration with its dumps' paths without links, as far as those are root's."""
    follow = _Follow(mode)
    return replace(
        config,
        dumps=tuple(_resolved(dump, follow) for dump in config.dumps),
        hooks=tuple(_resolved_hook(hook, follow) for hook in config.hooks),
    )


class _Follow:
    """Follows links: all of them without root, else those that are root's."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode

    def real(self, path: str) -> str:
        """The path without links."""
        if self._mode is Mode.USER:
            return os.path.realpath(path)
        here, left = firm(path)
        return os.path.join(here, left) if left else here

    def program(self, path: str) -> str:
        """The same but for its own name: what it is called may tell it what to do."""
        if not path:
            return ""
        return os.path.join(self.real(os.path.dirname(path)), os.path.basename(path))


def _resolved_hook(hook: HookConfig, follow: _Follow) -> HookConfig:
    return replace(
        hook,
        command=(*map(follow.program, hook.command[:1]), *hook.command[1:]),
        read=tuple(map(follow.real, hook.read)),
        write=tuple(map(follow.real, hook.write)),
        sockets=tuple(map(follow.real, hook.sockets)),
    )


def _resolved(dump: DumpConfig, follow: _Follow) -> DumpConfig:
    real, program = follow.real, follow.program
    return replace(
        dump,
        paths=tuple(map(real, dump.paths)),
        locks=tuple(map(real, dump.locks)),
        socket=real(dump.socket) if dump.socket else "",
        program=program(dump.program),
        command=(*map(program, dump.command[:1]), *dump.command[1:]),
    )


def bound(plan: Plan) -> Plan:
    """The plan whose lent users are shown directories that root alone can exchange."""
    if plan.mode is Mode.USER:
        return plan  # nothing is bound with more rights than the user's own
    rooms = (r._replace(grant=_bound(r.grant)) if r.kind in LENT else r
             for r in plan.rooms)  # fmt: skip
    return plan._replace(rooms=tuple(rooms))


def _bound(grant: Grant) -> Grant:
    shared = _beginnings(grant.shared)
    return grant._replace(
        # What is the same directory after all is bound once, writable.
        read=tuple(p for p in _beginnings(grant.read) if p not in shared),
        sockets=tuple(p for p in _beginnings(grant.sockets) if p not in shared),
        shared=shared,
    )


def _beginnings(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_beginning, paths)))


def _beginning(path: str) -> str:
    """What to bind of a path; the path itself where there is no answer, which is refused later."""
    here, left = firm(path)
    return here if left and os.path.join(here, left) == path else path


def refuse_exchangeable(plan: Plan) -> None:
    """Raises RefusedError for what root would bind and a room's user, or others, could exchange."""
    for path, room in _binds(plan):
        here, left = firm(path)
        if path in NOT_WHOLE or (left and os.path.lexists(here) and here != path):
            raise RefusedError(
                f"{_what(room)}: {path} cannot be shown to its room: others than root can lead"
                " the way to it elsewhere",
                hint=f"name it without links; {here} should be root's, with mode 0755",
            )


def _what(room: Room) -> str:
    return f"hook {room.hook}" if room.hook else f"dump {room.dump}"


def _binds(plan: Plan) -> Iterator[tuple[str, Room]]:
    for room in plan.rooms if plan.mode is Mode.SYSTEM else ():
        if room.kind in LENT:
            grant = room.grant
            yield from ((p, room) for p in (*grant.read, *grant.sockets, *grant.shared))
