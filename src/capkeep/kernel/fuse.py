"""A filesystem that another process answers for: make it, show a directory of it, take it away.

Whoever holds the device decides what every name, file and link in it is. So whoever made the mount is
the only user who gets in, nothing in it can be written or run or is a device, and no link is followed.
Sources: fuse(4), Documentation/filesystems/fuse.rst, fsopen(2), fsmount(2), move_mount(2), umount2(2).
"""

import errno
import os
import stat
import struct
from typing import Final

from capkeep.kernel import libc
from capkeep.kernel.mounts import Mount, attach, attach_at, copy_tree, read_mounts, unshare_mounts
from capkeep.kernel.mounts import make as make_mount

DEVICE: Final = "/dev/fuse"
DEVICE_NUMBER: Final = os.makedev(10, 229)  # Documentation/admin-guide/devices.txt
KIND: Final = "fuse.capkeep"

_OPENAT2 = 437
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _NOSYMFOLLOW = 1, 2, 4, 8, 0x200000
_CLOSED: Final = _RDONLY | _NOSUID | _NODEV | _NOEXEC | _NOSYMFOLLOW
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08
# Force: whoever waits for an answer is told that none will come. A lazy unmount alone leaves him waiting,
# for ever if the one who should answer waits for him (FUSE_NOTIFY_INVAL_ENTRY).
_AWAY: Final = 1 | 2  # MNT_FORCE, MNT_DETACH
_HIDDEN: Final = "/usr"  # where it is mounted while nobody else sees it
_CLONE_NEWNS: Final = 0x00020000


def make() -> tuple[int, int]:
    """A device to answer on, and the root of its filesystem, which is mounted nowhere.

    The caller closes both. Its requests wait until somebody answers; when nobody has the device
    open any more they fail (ENOTCONN). Raises OSError.
    """
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return device, _root(device)
    except BaseException:
        os.close(device)
        raise


def mount_at(device: int, folder: str, source: str) -> None:
    """Mount what whoever has the device will answer for, for this user alone; he may read all of it.

    Who may read what has been decided by whoever answers. Raises OSError.
    """
    root = _root(device, source, flags=("ro",))
    try:
        attach_at(root, folder)
    finally:
        os.close(root)


def _root(
    device: int, source: str = "capkeep", flags: tuple[str, ...] = ("ro", "default_permissions")
) -> int:
    options = {
        "source": source, "subtype": "capkeep", "fd": str(device), "rootmode": "40000",
        "user_id": str(os.geteuid()), "group_id": str(os.getegid()),
    }  # fmt: skip
    return make_mount(DEVICE, "fuse", options, flags, _CLOSED)


def is_shown_at(folder: int) -> bool:
    """Whether a directory is one of such a filesystem; asks nobody but the kernel. Raises OSError."""
    return find(mount_id(folder)) is not None


def is_device(fd: int) -> bool:
    """Whether it is a FUSE device."""
    state = os.fstat(fd)
    return stat.S_ISCHR(state.st_mode) and state.st_rdev == DEVICE_NUMBER


def show(root: int, name: str, folder: int) -> int:
    """Show the directory `name` of that filesystem at an open directory; the mount's id.

    It takes as long as whoever answers likes. Closes `root`. Raises OSError. For a process with one
    thread, which is in no directory after it.
    """
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Before Linux 6.15 only what is mounted somewhere can be copied: it is where nobody looks.
        unshare_mounts()
        place = os.open(_HIDDEN, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attach(root, place, KIND)
        finally:
            os.close(place)
        tree = _copied(root, name)
    finally:
        os.close(root)
        libc.setns(home, _CLONE_NEWNS)
        os.close(home)
    try:
        number = mount_id(tree)
        attach(tree, folder, KIND)
        return number
    finally:
        os.close(tree)  # whoever holds it would keep it from being unmounted


def _copied(root: int, name: str) -> int:
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_XDEV
    how = struct.pack("QQQ", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, resolve)
    found = libc.syscall(name, _OPENAT2, root, name.encode(), how, len(how))
    try:
        return copy_tree(found, name)
    finally:
        os.close(found)


def mount_id(fd: int) -> int:
    """The id of the mount that a descriptor is on, as in mountinfo (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def find(number: int) -> Mount | None:
    """The mount of that id, if it is still there."""
    return next((m for m in read_mounts() if m.id == number and m.kind == KIND), None)


def device_of(number: int) -> str:
    """Of that mount: ids are used again, even at once. "" if it is gone."""
    mount = find(number)
    return mount.device if mount else ""


def take_away(number: int) -> None:
    """Unmount it, wherever it is by now and whoever uses it; nothing if it is gone. Raises OSError."""
    mount = find(number)
    if mount is None:
        return
    # Whoever owns a directory above may have put another mount in its place.
    fd = os.open(mount.point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if mount_id(fd) != number:
            raise OSError(errno.EBUSY, "something else is mounted over it", mount.point)
        libc.umount(b"/proc/self/fd/%d" % fd, _AWAY)
    finally:
        os.close(fd)


def abort(pid: int) -> None:
    """Free a process that waits in `show` for an answer, and whoever should answer, from each other.

    For a process with one thread, which is in no directory after it. Raises OSError.
    """
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        own = os.stat("/proc/self/ns/mnt")
        if os.path.samestat(os.fstat(fd), own):
            return  # it is not there, or not any more
        libc.setns(fd, _CLONE_NEWNS)
        libc.umount(_HIDDEN.encode(), _AWAY)
    finally:
        os.close(fd)
