"""Files that appear whole or not at all, with their owner and mode from the first moment."""

import contextlib
import os
from typing import NamedTuple


class Owner(NamedTuple):
    """Who a file or directory belongs to."""

    uid: int
    gid: int


def write_atomic(path: str, content: bytes, *, owner: Owner, mode: int) -> bool:
    """Replace `path` as a whole, durably; False if it was already so. Raises OSError."""
    if _is_already(path, content, owner, mode):
        return False
    draft = f"{path}.new"
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
    return True


def _is_already(path: str, content: bytes, owner: Owner, mode: int) -> bool:
    try:
        state = os.lstat(path)
        with open(path, "rb") as file:
            same = file.read(len(content) + 1) == content
    except OSError:
        return False
    return same and (state.st_uid, state.st_gid) == owner and state.st_mode & 0o7777 == mode


def make_directory(path: str, *, owner: Owner, mode: int) -> bool:
    """The directory with exactly this owner and mode, its parents 0755; False if it was so."""
    changed = False
    if not os.path.isdir(path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.mkdir(path, 0o700)
        changed = True
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        state = os.fstat(fd)
        if (state.st_uid, state.st_gid) != owner:
            _own(fd, owner)
            changed = True
        if state.st_mode & 0o7777 != mode:
            os.fchmod(fd, mode)
            changed = True
    finally:
        os.close(fd)
    return changed


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
