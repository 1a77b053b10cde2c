"""A tree with every kind of metadata, and a manifest that shows each difference."""

import hashlib
import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

CAPABILITY = struct.pack("<IIIII", 0x02000000 | 1, 1 << 13, 0, 0, 0)  # cap_net_raw=ep, revision 2
SPARSE_SIZE = 32 << 20
HUGE_SIZE = 5 << 30
HUGE_MARKS = (0, (1 << 31) - 5, (1 << 32) - 5, HUGE_SIZE - 13)
_ZEROS = bytes(1 << 22)
# Of no security module: what security.selinux is on a host without SELinux.
LABEL = "security.capkeep"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel has it in an attribute: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


def reads(uid: int) -> bytes:
    """An ACL that lets one user more read."""
    return acl(
        (0x01, 6, 0xFFFFFFFF), (0x02, 4, uid), (0x04, 4, 0xFFFFFFFF), (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )  # fmt: skip


NOBODY_READS, SOMEBODY_FAR_READS = reads(65534), reads(70000)


class Content(NamedTuple):
    """What is in a huge file."""

    size: int
    marks: tuple[bytes, ...]
    strange: int  # bytes elsewhere that are not zero


class Kept(NamedTuple):
    """What must come back of one path."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    links: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


def make(top: Path) -> None:
    """Fill a directory; needs root."""
    _files(top)
    _names(top)
    _specials(top)
    deep = top / "deep"
    deep.mkdir()
    for number in range(60):
        deep /= f"level-{number}"
        deep.mkdir()
    (deep / "bottom").write_text("here")
    for number, path in enumerate(sorted([top, *top.rglob("*")], key=lambda p: (-len(p.parts), p))):
        moment = 1_600_000_000_123_456_789 + number * 1_000_000_007
        os.utime(path, ns=(moment, moment), follow_symlinks=False)


def _files(top: Path) -> None:
    for mode in (0o644, 0o600, 0o000, 0o4755, 0o2755, 0o1644, 0o7777):
        path = top / f"mode-{mode:04o}"
        path.write_text(f"{mode:o}")
        os.chown(path, 12345, 54321)
        path.chmod(mode)
    for mode in (0o755, 0o700, 0o2775, 0o1777, 0o000):
        path = top / f"dir-{mode:04o}"
        path.mkdir()
        (path / "inside").write_text("x")
        os.chown(path, 70000, 4_000_000_000)
        path.chmod(mode)
    (top / "far").write_text("x")
    os.chown(top / "far", 70000, 4_000_000_000)
    (top / "empty").touch()
    with (top / "sparse").open("wb") as file:
        file.write(b"head")
        file.seek(SPARSE_SIZE - 4)
        file.write(b"tail")
    (top / "first").write_text("one content")
    os.link(top / "first", top / "second")
    (top / "sub").mkdir()
    os.link(top / "first", top / "sub" / "third")
    (top / "attributes").write_text("x")
    os.setxattr(top / "attributes", "user.note", b"\x00binary\xff")
    os.setxattr(top / "attributes", "user.empty", b"")
    (top / "acl").write_text("x")
    os.setxattr(top / "acl", "system.posix_acl_access", NOBODY_READS)
    (top / "acl-dir").mkdir()
    os.setxattr(top / "acl-dir", "system.posix_acl_default", NOBODY_READS)
    (top / "acl-far").write_text("x")
    os.setxattr(top / "acl-far", "system.posix_acl_access", SOMEBODY_FAR_READS)
    os.setxattr(top / "sub", "user.note", b"of a directory")
    (top / "privileged").write_text("x")
    os.setxattr(top / "privileged", "trusted.note", b"x")
    (top / "ping").write_text("#!")
    (top / "ping").chmod(0o755)
    os.setxattr(top / "ping", "security.capability", CAPABILITY)


def make_huge(file: Path) -> None:
    """More than 32 bits can count, and written nowhere but where counters turn over, and at the end."""
    with file.open("wb") as out:
        for place in HUGE_MARKS:
            out.seek(place)
            out.write(b"at %d" % place)
        out.truncate(HUGE_SIZE)


def read_huge(file: Path) -> Content:
    """All of it is read that is no hole."""
    with file.open("rb", buffering=0) as content:
        size = os.fstat(content.fileno()).st_size
        found = tuple(os.pread(content.fileno(), len(b"at %d" % at), at) for at in HUGE_MARKS)
        others, at = 0, content.seek(0, os.SEEK_DATA)  # it begins with one, and ends with one
        while piece := os.pread(content.fileno(), len(_ZEROS), at):
            others += 0 if piece == _ZEROS[: len(piece)] else len(piece) - piece.count(0)
            at += len(piece)
            at = content.seek(at, os.SEEK_DATA) if at < size else at
    return Content(size, found, others - sum(map(len, found)))


def label(top: Path) -> None:
    """Files with an attribute that no room may set, each before others that rooms may."""
    for name in ("labelled", "labelled too"):
        (top / name).write_text("x")
        os.setxattr(top / name, LABEL, b"x")
        os.setxattr(top / name, "user.note", b"x")
        os.setxattr(top / name, "security.capability", CAPABILITY)


def _names(top: Path) -> None:
    raw = os.fsencode(top)
    for name in (
        b"n" * 255, b"not utf-8 \xff\xfe", b"new\nline", b"tab\tbell\a", b"-r", b"--", b"'quoted'",
        b'"double"', b"back\\slash", b"*", b"[a]", b" leading and trailing ", "grün".encode(),
        b"<&>", "\u2028".encode(),
    ):  # fmt: skip
        with open(raw + b"/" + name, "wb") as file:
            file.write(name)


def _specials(top: Path) -> None:
    (top / "link").symlink_to("first")
    (top / "dangling").symlink_to("/nowhere/at all")
    (top / "owned").symlink_to("second")
    for name in ("link", "owned"):
        os.lchown(top / name, 777, 888)
    os.mkfifo(top / "fifo", 0o640)
    os.mkfifo(top / "pipe", 0o600)
    os.mknod(top / "socket", stat.S_IFSOCK | 0o755)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))


def manifest(top: Path) -> dict[bytes, Kept]:
    """Everything below a directory and itself, by relative name."""
    root = os.fsencode(top)
    found = {b".": _kept(root)}
    for folder, dirs, files in os.walk(root):
        for name in (*dirs, *files):
            path = folder + b"/" + name
            found[os.path.relpath(path, root)] = _kept(path)
    return found


def _kept(path: bytes) -> Kept:
    state = os.lstat(path)
    kind = stat.S_IFMT(state.st_mode)
    content = ""
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == stat.S_IFLNK:
        content = os.fsdecode(os.readlink(path))
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Kept(
        mode=state.st_mode, uid=state.st_uid, gid=state.st_gid,
        size=0 if kind == stat.S_IFDIR else state.st_size, mtime_ns=state.st_mtime_ns,
        rdev=state.st_rdev, links=1 if kind == stat.S_IFDIR else state.st_nlink, content=content,
        xattrs=tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in names),
    )  # fmt: skip
