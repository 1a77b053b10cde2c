"""Users and groups that rooms run as: look them up, make them, take them away.

Made by systemd-sysusers(8) where systemd runs the host, as packages' users are; else with
useradd(8) and groupadd(8) of Debian's essential `passwd` package.
"""

import grp
import os
import pwd
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from capkeep.errors import CapkeepError
from capkeep.host import unit_text
from capkeep.host.commands import run_command

_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
SYSUSERS: Final = "/usr/bin/systemd-sysusers"
NOLOGIN: Final = "/usr/sbin/nologin"
USERMOD: Final = "/usr/sbin/usermod"
LOGIN_SHELL: Final = "/bin/sh"  # sshd starts what a key is bound to through it
# A "!" would be an account that sshd without PAM takes for locked.
NO_PASSWORD: Final = "*"  # noqa: S105 - that nothing matches
END_SECONDS: Final = 30  # systemd ends what a session has 10 seconds after it
_BUSY: Final = 8  # userdel(8): something runs as that user
NO_HOMES: Final[Mapping[str, str]] = {}


class UserError(CapkeepError):
    """A user or group cannot be made, or is not fit to hold a room."""


def is_name(name: object) -> bool:
    """Whether it can be a user's name, and no option of useradd(8)."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_missing(name: str) -> bool:
    """Whether this host does not have that user yet."""
    return _lookup(name) is None


def ids(names: Iterable[str]) -> Mapping[str, tuple[int, int]]:
    """uid and primary gid of each user. Raises UserError for one that is missing or root."""
    found = {}
    for name in names:
        entry = _lookup(name)
        if entry is None:
            raise UserError(f"there is no user {name}")
        if entry.pw_uid == 0:
            raise UserError(f"user {name} has uid 0", hint="a room must have a user of its own")
        found[name] = (entry.pw_uid, entry.pw_gid)
    return found


def groups(names: Iterable[str]) -> Mapping[str, tuple[int, ...]]:
    """The gids of all groups of each user that exists, as initgroups(3) would join them."""
    found = ((name, _lookup(name)) for name in names)
    return {name: tuple(os.getgrouplist(name, e.pw_gid)) for name, e in found if e is not None}


def group_id(name: str) -> int:
    """The gid of a group. Raises UserError."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise UserError(f"there is no group {name}") from error


def make(name: str, home: str = "") -> None:
    """A system user with a group of its own; without `home` it can log in nowhere. Raises UserError."""
    _do("/usr/sbin/useradd", "--system", "--user-group", "--no-create-home",
        "--home-dir", home or "/nonexistent", "--shell", LOGIN_SHELL if home else NOLOGIN,
        "--comment", _comment(home), name)  # fmt: skip


def _comment(home: str) -> str:
    return "capkeep login" if home else "capkeep room"


def login_differs(name: str, home: str) -> bool:
    """Whether a user who is there is not yet one that sshd lets in by key alone."""
    entry = _lookup(name)
    if entry is None:
        return False
    return (entry.pw_dir, entry.pw_shell, _password(name)) != (home, LOGIN_SHELL, NO_PASSWORD)


def make_login(name: str, home: str) -> Callable[[], None]:
    """Make it one; returns the way back. Raises UserError."""
    entry, password = _lookup(name), _password(name)
    if entry is None:
        raise UserError(f"there is no user {name}")
    _become_login(name, home, LOGIN_SHELL, NO_PASSWORD)
    return partial(_become_login, name, entry.pw_dir, entry.pw_shell, password)


def _become_login(name: str, home: str, shell: str, password: str) -> None:
    entry = _lookup(name)
    moved = entry is not None and entry.pw_dir != home  # refused while anything runs as the user
    _do(
        USERMOD,
        *(("--home", home) if moved else ()),
        "--shell",
        shell,
        "--password",
        password,
        name,
    )


def _password(name: str) -> str:
    """As shadow(5) has it. Raises UserError."""
    code, output = run_command(("/usr/bin/getent", "shadow", name), timeout=60)
    fields = output.strip().split(":")
    if code != 0 or fields[0] != name or len(fields) < 2:
        raise UserError(f"user {name} has no line in /etc/shadow")
    return fields[1]


def make_group(name: str) -> None:
    """A system group. Raises UserError."""
    _do("/usr/sbin/groupadd", "--system", name)


def declared(
    names: Iterable[str], group: str, homes: Mapping[str, str] = NO_HOMES
) -> tuple[str, ...]:
    """The same users and group as lines of sysusers.d(5); those with a home can log in."""
    rooms = [_declared(name, homes.get(name, "")) for name in names]
    return (*rooms, *(() if group in names else (f"g {group} -",)))


def _declared(name: str, home: str) -> str:
    shell, place = (LOGIN_SHELL, unit_text.word(home)) if home else (NOLOGIN, "/nonexistent")
    return f'u {name} - "{_comment(home)}" {place} {shell}'


def make_declared(line: str) -> None:
    """Make what one line of sysusers.d(5) says. Raises UserError."""
    _do(SYSUSERS, "--inline", line)


def remove(name: str) -> None:
    """Take away a user (and its own group) or a group that `make` made; gone already is fine."""
    deadline = time.monotonic() + END_SECONDS
    while _lookup(name) is not None:
        code, output = run_command(("/usr/sbin/userdel", name), timeout=60)
        if code == _BUSY and time.monotonic() < deadline:
            time.sleep(0.2)  # a session that has just lost what it was for is still ending
        elif code != 0:
            raise UserError(f"/usr/sbin/userdel failed for {name}: {output.strip()}")
    try:
        grp.getgrnam(name)
    except KeyError:
        return
    _do("/usr/sbin/groupdel", name)


def _lookup(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _do(*argv: str) -> None:
    code, output = run_command(argv, timeout=60)
    if code != 0:
        raise UserError(f"{' '.join(argv[:1])} failed for {argv[-1]}: {output.strip()}")


def has_group(name: str) -> bool:
    """Whether this host has a group of that name."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
