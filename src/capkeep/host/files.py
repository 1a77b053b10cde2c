"""Files that appear whole or not at all, with their owner and mode from the first moment."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from capkeep.host.commands import run_command
from capkeep.kernel.launcher import ATTRIBUTE
from capkeep.kernel.ways import open_way

REMOVE_SECONDS: Final = 3600
LOG_BYTES: Final = 4 << 20  # beyond which a log is begun anew when it is next opened


class Owner(NamedTuple):
    """Who a file or directory belongs to."""

    uid: int
    gid: int


def file_differs(path: str, content: bytes, *, owner: Owner, mode: int) -> bool:
    """Whether `path` is not yet exactly this."""
    try:
        state = os.lstat(path)
        with open(path, "rb") as file:
            same = file.read(len(content) + 1) == content
    except OSError:
        return True
    return not same or (state.st_uid, state.st_gid) != owner or state.st_mode & 0o7777 != mode


def write_atomic(path: str, content: bytes, *, owner: Owner, mode: int, mark: bytes = b"") -> None:
    """Replace `path` as a whole, durably. One writer at a time. Raises RefusedError, OSError.

    `mark`: the capabilities of a program's file (`kernel.launcher.attribute`); else it has none.
    """
    folder, name = os.path.split(path)
    draft = f".{name}.capkeep-draft"  # a name that nobody else's file has
    with _opened(folder) as place:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=place)  # of somebody who was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(draft, flags, 0o600, dir_fd=place)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                _own(fd, owner)
                os.fchmod(fd, mode)
                file.flush()
                if mark:  # last, as writing and changing owners take it away
                    os.setxattr(fd, ATTRIBUTE, mark)
                os.fsync(fd)
            os.rename(draft, name, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            os.unlink(draft, dir_fd=place)
            raise
        os.fsync(place)


@contextlib.contextmanager
def _opened(path: str, make: int = 0o755) -> Iterator[int]:
    """A directory, reached safely and opened for use."""
    way = open_way(path, make=make, links=True)
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=way)
    finally:
        os.close(way)
    try:
        yield fd
    finally:
        os.close(fd)


def directory_differs(path: str, *, owner: Owner, mode: int) -> bool:
    """Whether `path` is not yet a directory with this owner and mode."""
    try:
        state = os.lstat(path)
    except OSError:
        return True
    as_wanted = (state.st_uid, state.st_gid) == owner and state.st_mode & 0o7777 == mode
    return not (stat.S_ISDIR(state.st_mode) and as_wanted)


def make_directory(path: str, *, owner: Owner, mode: int) -> None:
    """The directory with exactly this owner and mode, its parents 0755.

    Raises RefusedError for a symbolic link in its place, which a room could have put there, or on
    the way, unless it is root's; OSError.
    """
    folder, name = os.path.split(path)
    with _opened(folder) as place:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=place)
        fd = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place
        )
    try:
        _own(fd, owner)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove_file(path: str) -> None:
    """Remove a file; gone already is fine. Raises RefusedError, OSError."""
    folder, name = os.path.split(path)
    with _opened(folder) as place, contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=place)


def remove_directory(path: str) -> None:
    """Remove an empty directory. Raises RefusedError, OSError."""
    folder, name = os.path.split(path)
    with _opened(folder) as place:
        os.rmdir(name, dir_fd=place)


def remove_tree(path: str) -> None:
    """Remove a directory with all that rooms left in it, on this filesystem. Raises OSError.

    rm(1) follows no link and stops at no depth; `shutil.rmtree` ends at Python's recursion limit.
    """
    folder, name = os.path.split(path)
    with _opened(folder) as place:
        held = f"/proc/{os.getpid()}/fd/{place}/{name}"
        code, output = run_command(
            ("/bin/rm", "-rf", "--one-file-system", "--", held), timeout=REMOVE_SECONDS
        )
    if code != 0:
        raise OSError(errno.EIO, output.strip() or "rm failed", path)


def hand_over(path: str, owner: Owner, *, deep: bool) -> None:
    """Give a directory to somebody, and all in it if it is `deep`. Raises OSError.

    chown(1) with -h and -P changes links themselves and goes through none.
    """
    folder, name = os.path.split(path)
    with _opened(folder) as place:
        held = f"/proc/{os.getpid()}/fd/{place}/{name}"
        how = ("-R", "-P") if deep else ()
        code, output = run_command(
            ("/bin/chown", "-h", *how, "--", f"{owner.uid}:{owner.gid}", held),
            timeout=REMOVE_SECONDS,
        )
    if code != 0:
        raise OSError(errno.EIO, output.strip() or "chown failed", path)


def open_log(path: str) -> int:
    """A log of root's own to append to; one that has grown large is first put aside as `.old`.

    Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_size > LOG_BYTES:
            os.replace(path, path + ".old")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _own(fd: int, owner: Owner) -> None:
    if os.geteuid() == 0:
        os.fchown(fd, owner.uid, owner.gid)
