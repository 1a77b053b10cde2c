"""What holds for every user that is lent to a room, and for every path that is shown to him."""

import os
import pwd
from collections.abc import Iterable

from capkeep.config.mistakes import Collector
from capkeep.config.validate import Checked, TableT


def not_to_be_lent(
    user: str, whose: str, hint: str, missing: str, prefix: str = ""
) -> tuple[str, str] | None:
    """Why a room cannot run as that user, and what to write; None if it can.

    `whose` room it is; `missing` is the hint for a user who is not there. With a `prefix` those
    whose names begin with it are capkeep's own, and have rooms of their own.
    """
    if prefix and (user == prefix or user.startswith(f"{prefix}-")):
        return f"{user} is one of capkeep's own users, each of which is for one kind of room", hint
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return f"there is no user {user} on this host", missing
    if uid == 0:
        return f"{whose} never runs as root", hint
    return None


def is_plain(path: str) -> bool:
    """Whether a path is absolute and goes straight to where it leads."""
    return path.startswith("/") and ".." not in path.split("/") and path.isprintable()


def check_paths(
    table: Checked[TableT], key: str, paths: Iterable[str], collector: Collector, *, there: bool
) -> tuple[str, ...]:
    """A list of plain absolute paths, each named once; with `there` each must exist."""
    seen: list[str] = []
    for i, path in enumerate(paths):
        place, clean = table.at(key, i), os.path.normpath(path)
        if not is_plain(path):
            hint = f'write "{os.path.normpath("/" + path)}"'
            collector.mistake(place, f"{path!r} is not a plain absolute path", hint)
        elif clean in seen:
            collector.mistake(place, f"{path} is named twice", "name it once")
        elif there and not os.path.exists(path):
            collector.mistake(place, f"there is no {path}", "name what is there")
        seen.append(clean)
    return tuple(dict.fromkeys(seen))


def name_of(uid: int) -> str:
    """What a user is called; his number if he has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
