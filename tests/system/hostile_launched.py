"""In an engine's place where a launcher has started the reader: it tries to get at what is in sight.

Self-contained, as its harness writes it to a file after a line `TARGETS = {…}`. What it got is a line for
each attempt in its output directory: what came of it, or the error's name.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

if "TARGETS" not in globals():
    TARGETS: dict[str, str] = {}
T = TARGETS
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
HANDLE_TO, PTRACE, READV, IOPRIO_SET = {
    "x86_64": (303, 101, 310, 251), "aarch64": (264, 117, 270, 30),
}[platform.machine()]  # fmt: skip
GETFLAGS, SETFLAGS, NOATIME = 0x80086601, 0x40086602, 0x80
GET_ATTRIBUTES, SET_ATTRIBUTES, NODUMP = 0x801C581F, 0x401C5820, 0x80
PTRACE_SEIZE = 0x4206


def call(number: int, *args: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(libc.syscall(ctypes.c_long(number), *wide))
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(64).decode("latin-1")


def write(path: str, flags: int) -> str:
    fd = os.open(path, flags, 0o600)
    os.write(fd, b"hostile")
    os.close(fd)
    return "written"


def connect(family: int, kind: int, address: object) -> str:
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        sock.connect(address)  # type: ignore[arg-type]
        sock.send(b"hostile")
    return "sent"


def memory() -> str:
    buffer = ctypes.create_string_buffer(8)
    here = struct.pack("QQ", ctypes.addressof(buffer), 8)
    with open(f"/proc/{T['victim']}/maps") as maps:
        there = struct.pack("QQ", int(maps.readline().split("-")[0], 16), 8)
    return str(call(READV, int(T["victim"]), here, 1, there, 1, 0))


def handle() -> str:
    """The first half of open_by_handle_at(2), which goes around every rule about paths."""
    room = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128), 136)
    mount = ctypes.create_string_buffer(8)
    return str(call(HANDLE_TO, -100, T["secret"].encode(), room, mount, 0))


def end_victim() -> str:
    os.kill(int(T["victim"]), signal.SIGUSR1)
    return "sent"


def queue_to_victim() -> str:
    info = struct.pack("iii", signal.SIGUSR1, 0, -1) + bytes(116)
    number = {"x86_64": 129, "aarch64": 138}[platform.machine()]
    return str(call(number, int(T["victim"]), int(signal.SIGUSR1), info))


def limit_victim() -> str:
    """Its processor's time would end it; this much it never has."""
    return str(resource.prlimit(int(T["victim"]), resource.RLIMIT_CPU, (1 << 30, 1 << 30)))


def starve_victim() -> str:
    victim = int(T["victim"])
    os.sched_setaffinity(victim, os.sched_getaffinity(0))
    return "moved"


def change_flags() -> str:
    """Of a file that is open for reading alone; what the file's owner may do."""
    with open(T["readable"], "rb") as file:
        flags = bytearray(8)
        fcntl.ioctl(file, GETFLAGS, flags)
        struct.pack_into("I", flags, 0, struct.unpack_from("I", flags)[0] ^ NOATIME)
        fcntl.ioctl(file, SETFLAGS, flags)
    return "changed"


def change_attributes() -> str:
    """The same by the newer call, which asks with another number."""
    with open(T["readable"], "rb") as file:
        found = bytearray(28)
        if "HOME" not in os.environ:  # the control run: a wall would stop the question already
            fcntl.ioctl(file, GET_ATTRIBUTES, found)
        struct.pack_into("I", found, 0, struct.unpack_from("I", found)[0] ^ NODUMP)
        fcntl.ioctl(file, SET_ATTRIBUTES, found)
    return "changed"


def home() -> str:
    """Where the control run has none it is the cache, as a home would be."""
    os.mkdir(os.environ.get("HOME", T["out"]) + "/.local")
    return "made"


def rank_all() -> str:
    """It is refused if one of them has a right that we have not; the victim has none."""
    victim = int(T["victim"])
    wanted = os.getpriority(os.PRIO_PROCESS, victim) + 1
    try:
        os.setpriority(os.PRIO_USER, os.getuid(), wanted)
    except PermissionError:
        if os.getpriority(os.PRIO_PROCESS, victim) != wanted:
            raise
    return str(wanted)


ATTEMPTS: dict[str, Callable[[], str]] = {
    "read a secret": lambda: read(T["secret"]),
    "read the password": lambda: read(T["password"]),
    "read what is no source": lambda: read("/etc/shadow"),
    "read a pack of the repository": lambda: read(T["config"]),
    "read what is hidden among the programs": lambda: read(T["inside"]),
    "read what lies beside the package": lambda: read(T["beside"]),
    "read what is left out of the job": lambda: read(T["left_out"]),
    "leave something at home": home,
    "read a victim's variables": lambda: read(f"/proc/{T['victim']}/environ"),
    "read a victim's memory": memory,
    "look at a victim's descriptors": lambda: os.readlink(f"/proc/{T['victim']}/fd/0"),
    "trace a victim": lambda: str(call(PTRACE, PTRACE_SEIZE, int(T["victim"]), 0, 0)),
    "signal a victim": end_victim,
    "queue a signal to a victim": queue_to_victim,
    "limit a victim": limit_victim,
    "rank all of its user's": rank_all,
    "rank a victim": lambda: str(os.setpriority(os.PRIO_PROCESS, int(T["victim"]), 19)),
    "move a victim to other processors": starve_victim,
    "have a victim wait for disks": lambda: str(call(IOPRIO_SET, 1, int(T["victim"]), 3 << 13)),
    "change a source's flags": change_flags,
    "change a source's attributes": change_attributes,
    "overwrite its user's file": lambda: write(T["own"], os.O_WRONLY),
    "empty its user's file": lambda: str(os.truncate(T["emptied"], 0)),
    "empty it by opening": lambda: str(os.close(os.open(T["emptied"], os.O_RDONLY | os.O_TRUNC))),
    "remove its user's file": lambda: str(os.unlink(T["removed"])),
    "rename its user's file": lambda: str(os.rename(T["renamed"], T["renamed"] + "-2")),
    "link its user's file": lambda: str(os.link(T["own"], f"{T['out']}/linked")),
    "make a file beside it": lambda: write(T["own"] + "-new", os.O_WRONLY | os.O_CREAT),
    "make a file in /tmp": lambda: write(T["tmp"], os.O_WRONLY | os.O_CREAT),
    "write into a FIFO of the source": lambda: write(T["fifo"], os.O_WRONLY | os.O_NONBLOCK),
    "set an attribute": lambda: str(os.setxattr(T["own"], "user.hostile", b"x")),
    "connect to TCP": lambda: connect(
        socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(T["tcp"]))
    ),
    "send by UDP": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", int(T["udp"]))),
    "connect to a unix socket": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, T["door"]),
    "connect to an abstract socket": lambda: connect(
        socket.AF_UNIX, socket.SOCK_STREAM, "\0" + T["abstract"]
    ),
    "make a netlink socket": lambda: str(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "take a file's handle": handle,
}


def main() -> None:
    found: dict[str, list[object]] = {}
    with contextlib.suppress(FileNotFoundError), open(f"{T['out']}/found") as file:
        found = {name: got for name, got in json.load(file).items() if got[0]}
    for name, attempt in ATTEMPTS.items():
        if name in found:  # by the engine that was asked before
            continue
        try:
            found[name] = [True, attempt()]
        except OSError as error:
            found[name] = [False, errno.errorcode.get(error.errno or 0, str(error))]
    # Said to go well and not done: what the harness looks at from outside.
    os.chmod(T["own"], 0o666)
    os.utime(T["own"], (1, 1))
    with open(f"{T['out']}/found", "w") as file:
        json.dump(found, file)
    sys.exit(1)


if __name__ == "__main__":
    main()
