"""Reach a directory as root without being led elsewhere by whoever owns a directory above it.

The way is walked by descriptors, one name at a time (openat(2)), so that nothing that is exchanged
meanwhile changes where it leads.
"""

import contextlib
import os
import stat
from typing import Final

from capkeep.errors import RefusedError

MAX_LINKS: Final = 40  # the kernel's own limit (path_resolution(7))
_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_way(path: str, *, make: int, links: bool) -> int:
    """A handle (O_PATH) on the directory at an absolute path; what is missing is made, mode `make`.

    With `links` a symbolic link is followed where it and its directory are root's alone (or, without
    root, one's own), as in /srv -> /data; any other link is refused. The caller closes the handle.
    Raises RefusedError, OSError.
    """
    here, rest = _walk(path, make, links=links)
    assert not rest, "what is missing was made"
    return here


def resolve(path: str) -> str:
    """The real path, by the same rule, of what need not be there yet. Raises RefusedError.

    What we may not look into stays as it is written.
    """
    here, rest = _walk(path, None, links=True)
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{here}"), *rest)
    finally:
        os.close(here)


def _walk(path: str, make: int | None, *, links: bool) -> tuple[int, list[str]]:
    """How far the way goes, and the names that are left of it: none where it may be made."""
    names = _names(path)
    here = os.open("/", _FLAGS)
    followed = 0
    try:
        while names:
            if target := _link(here, names[0]):
                followed += 1
                if not links or followed > MAX_LINKS or not _is_ours_alone(here, names[0]):
                    raise RefusedError(
                        f"{names[0]} on the way to {path} is a symbolic link that is not followed",
                        hint="write the path that it leads to instead",
                    )
                names = _names(target) + names[1:]
                if target.startswith("/"):
                    here = _exchange(here, os.open("/", _FLAGS))
                continue
            if make is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(names[0], make, dir_fd=here)
            try:
                below = os.open(names[0], _FLAGS, dir_fd=here)
            except OSError:
                if make is not None:
                    raise
                break
            here = _exchange(here, below)
            names.pop(0)
    except BaseException:
        os.close(here)
        raise
    return here, names


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _exchange(old: int, new: int) -> int:
    os.close(old)
    return new


def _link(folder: int, name: str) -> str:
    """Where a symbolic link leads; "" if it is none."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return ""


def _is_ours_alone(folder: int, name: str) -> bool:
    """Whether nobody but root and ourselves can have put the link there, or can exchange it."""
    ours = {0, os.geteuid()}
    place = os.fstat(folder)
    others = place.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not place.st_mode & stat.S_ISVTX
    link = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return {place.st_uid, link.st_uid} <= ours and not others
