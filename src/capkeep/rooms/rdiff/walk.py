"""The half that sees the files: what there is below the sources, in the order that both halves know."""

import errno
import grp
import os
import pwd
import stat
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final, NamedTuple

from capkeep.guest.rdiff.acl import ACL, DEFAULT_ACL, TAGS, VERSION
from capkeep.guest.rdiff.wire import (
    RESERVED,
    AclEntry,
    Index,
    Meta,
    is_attribute_name,
    is_user_name,
)
from capkeep.rooms.rdiff.globs import matcher

Trouble = Callable[[bytes, OSError], None]  # a path of the machine, and what the kernel said
KINDS: Final = {
    stat.S_IFREG: "reg", stat.S_IFDIR: "dir", stat.S_IFLNK: "sym", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock", stat.S_IFCHR: "dev", stat.S_IFBLK: "dev",
}  # fmt: skip


class Choice(NamedTuple):
    """What of the machine is to be kept."""

    root: bytes  # where the machine's "/" is seen: b"" for "/" itself
    include: tuple[bytes, ...]  # real paths, without a slash at the end
    exclude: tuple[str, ...]  # rdiff-backup's patterns of real paths
    one_file_system: bool


class _Found(NamedTuple):
    at: Index
    state: os.stat_result
    inside: bool  # a source
    deeper: bool  # what is in it is wanted too


def nodes(choice: Choice, trouble: Trouble) -> Iterator[Meta]:
    """The root, the directories that lead to the sources, and all that is in these, depth first."""
    wanted = [tuple(filter(None, path.split(b"/"))) for path in choice.include]
    walk = _Walk(choice, wanted, trouble)
    yield from walk.below((), os.lstat(choice.root or b"/"))


class _Walk:
    def __init__(self, choice: Choice, wanted: list[Index], trouble: Trouble) -> None:
        self._root = choice.root
        self._wanted = wanted
        self._excluded = matcher(choice.exclude)
        self._one = choice.one_file_system
        self._trouble = trouble

    def below(self, index: Index, state: os.stat_result) -> Iterator[Meta]:
        """A node, and all that is in it; with an explicit stack, for trees may be very deep."""
        stack = [iter([_Found(index, state, self._is_source(index), True)])]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
                continue
            meta = self._meta(item.at, item.state)
            if meta is None:
                continue
            yield meta
            if meta.kind == "dir" and item.deeper:
                stack.append(self._children(item.at, item.state, inside=item.inside))

    def _is_source(self, index: Index) -> bool:
        return any(index[: len(w)] == w for w in self._wanted)

    def _children(
        self, index: Index, folder: os.stat_result, *, inside: bool
    ) -> "Iterator[_Found]":
        for name in self._names(index, inside=inside):
            child = (*index, name)
            if child == (RESERVED,):
                continue
            with_in = inside or self._is_source(child)
            path = b"/" + b"/".join(child)
            if with_in and self._excluded(path):
                continue
            try:
                state = os.lstat(self._root + path)
            except OSError as error:
                self._trouble(path, error)
                continue
            if not with_in and not stat.S_ISDIR(state.st_mode):
                self._astray(child)
            # Of another file system the directory where it is mounted belongs to this one.
            deeper = not (self._one and inside and state.st_dev != folder.st_dev)
            yield _Found(child, state, with_in, deeper)

    def _astray(self, index: Index) -> None:
        """What leads to sources is no directory any more: nothing behind it is kept."""
        error = OSError(errno.EIO, "lies behind what is a symbolic link, or no directory")
        for wanted in self._wanted:
            if wanted[: len(index)] == index:
                self._trouble(b"/" + b"/".join(wanted), error)

    def _names(self, index: Index, *, inside: bool) -> list[bytes]:
        """In a source all; above one only what leads there."""
        if not inside:
            deep = len(index)
            return sorted({w[deep] for w in self._wanted if w[:deep] == index and len(w) > deep})
        path = b"/" + b"/".join(index)
        try:
            return sorted(os.listdir(self._root + path or b"/"))
        except OSError as error:
            self._trouble(path, error)
            return []

    def _meta(self, index: Index, state: os.stat_result) -> Meta | None:
        path = b"/" + b"/".join(index)
        kind = KINDS[stat.S_IFMT(state.st_mode)]
        try:
            link = os.readlink(self._root + path) if kind == "sym" else b""
            xattrs, acl, default = attributes(
                self._root + path, lambda error: self._trouble(path, error)
            )
        except OSError as error:
            self._trouble(path, error)
            return None
        numbers = ("", 0, 0)
        if kind == "dev":
            char = "c" if stat.S_ISCHR(state.st_mode) else "b"
            numbers = (char, os.major(state.st_rdev), os.minor(state.st_rdev))
        return Meta(
            where=index, kind=kind, link=link, numbers=numbers, xattrs=xattrs, acl=acl,
            default_acl=default, perms=stat.S_IMODE(state.st_mode), uid=state.st_uid,
            gid=state.st_gid, uname=user_name(state.st_uid), gname=group_name(state.st_gid),
            mtime=state.st_mtime_ns // 10**9, size=state.st_size, nlink=state.st_nlink,
            inode=state.st_ino if state.st_nlink > 1 else 0,
            device=state.st_dev if state.st_nlink > 1 else 0,
        )  # fmt: skip


Attributes = tuple[tuple[tuple[bytes, bytes], ...], tuple[AclEntry, ...], tuple[AclEntry, ...]]


def attributes(path: bytes, trouble: Callable[[OSError], None]) -> Attributes:
    """Extended attributes, and access lists, which the kernel shows as such.

    What cannot be read, or not be kept, is told, and the rest is kept. Raises OSError for a node that
    is gone.
    """
    xattrs: list[tuple[bytes, bytes]] = []
    lists: dict[str, tuple[AclEntry, ...]] = {ACL: (), DEFAULT_ACL: ()}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise
        if error.errno != errno.ENOTSUP:
            trouble(error)
        return (), (), ()
    for name in names:
        try:
            value = os.getxattr(path, name, follow_symlinks=False)
            if name in lists:
                lists[name] = acl_entries(value)
            else:
                xattrs.append((_kept_name(name), value))
        except OSError as error:
            if error.errno != errno.ENODATA:  # it is gone since
                trouble(OSError(error.errno, f"attribute {name!r}: {error.strerror}"))
    return tuple(xattrs), lists[ACL], lists[DEFAULT_ACL]


def _kept_name(name: str) -> bytes:
    """An attribute's name. Raises OSError for one that rdiff-backup's metadata cannot hold."""
    key = os.fsencode(name)
    if not is_attribute_name(key):
        raise OSError(errno.EINVAL, "rdiff-backup cannot keep that name")
    return key


def acl_entries(value: bytes) -> tuple[AclEntry, ...]:
    """An access list as the kernel hands it out. Raises OSError for one of another form."""
    if len(value) % 8 != 4 or struct.unpack_from("<I", value)[0] != VERSION:
        raise OSError(errno.EINVAL, "an access list of an unknown form")
    found: list[AclEntry] = []
    for tag, perms, number in struct.iter_unpack("<HHI", value[4:]):
        letter = TAGS.get(tag)
        if letter is None:
            raise OSError(errno.EINVAL, "an access list with an unknown entry")
        name = {"u": user_name, "g": group_name}.get(letter, lambda _: "")(number)
        found.append((letter, -1 if letter not in "ug" else number, name, perms))
    return tuple(found)


@cache
def user_name(uid: int) -> str:
    """A user's name, as `_name_of` finds it."""
    return _name_of(uid, lambda number: pwd.getpwuid(number).pw_name)


@cache
def group_name(gid: int) -> str:
    """A group's name, as `_name_of` finds it."""
    return _name_of(gid, lambda number: grp.getgrgid(number).gr_name)


def _name_of(number: int, find: Callable[[int], str]) -> str:
    """The name, or "" where there is none that rdiff-backup's metadata can hold."""
    try:
        name = find(number)
    except KeyError:
        return ""
    return name if is_user_name(name) else ""
