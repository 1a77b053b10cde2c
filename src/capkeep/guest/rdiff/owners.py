"""A mirror whose files belong to their owners, with their access lists and `user.` attributes.

For a half that holds CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE. No file gets a set-uid or set-gid
bit, a capability, or becomes a device: those are in the metadata alone. Attributes are set by Python
itself, so that nothing depends on which libraries rdiff-backup was installed with.
"""

import errno
import os
import pwd
from collections.abc import Callable
from contextlib import suppress
from grp import getgrnam
from typing import Final, Protocol

from capkeep.guest.rdiff.acl import ACL, DEFAULT_ACL, acl_value
from capkeep.guest.rdiff.wire import AclEntry, Failed

PLAIN: Final = b"user."  # all others are the kernel's, and need more rights than we have


class Node(Protocol):
    """A node of the mirror (rpath.RPath)."""

    path: bytes

    def issym(self) -> bool: ...
    def isdir(self) -> bool: ...


class Attributes(Protocol):
    """rdiff-backup's extended attributes of a node (meta/ea.py)."""

    attr_dict: dict[bytes, bytes]


class Lists(Protocol):
    """rdiff-backup's access lists of a node (meta/acl_posix.py)."""

    entry_list: object
    default_entry_list: object


def set_up(owners: str, entries: Callable[[object], tuple[AclEntry, ...]]) -> None:
    """Let rdiff-backup's code set owners, by "names" or by "numbers", and all else of a node's.

    `entries` puts rdiff-backup's own form of an access list into ours.
    """
    from rdiff_backup import Globals
    from rdiffbackup.locations.map import owners as maps
    from rdiffbackup.meta import acl_posix, ea

    Globals.change_ownership = True
    Globals.process_uid = 0  # no directory must be opened for a moment: we pass through any
    Globals.change_mirror_perms = False
    maps.init_users_mapping(None, owners == "numbers")
    maps.init_groups_mapping(None, owners == "numbers")
    ea.ExtendedAttributes.write_to_rp = _set_attributes
    acl_posix.AccessControlLists.write_to_rp = lambda lists, node, _map_names=1: _set_lists(
        lists, node, entries
    )


def keep_top(top: bytes) -> None:
    """The mirror's own directory stays ours, whatever it shows."""
    from rdiff_backup import rpath

    for name in ("chown", "write_ea", "write_acl"):
        usual = getattr(rpath.RPath, name)

        def below(
            self: Node,
            *words: object,
            usual: Callable[..., None] = usual,
            **more: object,
        ) -> None:
            if self.path != top:
                usual(self, *words, **more)

        setattr(rpath.RPath, name, below)


def _set_attributes(attributes: Attributes, node: Node) -> None:
    """Those that users set, and no others. Raises Failed, OSError."""
    if node.issym():
        return
    wanted = {os.fsdecode(n): v or b"" for n, v in attributes.attr_dict.items()
              if n.startswith(PLAIN)}  # fmt: skip
    try:
        found = [n for n in os.listxattr(node.path) if n.startswith(os.fsdecode(PLAIN))]
        for name in found:
            if name not in wanted:
                os.removexattr(node.path, name)
        for name, value in wanted.items():
            os.setxattr(node.path, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        if wanted:
            raise _no_place("extended attributes", node) from error


def _set_lists(lists: Lists, node: Node, entries: Callable[[object], tuple[AclEntry, ...]]) -> None:
    """The access list, and a directory's for what is made in it. Raises Failed, OSError."""
    if node.issym():
        return
    both = {ACL: lists.entry_list, DEFAULT_ACL: lists.default_entry_list if node.isdir() else None}
    for name, given in both.items():
        found = entries(given)
        try:
            known = tuple(map(_known, found))
        except KeyError:
            continue  # of somebody who is unknown here: it stays as others have set it
        # A list without further names says no more than the mode.
        if not known or (name == ACL and len(known) <= 3):
            with suppress(OSError):  # there is none, or the file system knows none
                os.removexattr(node.path, name)
            continue
        try:
            os.setxattr(node.path, name, acl_value(known))
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                raise _no_place("access lists", node) from error
            raise


def _known(entry: AclEntry) -> AclEntry:
    """With a number: rdiff-backup itself writes names. Raises KeyError."""
    tag, number, name, perms = entry
    if number >= 0 or tag not in ("u", "g"):
        return entry
    return tag, pwd.getpwnam(name).pw_uid if tag == "u" else getgrnam(name).gr_gid, name, perms


def _no_place(what: str, node: Node) -> Failed:
    return Failed(
        "engine",
        f"the repository's file system holds no {what}, which {os.fsdecode(node.path)} has: take"
        ' another, or write owners = "metadata"',
    )
