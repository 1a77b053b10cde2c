"""Changes to this host: shown before they are made, and taken back together when one fails."""

import contextlib
import difflib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import NamedTuple

from capkeep.errors import CapkeepError
from capkeep.host.files import (
    Owner,
    directory_differs,
    file_differs,
    make_directory,
    remove_directory,
    remove_file,
    write_atomic,
)

Undo = Callable[[], None]


def no_difference() -> str:
    """Of a change that says all in its name."""
    return ""


class Change(NamedTuple):
    """One thing that this host must have, whether that is still to be made, and how."""

    what: str
    needed: Callable[[], bool]
    make: Callable[[], Undo]  # returns the way back
    difference: Callable[[], str] = no_difference  # as a unified diff
    path: str = ""  # of a file or a directory


class Removal(NamedTuple):
    """One thing that is taken away, if it is still there. There is no way back."""

    what: str
    needed: Callable[[], bool]
    make: Callable[[], None]


class Changes:
    """What has been made so far. As a context: an error on the way takes all of it back."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self._undo: list[tuple[str, Undo]] = []

    def make(self, changes: Iterable[Change]) -> None:
        """Make those that are needed. Raises what the first one that fails does."""
        for change in changes:
            if change.needed():
                self.also(change.what, change.make())
                self.made.append(change.what)

    def also(self, what: str, undo: Undo) -> None:
        """Take this back as well."""
        self._undo.append((what, undo))

    def __enter__(self) -> "Changes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: object, _where: TracebackType | None
    ) -> None:
        if kind is None:
            return
        while self._undo:
            what, undo = self._undo.pop()
            try:
                undo()
            except (OSError, CapkeepError) as error:
                print(f"capkeep: {what} could not be taken back: {error}", file=sys.stderr)
        if self.made:
            print("capkeep: what had been made was taken back", file=sys.stderr)


def file_change(
    what: str, path: str, content: bytes, *, owner: Owner, mode: int,
    readable: Callable[[bytes], str] = bytes.decode,
) -> Change:  # fmt: skip
    """A file with this content; `readable` makes text of it for people."""
    return Change(
        what,
        partial(file_differs, path, content, owner=owner, mode=mode),
        partial(put_file, path, content, owner=owner, mode=mode),
        partial(_file_difference, path, content, mode, readable),
        path,
    )


def indented(content: bytes) -> str:
    """JSON with a line for each value, to be compared line by line."""
    return json.dumps(json.loads(content), indent=1)


def directory_change(path: str, *, owner: Owner, mode: int) -> Change:
    """A directory with this owner and mode."""
    return Change(
        f"directory {path} (owner {owner.uid}:{owner.gid}, mode {mode:04o})",
        partial(directory_differs, path, owner=owner, mode=mode),
        partial(put_directory, path, owner=owner, mode=mode),
        path=path,
    )


def link_change(path: str, target: str) -> Change:
    """A symbolic link with this target, in a directory that only root can write to."""
    return Change(
        f"link {path} to {target}",
        lambda: not os.path.islink(path) or os.readlink(path) != target,
        partial(_put_link, path, target),
        path=path,
    )


def empty_directory(path: str) -> Removal:
    """A directory, once nothing is in it any more."""

    def is_empty() -> bool:
        try:
            return not os.listdir(path)
        except FileNotFoundError:
            return False

    return Removal(f"directory {path}", is_empty, partial(os.rmdir, path))


def put_file(path: str, content: bytes, *, owner: Owner, mode: int) -> Undo:
    """Write the file; returns the way back to what was there. Raises RefusedError, OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        write_atomic(path, content, owner=owner, mode=mode)
        return partial(remove_file, path)
    with open(fd, "rb") as file:
        state = os.fstat(fd)
        before = file.read()
    write_atomic(path, content, owner=owner, mode=mode)
    was = Owner(state.st_uid, state.st_gid)
    return partial(write_atomic, path, before, owner=was, mode=stat.S_IMODE(state.st_mode))


def put_directory(path: str, *, owner: Owner, mode: int) -> Undo:
    """Make the directory; returns the way back to what was there. Raises RefusedError, OSError."""
    try:
        state = os.lstat(path)
    except OSError:
        missing = [path]
        while not os.path.lexists(above := os.path.dirname(missing[-1])):
            missing.append(above)
        make_directory(path, owner=owner, mode=mode)
        return partial(_remove_empty, missing)
    make_directory(path, owner=owner, mode=mode)
    was = Owner(state.st_uid, state.st_gid)
    return partial(make_directory, path, owner=was, mode=stat.S_IMODE(state.st_mode))


def _put_link(path: str, target: str) -> Undo:
    """Make the link where nothing is, or another link, or an empty directory. Raises OSError."""
    before = os.readlink(path) if os.path.islink(path) else None
    if before is not None:
        os.unlink(path)
    elif os.path.isdir(path):
        os.rmdir(path)  # a mount point of before the host's own became a link
    os.symlink(target, path)

    def undo() -> None:
        os.unlink(path)
        if before is not None:
            os.symlink(before, path)

    return undo


def _remove_empty(paths: Iterable[str]) -> None:
    """What somebody has put something into meanwhile stays."""
    with contextlib.suppress(OSError):
        for path in paths:
            remove_directory(path)


def _file_difference(path: str, content: bytes, mode: int, readable: Callable[[bytes], str]) -> str:
    try:
        with open(path, "rb") as file:
            before, was = readable(file.read()), path
    except (OSError, ValueError):
        before, was = "", "/dev/null"
    lines = difflib.unified_diff(
        before.splitlines(), readable(content).splitlines(),
        was, f"{path} (mode {mode:04o})", lineterm="",
    )  # fmt: skip
    return "\n".join(lines)
