"""What the kernel says of a process: the privilege proof's raw material.

Sources: proc(5), capabilities(7), namespaces(7). A hostile process may choose its own name and
the kernel escapes it; everything else here is the kernel's own word.
"""

import os
import socket
import struct
from typing import Final, NamedTuple

from capkeep.kernel import landlock, libc, mounts

# In the order of their bits (capabilities(7), include/uapi/linux/capability.h).
CAPABILITIES: Final = tuple(f"CAP_{name}" for name in (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
))  # fmt: skip
NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
OVERFLOW_ID: Final = 65534  # what ids without a name in a user namespace look like (proc(5))
_PR_GET_DUMPABLE: Final = 3


class Facts(NamedTuple):
    """One process, as its kernel sees it."""

    pid: int  # in the process's own, or the reader's, pid namespace
    uids: tuple[int, ...]  # real, effective, saved, filesystem
    gids: tuple[int, ...]
    groups: tuple[int, ...]  # supplementary
    inheritable: tuple[str, ...]
    permitted: tuple[str, ...]
    effective: tuple[str, ...]
    bounding: tuple[str, ...]
    ambient: tuple[str, ...]
    no_new_privs: bool
    seccomp: int  # 0 none, 1 strict, 2 filter
    seccomp_filters: int
    landlock: int  # the version (ABI) of it that is offered here, 0 for none; not per process
    namespaces: tuple[tuple[str, int], ...]  # those that may be read: name, inode
    separated: tuple[str, ...]  # namespaces that are not the host's
    interfaces: tuple[str, ...]
    writable: tuple[str, ...]  # mount points within reach whose flags let somebody write
    dumpable: bool | None  # may processes of the same user read its memory; None: not known
    proc: tuple[str, ...] = ()  # what its /proc hides: "hidepid=invisible", "subset=pid"
    refused: tuple[str, ...] = ()  # what the kernel refused when it was tried (kernel/trial.py)


def read_facts(pid: int | None, host: tuple[tuple[str, int], ...]) -> Facts:
    """Facts of a process of this pid namespace; None for this process itself.

    `host` are the host's namespaces. Those of a process that may not be traced cannot be read and
    are absent. Another process is looked at by one that reaches the same directories.
    Raises OSError (ProcessLookupError, FileNotFoundError when it has ended).
    """
    base = f"/proc/{pid or 'self'}"
    status = _status(base)
    own = namespaces(base)
    outside = dict(host)
    seen = tuple(mounts.visible(mounts.read_mounts(pid)))
    return Facts(
        pid=pid or os.getpid(),
        uids=_numbers(status["Uid"]),
        gids=_numbers(status["Gid"]),
        groups=_numbers(status["Groups"]),
        inheritable=capability_names(int(status["CapInh"], 16)),
        permitted=capability_names(int(status["CapPrm"], 16)),
        effective=capability_names(int(status["CapEff"], 16)),
        bounding=capability_names(int(status["CapBnd"], 16)),
        ambient=capability_names(int(status["CapAmb"], 16)),
        no_new_privs=status["NoNewPrivs"].strip() == b"1",
        seccomp=int(status.get("Seccomp", b"0")),
        seccomp_filters=int(status.get("Seccomp_filters", b"0")),
        landlock=landlock.abi(),
        namespaces=own,
        separated=tuple(n for n, inode in own if n in outside and inode != outside[n]),
        interfaces=_interfaces(base),
        writable=tuple(sorted({m.point for m in seen if m.writable and _reached(m.point)})),
        dumpable=_dumpable(pid, base),
        proc=tuple(o for m in seen if m.point == "/proc" for o in m.super_options if _hides(o)),
    )


def _reached(point: str) -> bool:
    """Whether the way to a mount point is open; the mount itself, which may hang, is not asked.

    Without root nobody can change the mounts below directories that are closed to him: they keep
    their flags, and bubblewrap passes over them.
    """
    try:
        os.stat(os.path.join(os.path.dirname(point), "."))
    except PermissionError:
        return False
    except OSError:
        return True  # strange, and so to be seen
    return True


def own_bounding() -> tuple[str, ...]:
    """The capabilities that this process, and whatever it starts, can ever have."""
    return capability_names(int(_status("/proc/self")["CapBnd"], 16))


def own_ambient() -> tuple[str, ...]:
    """The capabilities that this process has, and that what it starts has as well."""
    status = _status("/proc/self")
    return capability_names(int(status["CapAmb"], 16) & int(status["CapEff"], 16))


def peer_uid(sock: socket.socket) -> int:
    """The uid that connected, from the kernel (SO_PEERCRED, unix(7))."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])


def host_namespaces() -> tuple[tuple[str, int], ...]:
    """The namespaces of the caller, which is a process of the host itself."""
    return namespaces("/proc/self")


def host_filters() -> int:
    """How many system call filters everything on this host has, such as a container's: init's."""
    try:
        return int(_status("/proc/1").get("Seccomp_filters", b"0"))
    except OSError:
        return 0  # hidden, as hidepid= does (proc(5))


def namespaces(base: str) -> tuple[tuple[str, int], ...]:
    """Name and inode of each namespace that may be read below `base`, such as "/proc/self"."""
    found = []
    for name in NAMESPACES:
        try:
            found.append((name, os.stat(f"{base}/ns/{name}").st_ino))
        except (PermissionError, FileNotFoundError):
            continue  # not ours to look at, or not built into this kernel
    return tuple(found)


def capability_names(mask: int) -> tuple[str, ...]:
    """The names of the bits that are set; a bit newer than this program is "CAP_" and its number."""
    known = len(CAPABILITIES)
    bits = (bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    return tuple(CAPABILITIES[bit] if bit < known else f"CAP_{bit}" for bit in bits)


def _status(base: str) -> dict[str, bytes]:
    with open(f"{base}/status", "rb") as file:
        text = file.read()
    fields: dict[str, bytes] = {}
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":\t")
        fields.setdefault(name.decode("ascii", "replace"), value)
    return fields


def _numbers(field: bytes) -> tuple[int, ...]:
    return tuple(int(word) for word in field.split())


def _interfaces(base: str) -> tuple[str, ...]:
    """Names in net/dev; the first two lines are a heading. None without networking."""
    try:
        with open(f"{base}/net/dev", "rb") as file:
            lines = file.read().split(b"\n")[2:]
    except FileNotFoundError:
        return ()
    return tuple(os.fsdecode(line.partition(b":")[0].strip()) for line in lines if line)


def _hides(option: str) -> bool:
    """Whether it is one of the options of proc(5) that hide something."""
    return option.startswith(("hidepid=", "subset="))


def _dumpable(pid: int | None, base: str) -> bool | None:
    """The kernel gives /proc/PID of a process that is not dumpable to root (proc(5))."""
    if pid is None:
        return libc.prctl("PR_GET_DUMPABLE", _PR_GET_DUMPABLE) == 1
    euid = os.geteuid()
    return os.stat(f"{base}/status").st_uid == euid if euid else None
