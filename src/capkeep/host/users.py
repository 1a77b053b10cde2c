"""Users and groups that rooms run as: look them up, make them, take them away.

Made by systemd-sysusers(8) where systemd runs the host, as packages' users are; else with
useradd(8) and groupadd(8) of Debian's essential `passwd` package.
"""

import grp
import os
import pwd
import re
from collections.abc import Iterable, Mapping
from typing import Final

from capkeep.errors import CapkeepError
from capkeep.host.commands import run_command

_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
SYSUSERS: Final = "/usr/bin/systemd-sysusers"
NOLOGIN: Final = "/usr/sbin/nologin"


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


def make(name: str) -> None:
    """A system user with a group of its own, no home and no shell. Raises UserError."""
    _do("/usr/sbin/useradd", "--system", "--user-group", "--no-create-home",
        "--home-dir", "/nonexistent", "--shell", NOLOGIN, "--comment", "capkeep room", name)  # fmt: skip


def make_group(name: str) -> None:
    """A system group. Raises UserError."""
    _do("/usr/sbin/groupadd", "--system", name)


def declared(names: Iterable[str], group: str) -> tuple[str, ...]:
    """The same users and group as lines of sysusers.d(5)."""
    rooms = [f'u {name} - "capkeep room" /nonexistent {NOLOGIN}' for name in names]
    return (*rooms, *(() if group in names else (f"g {group} -",)))


def make_declared(line: str) -> None:
    """Make what one line of sysusers.d(5) says. Raises UserError."""
    _do(SYSUSERS, "--inline", line)


def remove(name: str) -> None:
    """Take away a user (and its own group) or a group that `make` made; gone already is fine."""
    if _lookup(name) is not None:
        _do("/usr/sbin/userdel", name)
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
