"""What a vault that may change owners would do, were it hostile: everything that its capabilities suggest.

A program of its own, which stands where rdiff-backup's half that has the repository stands. It says
what it could do in the repository, in a file for whoever looks from outside.
"""

import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
SETID = 0o4755
NAMESPACES = 0x10000000 | 0x00020000  # CLONE_NEWUSER, CLONE_NEWNS


def checked(result: int) -> None:
    """Raises OSError as the kernel said."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def change(path: str) -> None:
    """Change owner and mode, as far as that can be, to what they are not."""
    state = os.stat(path)
    os.chmod(path, state.st_mode & 0o777 ^ 0o002)
    os.chown(path, state.st_uid + 1, state.st_gid)


def temporary(place: str) -> None:
    """A file without a name that gets its special bit when it is made, and its name later."""
    fd = os.open(os.path.dirname(place), os.O_TMPFILE | os.O_RDWR, SETID)
    os.link(f"/proc/self/fd/{fd}", place, follow_symlinks=True)


def capable(place: str) -> None:
    """A file that lends capabilities."""
    open(place, "w").close()
    os.setxattr(place, "security.capability", bytes.fromhex("0100000280000000" + "00" * 12))


def setid_by_mode(place: str) -> None:
    """Root's, and set-uid."""
    open(place, "w").close()
    os.chown(place, 0, 0)
    os.chmod(place, SETID)


def through_a_link(place: str) -> None:
    """A link of ours that leads out."""
    os.symlink("/etc/passwd", place)
    change(place)


def connect(family: int, address: object) -> None:
    """Reach somebody."""
    with socket.socket(family) as sock:
        sock.settimeout(3)
        sock.connect(address)


def something_in(folder: str) -> None:
    """Where nothing is shown there may be an empty directory."""
    if not os.listdir(folder):
        raise FileNotFoundError(2, "nothing is shown there")


def attempts(top: str, port: int) -> dict[str, Callable[[], object]]:
    """Each thing that must not be possible."""
    found: dict[str, Callable[[], object]] = {
        "set-uid by chmod": lambda: setid_by_mode(f"{top}/suid-chmod"),
        "set-uid by mknod": lambda: checked(LIBC.mknod(f"{top}/suid-mknod".encode(), 0o100000 | SETID, 0)),
        "set-uid by creat": lambda: os.open(f"{top}/suid-creat", os.O_CREAT | os.O_WRONLY, SETID),
        "set-uid without a name": lambda: temporary(f"{top}/suid-tmpfile"),
        "capabilities of a file": lambda: capable(f"{top}/capable"),
        "a disk": lambda: os.mknod(f"{top}/disk", 0o060666, os.makedev(7, 0)),
        "another name for a program": lambda: os.link("/usr/bin/su", f"{top}/su"),
        "through a link": lambda: through_a_link(f"{top}/link"),
        "a namespace": lambda: checked(LIBC.unshare(NAMESPACES)),
        "a mount": lambda: checked(LIBC.mount(b"none", b"/usr", b"tmpfs", 0, None)),
        "another root": lambda: os.chroot(top),
        "root's number": lambda: os.setuid(0),
        "a caller on the network": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
        "a terminal": lambda: os.open("/dev/pts/0", os.O_RDONLY | os.O_NOCTTY),
        "another process": lambda: os.open("/proc/1/mem", os.O_RDWR),
        "root's home": lambda: something_in("/root"),
        "a kernel setting": lambda: os.open("/proc/sys/kernel/domainname", os.O_WRONLY),
    }  # fmt: skip
    for path in ("/", "/usr", "/usr/bin/true", "/etc/passwd", "/dev", "/dev/null", "/dev/urandom", "/proc",
                 "/run", "/tmp", "/dev/pts", "/dev/shm", os.path.dirname(top), sys.argv[0]):  # fmt: skip
        found[f"change {path}"] = lambda path=path: change(path)  # type: ignore[misc]
        if path not in ("/dev/null", "/dev/urandom"):  # to be written to
            found[f"write {path}"] = lambda path=path: os.open(  # type: ignore[misc]
                f"{path}/x" if os.path.isdir(path) else path, os.O_WRONLY | os.O_CREAT
            )
    for fd in os.listdir("/proc/self/fd"):
        place = f"/proc/self/fd/{fd}"
        # What lasts: not a pipe or a socket, which nobody else will find.
        if os.path.lexists(place) and (leads := os.readlink(place)).startswith("/"):
            found[f"change what is open: {leads}"] = lambda p=place: change(p)  # type: ignore[misc]
    return found


def main() -> None:
    """`top` is the one place of ours."""
    top = sys.argv[-4] if len(sys.argv) > 4 else sys.argv[1]
    results: dict[str, str] = {}
    # What it is allowed to do, or nothing below would mean anything.
    open(f"{top}/anybodys", "w").close()
    os.chown(f"{top}/anybodys", 12345, 23456)
    os.chmod(f"{top}/anybodys", 0o400)
    with open(f"{top}/port") as file:
        port = int(file.read())
    for name, attempt in attempts(top, port).items():
        try:
            attempt()
            results[name] = "done"
        except OSError as error:
            results[name] = str(error)
    with open(f"{top}/results.new", "w") as file:
        json.dump(results, file)
    os.rename(f"{top}/results.new", f"{top}/results")


main()
