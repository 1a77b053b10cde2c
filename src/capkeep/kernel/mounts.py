"""The machine's mounts: read them, choose those that hold a job's sources, show them read-only.

Sources: proc_pid_mountinfo(5), mount_namespaces(7), open_tree(2), move_mount(2), mount_setattr(2),
openat2(2), fsopen(2), fsmount(2). The mounts are put together by descriptors and without following
symbolic links: a user who owns a directory above a mount point could otherwise, between our look and
our mount, make us mount his files over /usr.
"""

import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from capkeep.kernel import libc

PSEUDO: Final = frozenset((
    "autofs", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "cpuset", "debugfs",
    "devpts", "devtmpfs", "efivarfs", "functionfs", "fusectl", "hugetlbfs", "mqueue", "nsfs",
    "pipefs", "proc", "pstore", "resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs",
    "sockfs", "sysfs", "tracefs",
))  # fmt: skip
MEMORY: Final = frozenset(("tmpfs", "ramfs"))
NETWORK: Final = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs",
))  # fmt: skip
IMAGES: Final = frozenset(("cramfs", "erofs", "iso9660", "squashfs", "udf"))

_OPENAT2, _OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 437, 428, 429, 442
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _SET_FLAG, _SET_STRING, _CREATE = 1, 0, 1, 6
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x04, 0x08
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_F_EMPTY, _MOVE_T_EMPTY = 0x04, 0x40
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo."""

    id: int
    parent: int
    device: str  # "254:0"
    root: str  # the directory of the filesystem that is mounted here
    point: str
    options: tuple[str, ...]  # of this mount
    kind: str  # filesystem type, such as "ext4" or "fuse.sshfs"
    source: str
    super_options: tuple[str, ...]  # of the filesystem

    @property
    def writable(self) -> bool:
        """Whether the flags, of the mount and of its filesystem, let anybody write."""
        return "rw" in self.options and "rw" in self.super_options


def parse(text: bytes) -> tuple[Mount, ...]:
    """All mounts, in the kernel's order. Raises ValueError for text that is not mountinfo."""
    return tuple(_parse_line(line) for line in text.split(b"\n") if line)


def _parse_line(line: bytes) -> Mount:
    # Spaces inside a field are escaped, so the first lone "-" ends the optional fields.
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
        kind, source, super_options = fields[dash + 1 : dash + 4]
        number, parent = int(fields[0]), int(fields[1])
    except ValueError as error:
        raise ValueError(f"not a line of mountinfo: {line!r}") from error
    return Mount(
        number, parent, _text(fields[2]), _text(fields[3]), _text(fields[4]),
        _options(fields[5]), _text(kind), _text(source), _options(super_options),
    )  # fmt: skip


def _text(field: bytes) -> str:
    if b"\\" in field:
        field = _ESCAPE.sub(lambda m: bytes((int(m[1], 8) & 0xFF,)), field)
    return os.fsdecode(field)


def _options(field: bytes) -> tuple[str, ...]:
    return tuple(_text(option) for option in field.split(b","))


def read_mounts(pid: int | None = None) -> tuple[Mount, ...]:
    """The mounts that a process sees; None for this one. Raises OSError."""
    with open(f"/proc/{pid or 'self'}/mountinfo", "rb") as file:
        return parse(file.read())


def visible(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Without those that another mount, on the same point or above it, has covered."""
    known = {m.id: m for m in mounts}
    children: dict[int, set[str]] = {}
    for m in known.values():
        if m.parent != m.id:
            children.setdefault(m.parent, set()).add(m.point)

    buried: dict[int, bool] = {}

    def is_buried(m: Mount) -> bool:
        # A sibling on a directory above can only have come later: else it would be our parent.
        if m.id not in buried:
            buried[m.id] = False  # ends the walk at the root, which may be its own parent
            siblings = children.get(m.parent, set())
            parent = known.get(m.parent)
            buried[m.id] = any(p in siblings for p in _above(m.point)) or (
                parent is not None and is_buried(parent)
            )
        return buried[m.id]

    covered = {m.id for m in known.values() if m.point in children.get(m.id, ())}
    return tuple(m for m in known.values() if m.id not in covered and not is_buried(m))


def mount_of(path: str, table: Iterable[Mount]) -> Mount | None:
    """The mount that a real path lies on, of those that are visible; None where it is none of them."""
    above = (m for m in table if f"{path}/".startswith(f"{m.point.rstrip('/')}/"))
    return max(above, key=lambda m: len(m.point), default=None)


def _above(path: str) -> Iterable[str]:
    """All directories above a path, nearest first."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def source_mounts(
    mounts: Sequence[Mount],
    includes: Sequence[str],
    *,
    one_file_system: bool,
    programs: Sequence[str] = (),
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Which mount points must be shown for the includes, and which below them are not, and why.

    Parents come first. What an include or a program lies on is always shown, with the mounts above
    it; below an include everything that stores data is, so that a filesystem of a kind unknown here
    is kept rather than lost.
    """
    by_point = {m.point: m for m in visible(mounts)}
    named = {path: _holder(path, by_point) for path in (*includes, *programs)}
    staged = {"/"}
    for holder in named.values():
        if by_point[holder].kind not in PSEUDO:
            staged.update(p for p in (holder, *_above(holder)) if p in by_point)
    left_out: dict[str, str] = {}
    for point in sorted(by_point):
        include = next((i for i in includes if point == i or i in _above(point)), None)
        if include is None or point in staged:
            continue
        above = next(p for p in _above(point) if p in by_point)
        same = by_point[point].device == by_point[named[include]].device
        reason = _why_not(by_point[point].kind, above if above not in staged else "")
        if not reason and one_file_system and not same:
            reason = "another filesystem, and the job stays on one"
        if reason:
            left_out[point] = reason
        else:
            staged.add(point)
    return tuple(sorted(staged)), tuple(left_out.items())


def _holder(path: str, by_point: dict[str, Mount]) -> str:
    """The mount point that a path lies on or is."""
    return next(p for p in (path, *_above(path)) if p in by_point or p == "/")


def _why_not(kind: str, hidden_by: str) -> str:
    """Why a mount below an include is not backed up with it; "" when it is."""
    if kind in PSEUDO:
        return f"{kind}: shows the kernel's own state, stores nothing"
    if kind in MEMORY:
        return f"{kind}: in memory; name it in include to keep it"
    if kind in NETWORK or kind.startswith("fuse."):
        return f"{kind}: not on this machine's disks; name it in include to keep it"
    if kind in IMAGES:
        return f"{kind}: a read-only image; name it in include to keep it"
    if hidden_by:
        return f"lies below {hidden_by}, which is left out"
    return ""


def unshare_mounts() -> None:
    """Give this process mounts of its own, which no other sees. Needs CAP_SYS_ADMIN."""
    libc.unshare(_CLONE_NEWNS)
    libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)


def bind(source: str, target: str) -> None:
    """Show the one mount at `source`, without those below it, at `target`. Raises OSError."""
    _bind(source, _AT_FDCWD, target, 0)


def bind_below(point: str, stage: str, *, nosuid: bool = True, nodev: bool = True) -> None:
    """Show the mount at `point` at the same place below `stage`, read-only from its first moment.

    No symbolic link is followed, neither at the source nor below `stage`. Raises OSError.
    """
    attributes = _ATTR_RDONLY | _ATTR_NOSUID * nosuid | _ATTR_NODEV * nodev
    root = os.open(stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _bind(point, root, point.lstrip("/") or ".", attributes)
    finally:
        os.close(root)


def show_directory(fd: int, stage: str) -> None:
    """Take mounts of our own, and show an open directory and what is mounted in it at `stage`.

    Its path does not matter any more. Raises OSError.
    """
    # Before the mounts are our own: those of another namespace cannot be copied (open_tree(2)).
    tree = copy_tree(fd, stage, _AT_RECURSIVE)
    try:
        unshare_mounts()
        _move(tree, _AT_FDCWD, stage)
    finally:
        os.close(tree)


def _bind(source: str, root: int, target: str, attributes: int) -> None:
    from_fd = _open(_AT_FDCWD, source)
    try:
        tree = copy_tree(from_fd, source)
    finally:
        os.close(from_fd)
    try:
        if attributes:
            _set_attributes(tree, attributes, source)
        # Opened only now: for "/" the target is what the mount will cover.
        _move(tree, root, target)
    finally:
        os.close(tree)


def show_instead(source: str, target: str) -> None:
    """Show a directory, read-only, with what is mounted in it, in the place of another. Raises OSError.

    For paths that nobody else can change, in a room whose filter knows no openat2(2).
    """
    from_fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        tree = copy_tree(from_fd, source, _AT_RECURSIVE)
    finally:
        os.close(from_fd)
    try:
        _set_attributes(tree, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, source)
        attach_at(tree, target)
    finally:
        os.close(tree)


def make(
    what: str, kind: str, options: Mapping[str, str], flags: Sequence[str], closed: int
) -> int:
    """The root of a new filesystem of that kind, which is mounted nowhere; `closed`: MOUNT_ATTR_*.

    Raises OSError naming `what` it is of.
    """
    context = libc.syscall(what, _FSOPEN, kind.encode(), _CLOEXEC)
    try:
        for name, value in options.items():
            args = (name.encode(), value.encode(), 0)
            libc.syscall(what, _FSCONFIG, context, _SET_STRING, *args)
        for name in flags:
            libc.syscall(what, _FSCONFIG, context, _SET_FLAG, name.encode(), None, 0)
        libc.syscall(what, _FSCONFIG, context, _CREATE, None, None, 0)
        return libc.syscall(what, _FSMOUNT, context, _CLOEXEC, closed)
    finally:
        os.close(context)


def show_memory(folder: str, size: int) -> None:
    """Show a new and empty directory, in at most so many bytes of memory, in place of another.

    Raises OSError.
    """
    closed = _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOEXEC
    root = make(folder, "tmpfs", {"size": str(size), "mode": "0700"}, (), closed)
    try:
        attach_at(root, folder)
    finally:
        os.close(root)


def close_directory(folder: str) -> None:
    """Let nobody write through the mount whose root that directory is. Raises OSError.

    For paths that nobody else can change, in a room whose filter knows no openat2(2).
    """
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _set_attributes(fd, _ATTR_RDONLY, folder)
    finally:
        os.close(fd)


def another(folder: str) -> int:
    """The directory through a mount of its own, which is nowhere and stays as it is. Raises OSError."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return copy_tree(fd, folder)
    finally:
        os.close(fd)


def _move(tree: int, root: int, target: str) -> None:
    to_fd = _open(root, target)
    try:
        attach(tree, to_fd, target)
    finally:
        os.close(to_fd)


def copy_tree(fd: int, path: str, more: int = 0) -> int:
    """A copy of the mount at an open directory, which is nowhere yet. Raises OSError naming the path."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | more
    return libc.syscall(path, _OPEN_TREE, fd, b"", flags)


def attach(tree: int, folder: int, path: str) -> None:
    """Mount what is nowhere yet at an open directory. Raises OSError naming the path."""
    libc.syscall(path, _MOVE_MOUNT, tree, b"", folder, b"", _MOVE_F_EMPTY | _MOVE_T_EMPTY)


def attach_at(tree: int, folder: str) -> None:
    """Mount what is nowhere yet at a directory that is no link. Raises OSError naming it."""
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        attach(tree, place, folder)
    finally:
        os.close(place)


def remount_readonly(target: str, *, nosuid: bool = True, nodev: bool = True) -> None:
    """Take writing (and setuid programs, and device nodes) away from a mount. Raises OSError."""
    fd = _open(_AT_FDCWD, target)
    try:
        _set_attributes(fd, _ATTR_RDONLY | _ATTR_NOSUID * nosuid | _ATTR_NODEV * nodev, target)
    finally:
        os.close(fd)


def _open(root: int, path: str) -> int:
    """A handle on a path that contains no symbolic link and, below a root, does not leave it."""
    resolve = _RESOLVE_NO_SYMLINKS | (_RESOLVE_BENEATH if root >= 0 else 0)
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, resolve)
    return libc.syscall(path, _OPENAT2, root, os.fsencode(path), how, len(how))


def _set_attributes(fd: int, attributes: int, path: str) -> None:
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    libc.syscall(path, _MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, wanted, len(wanted))
