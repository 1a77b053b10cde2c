"""What a room executes must be changeable by root alone: this looks, file by file.

In user mode the user takes root's side: what is executed must be root's or the user's own.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final

MAX_LINKS: Final = 40  # on one way (path_resolution(7))


def untrusted(paths: Iterable[str], owners: frozenset[int] = frozenset({0})) -> tuple[str, ...]:
    """A sentence for each file, or directory on the way to it, that others could change."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    for path in paths:
        for part in _parts(path):
            if part not in seen:
                seen.add(part)
                if sentence := _weakness(part, owners):
                    found[sentence] = None
    return tuple(found)


def files_below(directory: str) -> Iterator[str]:
    """The directory and everything in it."""
    yield directory
    for base, dirs, files in os.walk(directory):
        for name in (*dirs, *files):
            yield f"{base}/{name}"


def _parts(path: str) -> Iterator[str]:
    """Every directory and link on the way to `path`, as the kernel goes it, and the file itself.

    Of a chain of links each is yielded, with the directories on the way to it.
    """
    yield "/"
    here, links = "", 0
    left = os.path.join(os.getcwd(), path).split("/")[::-1]
    while left:
        name = left.pop()
        if name == "..":
            here = here.rpartition("/")[0]
        if name in ("", ".", ".."):
            continue
        part = f"{here}/{name}"
        yield part
        try:
            target = os.readlink(part)
        except OSError:  # no link
            here = part
            continue
        links += 1
        if links > MAX_LINKS:
            return  # the kernel does not go on either (ELOOP), so there is nothing to execute
        here = "" if target.startswith("/") else here
        left += target.split("/")[::-1]


def _weakness(path: str, owners: frozenset[int]) -> str:
    try:
        state = os.lstat(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    if state.st_uid not in owners:
        return f"{path} belongs to uid {state.st_uid}, who can change it"
    if stat.S_ISLNK(state.st_mode):
        return ""
    others = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others == stat.S_IWGRP and state.st_gid in owners and not _has_acl(path):
        return ""  # root's own group (or the user's own) has nobody else in it
    # In a sticky directory nobody can replace a file of ours (chmod(1)).
    if others and not (stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX):
        return f"{path} can be written by others (mode {state.st_mode & 0o7777:04o})"
    return ""


def _has_acl(path: str) -> bool:
    """Whether more users are named, whose right to write shows as the group's (acl(5))."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except OSError:
        return False  # it has none, or its filesystem knows none
