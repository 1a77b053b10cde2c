"""Who could read what: the kernel's rule, and what it is not believed of."""

import os
import struct
from itertools import product as every
from pathlib import Path

import pytest

from capkeep.kernel.peer import Peer
from capkeep.rooms.rights import (
    ACL,
    NO_ACL,
    READ,
    SEARCH,
    UNKNOWN,
    Acl,
    Node,
    from_attribute,
    from_text,
    keeps_firm,
    may,
)

ANN = Peer(1000, 1000, frozenset((1000, 50)))
LIST = "user::rw-\nuser:1000:---\nuser:1001:r--\ngroup::r--\ngroup:50:-w-\nmask::r--\nother::r--\n"


def test_the_first_class_that_fits_decides() -> None:
    assert may(ANN, Node(1000, 9, 0o400, NO_ACL), READ)
    assert not may(
        ANN, Node(1000, 50, 0o044, NO_ACL), READ
    )  # the owner's bits, though all others may
    assert may(ANN, Node(9, 50, 0o040, NO_ACL), READ)
    assert not may(ANN, Node(9, 50, 0o004, NO_ACL), READ)
    assert may(ANN, Node(9, 9, 0o005, NO_ACL), READ | SEARCH)
    assert not may(ANN, Node(9, 9, 0o004, NO_ACL), READ | SEARCH)


def test_lists_give_and_take() -> None:
    acl = from_text(LIST)
    assert isinstance(acl, Acl)
    assert not may(ANN, Node(9, 9, 0o644, acl), READ)  # named, with nothing
    assert may(ANN._replace(uid=1001), Node(9, 9, 0o644, acl), READ)
    assert not may(ANN._replace(uid=7), Node(9, 9, 0o644, acl), READ)  # a group that may not
    assert may(ANN._replace(uid=7), Node(9, 1000, 0o644, acl), READ)  # and one that may
    assert may(Peer(7, 7, frozenset((7,))), Node(9, 9, 0o644, acl), READ)


def test_what_is_not_known_is_not_believed() -> None:
    for text in ("user::rw-", "user:ann:r--\nuser::r--\ngroup::r--\nother::r--", "", "nonsense"):
        assert from_text(text) is UNKNOWN
    for value in (b"", b"\2\0\0\0\1", struct.pack("<I", 3), struct.pack("<IHHI", 2, 64, 4, 0)):
        assert from_attribute(value) is UNKNOWN
    assert not may(ANN, Node(9, 50, 0o750, UNKNOWN), READ)
    assert not may(ANN, Node(9, 50, 0o705, UNKNOWN), READ)
    assert may(ANN, Node(9, 9, 0o755, UNKNOWN), READ)
    assert may(ANN, Node(1000, 9, 0o700, UNKNOWN), READ)


def test_only_what_root_alone_can_change_is_firm() -> None:
    assert keeps_firm(Node(0, 9, 0o755, NO_ACL))
    for uid, mode in ((9, 0o755), (0, 0o775), (0, 0o1777), (0, 0o2770)):
        assert not keeps_firm(Node(uid, 0, mode, NO_ACL))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask the kernel as somebody else")
def test_the_kernel_agrees(tmp_path: Path) -> None:
    """Every mode of a file, with and without a list, as its owner, its group's, a named one, anybody."""
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    header = struct.pack("<I", 2)
    people = [
        (1000, 1000, (50,)),
        (1001, 7, ()),
        (9, 9, ()),
        (7, 1000, ()),
        (7, 7, ()),
        (7, 50, ()),
    ]
    read, fd = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(fd, b"".join(_differing(file, header, people)) or b"same")
        finally:
            os._exit(0)
    os.close(fd)
    os.waitpid(pid, 0)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"same"


def _differing(
    file: Path, header: bytes, people: list[tuple[int, int, tuple[int, ...]]]
) -> list[bytes]:
    found = []
    os.chown(file, 9, 50)
    for named, group, mask, other in every((0, 4), (0, 4), (0, 4), (0, 4)):
        entries = [
            (1, 0, 6),
            (2, named, 1001),
            (4, group, 0),
            (8, 4, 1000),
            (16, mask, 0),
            (32, other, 0),
        ]
        value = header
        for tag, second, third in entries:
            bits, number = (second, third) if tag in (2, 8) else (max(second, third), 0xFFFFFFFF)
            value += struct.pack("<HHI", tag, bits, number)
        os.setxattr(file, ACL, value)
        mode = file.stat().st_mode & 0o7777
        for uid, gid, groups in people:
            os.setgroups(groups)
            os.setresgid(gid, gid, 0)
            os.setresuid(uid, uid, 0)
            allowed = os.access(file, os.R_OK, effective_ids=True)
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            peer = Peer(uid, gid, frozenset((gid, *groups)))
            ours = may(peer, Node(9, 50, mode, from_attribute(value)), READ)
            # The kernel looks at no list whose mask is empty (acl_permission_check, fs/namei.c), and
            # takes whoever is named in it for anybody: the list says no, and so do we.
            if ours != allowed and (ours or mask):
                found.append(f"{uid}:{gid} {named}{group}{mask}{other} {allowed}\n".encode())
    return found
