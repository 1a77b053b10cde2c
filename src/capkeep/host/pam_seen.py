"""What of PAM decides whether a login gets a capability: files are read, nothing is changed.

Sources: pam.d(5), pam_cap(8), sshd_config(5).
"""

import grp
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from capkeep.errors import CapkeepError
from capkeep.host import pam_stack, sshd, users
from capkeep.host.ways_seen import NUMBER, Pam
from capkeep.plan.model import Plan, RoomKind, room_user

PAM: Final = ("/usr/lib/pam.d", "/etc/pam.d")  # the latter counts
MODULES: Final = ("/lib/security", "/lib64/security", "/usr/lib/security", "/usr/lib64/security")
LAUNCHERS: Final = ("/usr/local/bin", "/usr/local/sbin", "/usr/local/libexec", "/usr/local/lib")
TEXT_MOST: Final = 1 << 20


def look(plan: Plan | None, prefix: str) -> Pam | None:
    """All of it; None where there is no PAM. `prefix` is that of the users without a plan."""
    texts = {
        name: read_text(f"{folder}/{name}")
        for folder in PAM
        for name in (sorted(os.listdir(folder)) if os.path.isdir(folder) else ())
    }
    if not texts:
        return None
    lines = (pam_stack.find(pam_stack.lines(texts, name)) for name in texts)
    paths = {line.config for line in lines if line} | {pam_stack.CONFIG}
    configs = {path: read_text(path) for path in paths if os.path.isfile(path)}
    names = _users(plan, prefix)
    groups = users.groups(names)
    return Pam(
        module=_has_module(),
        texts=texts,
        configs=configs,
        users=tuple((name, tuple(_group_names(groups.get(name, ())))) for name in names),
        launchers=tuple(_launchers(plan)),
        use_pam=_use_pam(names[0]) if names else None,
    )


def _users(plan: Plan | None, prefix: str) -> tuple[str, ...]:
    """Who would log in for the files, and whom the readers are."""
    if plan is None:
        return (room_user(prefix, RoomKind.READER),)
    readers = (r.grant.user for r in plan.rooms if r.kind is RoomKind.READER)
    return tuple(dict.fromkeys((*(a.user for a in plan.answers), *readers)))


def _group_names(numbers: Iterable[int]) -> Iterator[str]:
    for number in numbers:
        with suppress(KeyError):
            yield grp.getgrgid(number).gr_name


def _has_module() -> bool:
    folders = list(MODULES)
    for library in ("/lib", "/usr/lib"):
        names = os.listdir(library) if os.path.isdir(library) else ()
        folders += (f"{library}/{name}/security" for name in names if "-linux-" in name)
    return any(os.path.exists(f"{folder}/{pam_stack.MODULE}") for folder in folders)


def _launchers(plan: Plan | None) -> Iterator[str]:
    """Programs that make an inherited capability effective: ours, and where administrators put theirs."""
    for folder in (*((plan.places.launchers,) if plan else ()), *LAUNCHERS):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = f"{folder}/{name}"
            with suppress(OSError):
                if stat.S_ISREG(os.lstat(path).st_mode) and _inherits(path):
                    yield path


def _inherits(path: str) -> bool:
    """Whether a file's mark has the capability among the inheritable ones, and "effective"."""
    raw = os.getxattr(path, "security.capability")
    head, _, inheritable = struct.unpack("<3I", raw[:12])
    return bool(head & 1 and inheritable & 1 << NUMBER)


def _use_pam(user: str) -> bool | None:
    if os.geteuid() != 0:
        return None
    try:
        return "yes" in sshd.effective(user).get("usepam", ())
    except (CapkeepError, OSError):
        return None


def read_text(path: str) -> str:
    """What a small file says; "" if it cannot be read."""
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(TEXT_MOST)
    return ""
