"""Who could read what, by what a snapshot says of it; pure.

The rule is the kernel's own: path_resolution(7), acl(5) and posix_acl_permission() in fs/posix_acl.c.
Where it is not known whether a file has an access control list, nothing is taken for allowed that a
list could take away from a class of users: the group's bits are then only the most that a list allows.
"""

import re
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from capkeep.kernel.peer import Peer

READ: Final = 4
SEARCH: Final = 1
ACL: Final = "system.posix_acl_access"
DEFAULT: Final = (
    "system.posix_acl_default"  # for what is made in a directory: allows nobody anything
)
TEXT: Final = (
    "SCHILY.acl.access"  # star's name for a list as text, restic's in archives, and borg's here
)
DEFAULT_TEXT: Final = "SCHILY.acl.default"
_OTHERS: Final = "system."  # of NFS and others, whose rules are not known here
_VERSION: Final = 2  # linux/posix_acl_xattr.h
_KINDS: Final = {
    0x01: "owner", 0x02: "user", 0x04: "group", 0x08: "group", 0x10: "mask", 0x20: "other",
}  # fmt: skip
_OWNING_GROUP: Final = -1  # in place of the number of a named group
_TEXT: Final = re.compile(r"(user|group|mask|other):(\d*):([r-])([w-])([x-])")


class Acl(NamedTuple):
    """An access control list: what its entries give, before the mask."""

    users: tuple[tuple[int, int], ...]  # named users: uid, bits
    groups: tuple[tuple[int, int], ...]  # gid, bits; _OWNING_GROUP for the file's own
    mask: int
    other: int


class Unknown(NamedTuple):
    """In place of a list: nobody has told whether there is one, or what it says."""


# What one must be able to do with an entry to be given what it holds.
WANTED: Final = {"file": READ, "dir": READ | SEARCH, "symlink": 0}
NO_ACL: Final = None
UNKNOWN: Final = Unknown()


class Node(NamedTuple):
    """What decides about a file of a snapshot."""

    uid: int
    gid: int
    mode: int  # as st_mode without the file type
    acl: Acl | Unknown | None


def keeps_firm(node: Node) -> bool:
    """Whether nobody but root could have exchanged what is in a directory.

    Engines walk by path. Whoever may write to a directory can put a link in the place of another in it
    while the engine is inside, and so have somebody else's files kept below his own directories, where
    nothing shows how closed the place is that they came from. Owner and content of a file are of one
    file all the same: an engine asks the opened file for both. So what is one's own may be given
    wherever it lies, and what is not, only where nothing but such directories is above it.
    """
    return node.uid == 0 and not node.mode & 0o022  # a list's mask is the group's bits


def may(peer: Peer, node: Node, want: int) -> bool:
    """Whether all of `want` (READ, SEARCH) is allowed."""
    owner, group, other = (node.mode >> shift & 7 for shift in (6, 3, 0))
    if peer.uid == node.uid:
        return owner & want == want
    if isinstance(node.acl, Unknown):
        return group & other & want == want
    if isinstance(node.acl, Acl):
        return _listed(peer, node, node.acl, want)
    granted = group if node.gid in peer.groups else other
    return granted & want == want


def _listed(peer: Peer, node: Node, acl: Acl, want: int) -> bool:
    for uid, bits in acl.users:
        if uid == peer.uid:
            return bits & acl.mask & want == want
    own = [b for g, b in acl.groups if (node.gid if g == _OWNING_GROUP else g) in peer.groups]
    if own:
        return any(bits & acl.mask & want == want for bits in own)
    return acl.other & want == want


def is_list(name: str) -> bool:
    """Whether an attribute of that name, or a word of an archive, is an access control list."""
    return name.startswith((_OTHERS, "SCHILY.acl."))


def from_attributes(attributes: Iterable[tuple[str, bytes]]) -> Acl | Unknown | None:
    """The list among a file's attributes; none, if all were told and there is none."""
    found: Acl | Unknown | None = NO_ACL
    for name, value in attributes:
        if name == ACL:
            found = from_attribute(value)
        elif name == TEXT:
            found = from_text(value.decode(errors="replace"))
        elif is_list(name) and name not in (DEFAULT, DEFAULT_TEXT):
            return UNKNOWN
    return found


def from_attribute(value: bytes) -> Acl | Unknown:
    """A list as the kernel keeps it in an attribute (posix_acl_from_xattr)."""
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != _VERSION:
        return UNKNOWN
    entries = []
    for tag, bits, number in struct.iter_unpack("<HHI", value[4:]):
        if tag not in _KINDS:
            return UNKNOWN
        own = tag == 0x04
        entries.append((_KINDS[tag], _OWNING_GROUP if own else number, bits))
    return _of(entries)


def from_text(text: str) -> Acl | Unknown:
    """A list as acl_to_text(3) writes it, with numbers; names could be anybody's by now."""
    entries = []
    for line in text.split():
        found = _TEXT.fullmatch(line)
        if found is None:
            return UNKNOWN
        kind, number, *letters = found.groups()
        bits = sum(bit for bit, letter in zip((4, 2, 1), letters, strict=True) if letter != "-")
        if kind == "user" and not number:
            kind = "owner"
        entries.append((kind, int(number) if number else _OWNING_GROUP, bits))
    return _of(entries)


def _of(entries: list[tuple[str, int, int]]) -> Acl | Unknown:
    one = {kind: bits for kind, _, bits in entries}
    if not {"owner", "group", "other"} <= one.keys():
        return UNKNOWN
    return Acl(
        users=tuple((number, bits) for kind, number, bits in entries if kind == "user"),
        groups=tuple((number, bits) for kind, number, bits in entries if kind == "group"),
        mask=one.get("mask", 7),
        other=one["other"],
    )
