"""What a room executes must be changeable by root alone: this looks, file by file.

In user mode the user takes root's side: what is executed must be root's or the user's own.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

MAX_LINKS: Final = 40  # on one way (path_resolution(7))


class Distrust(NamedTuple):
    """A file or directory that others could change."""

    path: str
    problem: str
    mend: str  # a command


def untrusted(paths: Iterable[str], owners: frozenset[int] = frozenset({0})) -> tuple[str, ...]:
    """A sentence for each file, or directory on the way to it, that others could change."""
    return tuple(f"{d.path} {d.problem}" for d in distrusted(paths, owners))


def distrusted(paths: Iterable[str], owners: frozenset[int] = frozenset({0})) -> Iterator[Distrust]:
    """Each file, or directory on the way to it, that others could change."""
    seen: set[str] = set()
    for path in paths:
        for part in _parts(path):
            if part not in seen:
                seen.add(part)
                yield from _weakness(part, owners)


def firm(path: str) -> tuple[str, str]:
    """The beginning of a path that root alone can lead elsewhere, without links, and what is left.

    A bind passes over the permissions of the directories above, and follows links as root: only what
    comes first may be bound, and the rest is for the room's user to walk.
    """
    for step in _walk(path):  # there is always one
        if step.name and _exchangeable(step.folder, step.name):
            break
    return step.folder, "/".join((step.name, *step.left))


def _exchangeable(folder: str, name: str) -> bool:
    """Whether others than root can put something else in the place of what a directory holds."""
    root = frozenset({0})
    if any(_weakness(folder, root)):
        return True
    if not os.stat(folder).st_mode & stat.S_IWOTH:
        return False
    try:
        return os.lstat(f"{folder}/{name}").st_uid != 0  # a sticky directory, or it were weak
    except OSError:
        return True


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
    for folder, name, _ in _walk(os.path.join(os.getcwd(), path)):
        if name:
            yield os.path.join(folder, name)


class _Step(NamedTuple):
    """One name on the way of a path, in a directory that was reached without links."""

    folder: str
    name: str  # "" when the whole way has been gone
    left: tuple[str, ...]  # what comes after it


def _walk(path: str) -> Iterator[_Step]:
    """The way of an absolute path as the kernel goes it, links too; each link before it is followed.

    After too many links the kernel does not go on (ELOOP), so neither does this.
    """
    here, links = "", 0
    left = path.split("/")[::-1]
    while left:
        name = left.pop()
        if name == "..":
            here = here.rpartition("/")[0]
        if name in ("", ".", ".."):
            continue
        yield _Step(here or "/", name, tuple(reversed(left)))
        part = f"{here}/{name}"
        try:
            target = os.readlink(part)
        except OSError:  # no link
            here = part
            continue
        links += 1
        if links > MAX_LINKS:
            return
        here = "" if target.startswith("/") else here
        left += target.split("/")[::-1]
    yield _Step(here or "/", "", ())


def _weakness(path: str, owners: frozenset[int]) -> Iterator[Distrust]:
    try:
        state = os.lstat(path)
    except OSError as error:
        yield Distrust(path, f"cannot be looked at: {error.strerror}", "capkeep apply")
        return
    if state.st_uid not in owners:
        problem = f"belongs to uid {state.st_uid}, who can change it"
        yield Distrust(path, problem, f"chown -h {max(owners)} {path}")
        return
    if stat.S_ISLNK(state.st_mode):
        return
    others = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others == stat.S_IWGRP and state.st_gid in owners and not _has_acl(path):
        return  # root's own group (or the user's own) has nobody else in it
    # In a sticky directory nobody can replace a file of ours (chmod(1)).
    if others and not (stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX):
        problem = f"can be written by others (mode {state.st_mode & 0o7777:04o})"
        yield Distrust(path, problem, f"chmod go-w {path}")


def _has_acl(path: str) -> bool:
    """Whether more users are named, whose right to write shows as the group's (acl(5))."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except OSError:
        return False  # it has none, or its filesystem knows none
