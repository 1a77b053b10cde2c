"""A hook's table: what it runs, as whom, and what it is granted; nothing by default."""

import os
import re
from collections.abc import Collection
from typing import Final

from capkeep.config import syntax
from capkeep.config.jobs import JobTable
from capkeep.config.lent import check_paths, name_of, not_to_be_lent
from capkeep.config.mistakes import Collector
from capkeep.config.model import HookConfig, JobConfig
from capkeep.config.names import check_names
from capkeep.config.secrets import not_a_program
from capkeep.config.syntax import kebab
from capkeep.config.validate import Checked

MOMENTS: Final = ("before", "after", "on_success", "on_failure")
# An action, and details that must be as given: words that mean nothing to a JavaScript parser.
RIGHT: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9-]*(\.[A-Za-z0-9-]+)+( [a-z][a-z0-9_-]*=[A-Za-z0-9@:._/-]+)*"
)
READS_ALL: Final = "CAP_DAC_READ_SEARCH"
HELPER: Final = (
    "let a service of root's do that, and name its socket under sockets:"
    " docs/how-to/hooks.md shows how"
)

Table = Checked[syntax.Hook]


class HookChecker:
    """Turns one table after another into values."""

    def __init__(self, collector: Collector, prefix: str, *, user_mode: bool) -> None:
        self._collector = collector
        self._prefix = prefix
        self._user_mode = user_mode

    def check(self, name: str, table: Table, wrong: frozenset[str]) -> HookConfig:
        """The hook as a value. After mistakes it is not fit for use, only for further checks."""
        model = table.model
        if table.gives("timeout") and model.timeout < 1:
            self._say(table, "timeout", "no hook is done in no time", 'write "5m"')
        collector = self._collector
        return HookConfig(
            name=name,
            command=self._command(table, wrong),
            user=self._user(name, table, wrong),
            network=model.network,
            read=check_paths(table, "read", model.read, collector, there=True),
            write=check_paths(table, "write", model.write, collector, there=True),
            # Not looked for: a service that is down when this is read may be up at night.
            sockets=check_paths(table, "sockets", model.sockets, collector, there=False),
            capabilities=self._capabilities(table),
            polkit=self._right(table),
            timeout_seconds=model.timeout,
            optional=model.optional,
        )

    def _say(self, table: Table, field: str, problem: str, hint: str) -> None:
        self._collector.mistake(table.at(kebab(field)), problem, hint)

    def _command(self, table: Table, wrong: frozenset[str]) -> tuple[str, ...]:
        command = tuple(table.model.command)
        if not command:
            if "command" not in wrong:
                hint = 'write command = ["/usr/bin/program", "argument"]'
                self._say(table, "command", "the hook has no command", hint)
        elif not command[0].startswith("/"):
            hint = "name the program by its absolute path; no shell runs unless you name one"
            self._say(table, "command", f"program {command[0]!r} is not an absolute path", hint)
        elif problem := not_a_program(command[0]):
            self._say(table, "command", problem, "name a program by its absolute path")
        elif any("\0" in word for word in command):
            self._say(table, "command", "a zero byte cannot be an argument", "take it away")
        return command

    def _user(self, name: str, table: Table, wrong: frozenset[str]) -> str:
        """The user that the hook's room runs as: one that is there and is neither root nor ours."""
        user = table.model.user
        if self._user_mode:
            own = name_of(os.geteuid())
            if user and user != own:
                self._say(table, "user", "without root every room runs as you", "take it away")
            return own
        if not user:
            if "user" not in wrong:
                hint = f"write user = …: whom hook {name} runs as, and never root"
                self._say(table, "user", "the hook has no user", hint)
            return ""
        hint = f"nothing of capkeep runs as root at night; {HELPER}"
        missing = "make the user first, or name another"
        if found := not_to_be_lent(user, "a hook's room", hint, missing, self._prefix):
            self._say(table, "user", *found)
        return user

    def _capabilities(self, table: Table) -> tuple[str, ...]:
        model = table.model
        if model.capabilities and self._user_mode:
            self._say(
                table, "capabilities", "without root there are none to be given", "take it away"
            )
        for i, name in enumerate(model.capabilities):
            place = table.at("capabilities", i)
            if name != READS_ALL:
                said = f"{name} is given to no hook: it is a way to root, or of no use in a room"
                self._collector.mistake(place, said, HELPER)
            elif model.network or model.sockets:
                said = (
                    "what may read everybody's files may reach neither the network nor any socket"
                )
                hint = "make two hooks of it: one that reads, and one that sends"
                self._collector.mistake(place, said, hint)
        return tuple(dict.fromkeys(model.capabilities))

    def _right(self, table: Table) -> str:
        """What polkit is to allow its user; said in a form that cannot be anything but that."""
        model = table.model
        right = " ".join(model.polkit.split())
        if not right:
            return ""
        if not RIGHT.fullmatch(right):
            hint = (
                'write polkit = "org.freedesktop.login1.power-off", or with details as in'
                ' "org.freedesktop.systemd1.manage-units unit=NAME.service verb=start"'
            )
            self._say(table, "polkit", "is not the id of an action (pkaction lists them)", hint)
        elif self._user_mode:
            self._say(table, "polkit", "without root nobody can be given a right", "take it away")
        elif model.capabilities:
            said = "what may read everybody's files may not ask the system's services for anything"
            self._say(table, "polkit", said, "make two hooks of it")
        elif not model.sockets:
            said = "rights are asked for over the system's bus, and the hook reaches no socket"
            self._say(table, "polkit", said, 'write sockets = ["/run/dbus/system_bus_socket"]')
        return right


def check_hook_names(
    table: JobTable, known: Collection[str], collector: Collector, *, all_read: bool
) -> None:
    """A mistake for every hook that a job names and that is not defined, or is named twice."""
    for field in MOMENTS:
        entries = table.entries(field, getattr(table.model, field))
        check_names(entries, "hook", "hooks", known, collector, all_read=all_read)


def hooks_of(job: JobConfig) -> tuple[str, ...]:
    """All hooks that a job names, whenever they run."""
    return tuple(name for field in MOMENTS for name in getattr(job, field))
