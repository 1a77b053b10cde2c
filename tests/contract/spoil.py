"""One thing of a path made another, and nothing else: its time stays, and its directory's.

Python's own library is enough: an engine of the tests does the same in a room.
"""

import os
from collections.abc import Callable
from typing import Final, NamedTuple


class Spoil(NamedTuple):
    """A path below a tree, and what becomes of it."""

    name: str
    act: str  # one of ACTS
    value: bytes | int = b""
    attribute: str = ""


def _written(path: str, one: Spoil) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(one.value))


def _filled(path: str, _: Spoil) -> None:
    """Its holes with zeros."""
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "r+b") as file:
        file.write(content)


def _parted(path: str, _: Spoil) -> None:
    """From the other names of the same file."""
    state = os.stat(path)
    with open(path, "rb") as file:
        content = file.read()
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(content)
    os.chown(path, state.st_uid, state.st_gid)
    os.chmod(path, state.st_mode)


def _led(path: str, one: Spoil) -> None:
    """Elsewhere, as a symbolic link."""
    state = os.lstat(path)
    os.unlink(path)
    os.symlink(bytes(one.value), path)
    os.lchown(path, state.st_uid, state.st_gid)


def _attributed(path: str, one: Spoil) -> None:
    if one.value:
        os.setxattr(path, one.attribute, bytes(one.value))
    else:
        os.removexattr(path, one.attribute)


ACTS: Final[dict[str, Callable[[str, Spoil], None]]] = {
    "write": _written, "fill": _filled, "part": _parted, "lead": _led, "attribute": _attributed,
    "own": lambda path, one: os.lchown(path, int(one.value), int(one.value)),
    "mode": lambda path, one: os.chmod(path, int(one.value)),
    "time": lambda path, one: None,
}  # fmt: skip


def spoil(top: str, one: Spoil) -> None:
    """Do it. Raises OSError."""
    path = f"{top}/{one.name}"
    later = int(one.value) if one.act == "time" else 0  # nanoseconds
    known = [(p, os.lstat(p)) for p in (path, os.path.dirname(path))]
    ACTS[one.act](path, one)
    for place, state in known:
        time = state.st_mtime_ns + (later if place == path else 0)
        os.utime(place, ns=(time, time), follow_symlinks=False)
