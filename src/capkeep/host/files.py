"""Files that appear whole or not at all, with their owner and mode from the first moment."""

import contextlib
import errno
import os
import stat
from typing import Final, NamedTuple

from capkeep.host.commands import run_command

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


def write_atomic(path: str, content: bytes, *, owner: Owner, mode: int) -> None:
    """Replace `path` as a whole, durably. Raises OSError."""
    draft = f"{path}.{os.getpid()}.new"  # another's draft is not ours to remove
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        _own(fd, owner)
        os.fchmod(fd, mode)
        file.flush()
        os.fsync(fd)
    os.rename(draft, path)
    sync_directory(os.path.dirname(path))


def directory_differs(path: str, *, owner: Owner, mode: int) -> bool:
    """Whether `path` is not yet a directory with this owner and mode."""
    try:
        state = os.lstat(path)
    except OSError:
        return True
    as_wanted = (state.st_uid, state.st_gid) == owner and state.st_mode & 0o7777 == mode
    return not (stat.S_ISDIR(state.st_mode) and as_wanted)


def make_directory(path: str, *, owner: Owner, mode: int) -> None:
    """The directory with exactly this owner and mode, its parents 0755. Raises OSError."""
    if not os.path.isdir(path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.mkdir(path, 0o700)
    # A symbolic link in its place is refused: a room could have put it there.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _own(fd, owner)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def open_directory(path: str) -> int:
    """A handle on a directory that is made if it is missing, 0700, with its parents.

    No symbolic link is followed on the way: whoever owns a directory above could otherwise lead us
    elsewhere. Raises NotADirectoryError for one, OSError.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open("/", flags)
    try:
        for name in path.strip("/").split("/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=here)
            below = os.open(name, flags, dir_fd=here)
            os.close(here)
            here = below
    except BaseException:
        os.close(here)
        raise
    return here


def remove_tree(path: str) -> None:
    """Remove a directory with all that rooms left in it, on this filesystem. Raises OSError.

    rm(1) follows no link and stops at no depth; `shutil.rmtree` ends at Python's recursion limit.
    """
    code, output = run_command(
        ("/bin/rm", "-rf", "--one-file-system", "--", path), timeout=REMOVE_SECONDS
    )
    if code != 0:
        raise OSError(errno.EIO, output.strip() or "rm failed", path)


def open_log(path: str) -> int:
    """A log of root's own to append to; one that has grown large is first put aside as `.old`.

    Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_size > LOG_BYTES:
            os.replace(path, path + ".old")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def sync_directory(path: str) -> None:
    """Make a rename in this directory durable (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _own(fd: int, owner: Owner) -> None:
    if os.geteuid() == 0:
        os.fchown(fd, owner.uid, owner.gid)
