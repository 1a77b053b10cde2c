"""Filters of system calls: for the rooms' own programs, and stricter ones for the engines.

A list of what is denied rather than of what is allowed, with everything newer than the list
unknown to the program (ENOSYS): engines are Go programs whose runtime changes its system calls
between releases, and a backup that breaks with a new engine protects nobody. Files, memory and
threads are left to Landlock, read-only mounts and limits.

Written out here as classic BPF: making and loading a filter takes 0.4 ms. Through libseccomp it is
1.3 ms, and a library that must be there.
Sources: seccomp(2), linux/bpf_common.h, linux/seccomp.h, linux/sched.h.
"""

import ctypes
import os
import struct
from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.kernel import libc
from capkeep.kernel.syscalls import (
    CHANGING,
    EMPTYING,
    ENGINE,
    HORIZON,
    NEVER,
    RULED,
    STARTING,
    TOUCHING,
    Numbers,
)


class Profile(StrEnum):
    """Whom a filter is for. A child's filter only adds to its parent's."""

    ROOM = "room"  # our own programs; so it allows all that the engine below them needs
    ALONE = "alone"  # as ROOM, for one that has the host's network before its eyes: no socket
    RUNNER = "runner"  # asks rooms on unix sockets
    VAULT = "vault"  # the vault, the notifier, and what they start
    SEALED = "sealed"  # a command that may read everybody's files: no socket of any kind
    READ = "read"  # an engine that reads files and writes a cache
    LAUNCHED = "launched"  # as READ, for one to which its user's other files are in sight
    MOUNT = "mount"  # as READ, for one that a program of its own hands a filesystem's device
    RESTORE = "restore"  # an engine that makes files
    HOST = "host"  # as ROOM, for one in which servers are started for a moment
    SERVER = "server"  # such a server, and whoever asks it
    ANSWER = "answer"  # passes on what it has open already, and opens and starts nothing


class Arch(NamedTuple):
    """One architecture."""

    audit: int  # AUDIT_ARCH_*, linux/audit.h
    column: int  # in the tables of numbers
    alien: int  # first number of a second ABI of the same architecture (x32); 0 for none


ARCHES: Final = {"x86_64": Arch(0xC000003E, 0, 0x40000000), "aarch64": Arch(0xC00000B7, 1, 0)}


class Condition(NamedTuple):
    """Holds when an argument's low 32 bits, masked, are one of (or none of) some values."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    none_of: bool = False
    suffices: bool = False  # if it holds, nothing else is asked


Rules = dict[str, tuple[Condition, ...]]

EPERM, ENOSYS = 1, 38
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_STREAM, _DGRAM, _SEQPACKET, _SOCKET_TYPE = 1, 2, 5, 0xF
_TCP, _UDP = 6, 17
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME's bit lies in
# clone's exit signal, where it is no flag.
_CLONE_NEW: Final = 0x7E020000
# TIOCSTI, TIOCLINUX put words into a terminal's mouth; FIOSETOWN, SIOCSPGRP aim SIGIO at others.
_IOCTLS: Final = (0x5412, 0x541C, 0x8901, 0x8902)
# All that engines ask of what they have open: TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX,
# FIOCLEX, TCGETS2, FS_IOC_GETFLAGS. Others change attributes of files that are open for reading alone.
_ASKING: Final = (
    0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A, 0x80086601,
)  # fmt: skip
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15  # SIGIO of any number to any process of the user

_TRUNC, _NEITHER = 0o1000, 0o3  # O_TRUNC; O_ACCMODE, which is neither reading nor writing
_CREATING, _SETID_BITS = 0o20000100, 0o6000  # O_CREAT, and O_TMPFILE without O_DIRECTORY


def _plain(argument: int) -> Condition:
    """A mode without the bits that would lend this user's rights to whoever runs the file."""
    return Condition(argument, (0,), _SETID_BITS)


def _creating(flags: int) -> Condition:
    """Unless it creates a file the kernel does not look at the mode, which may then be anything."""
    return Condition(flags, (0,), _CREATING, suffices=True)


_IDENTITY: Final = (
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid",
    "setgroups", "capset", "memfd_create", "execveat", "pidfd_open", "pidfd_send_signal",
)  # fmt: skip
_NO_SETID: Final[Rules] = {
    "chmod": (_plain(1),),
    "fchmod": (_plain(1),),
    "fchmodat": (_plain(2),),
    "fchmodat2": (_plain(2),),
    "creat": (_plain(1),),
    "mknod": (_plain(1),),
    "mknodat": (_plain(2),),
    "open": (_creating(1), _plain(2)),
    "openat": (_creating(2), _plain(3)),
}

_ROOM_RULES: Final[Rules] = {
    "socket": (
        Condition(0, (_AF_UNIX, _AF_INET, _AF_INET6)),
        Condition(1, (_STREAM, _DGRAM, _SEQPACKET), _SOCKET_TYPE),
        Condition(2, (0, _TCP, _UDP)),
    ),
    "ioctl": (Condition(1, _IOCTLS, none_of=True),),
    "fcntl": (Condition(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX), none_of=True),),
    "clone": (Condition(0, (0,), _CLONE_NEW),),
}


# Of our own programs.
_PROGRAMS: Final = {
    Profile.ROOM: _ROOM_RULES,
    Profile.VAULT: _ROOM_RULES | _NO_SETID,
    Profile.RUNNER: _ROOM_RULES | _NO_SETID | {"socket": (Condition(0, (_AF_UNIX,)),)},
}


def _launched(pid: int) -> Rules:
    """Of an engine that its user's other files and processes are in sight of.

    What touches modes and times is answered before anything else is asked (`program`). Landlock looks at
    whoever opens a file to write before the file is emptied, and only lately at others who empty it. Limits,
    priorities and processors it may set for itself: for others of its user they would be their end.
    """
    untold = CHANGING | TOUCHING
    found = {name: conditions for name, conditions in _NO_SETID.items() if name not in untold}
    found["open"] = (_only_written_is_emptied(1), *found["open"])
    found["openat"] = (_only_written_is_emptied(2), *found["openat"])
    found["ioctl"] = (Condition(1, _ASKING),)
    itself = (0, pid)
    found["prlimit64"] = found["sched_setaffinity"] = (Condition(0, itself),)
    found["setpriority"] = (Condition(0, (_PRIO_PROCESS,)), Condition(1, itself))
    found["ioprio_set"] = (Condition(0, (_IOPRIO_WHO_PROCESS,)), Condition(1, itself))
    return found


def _only_written_is_emptied(flags: int) -> Condition:
    return Condition(flags, (_TRUNC, _TRUNC | _NEITHER), _TRUNC | _NEITHER, none_of=True)


def rules(profile: Profile, pid: int) -> tuple[Numbers, Rules]:
    """What a profile denies outright, and what depends on arguments. `pid` is the engine's own."""
    if profile in _PROGRAMS:
        return NEVER, _PROGRAMS[profile]
    if profile in (Profile.HOST, Profile.SERVER):
        # PostgreSQL keeps a second server from its files by a segment (src/backend/port/sysv_shmem.c).
        never = {name: numbers for name, numbers in NEVER.items() if not name.startswith("shm")}
        if profile is Profile.HOST:
            return never, _ROOM_RULES
        identity = {name: ENGINE[name] for name in _IDENTITY}
        return never | identity, _ROOM_RULES | _NO_SETID | {"socket": (Condition(0, (_AF_UNIX,)),)}
    if profile in (Profile.SEALED, Profile.ALONE):
        # A pair as well: what is sent on one end may be addressed to anybody (unix(7), SOCK_DGRAM).
        kinds = ("socket", "socketpair") if profile is Profile.SEALED else ("socket",)
        sockets = {name: ENGINE[name] for name in kinds}
        return NEVER | sockets, {k: v for k, v in _ROOM_RULES.items() if k != "socket"} | _NO_SETID
    own = Condition(0, (pid,))
    engine = {k: v for k, v in _ROOM_RULES.items() if k != "socket"}
    engine |= {"kill": (own,), "tgkill": (own,)}
    if profile is Profile.ANSWER:
        # It speaks on streams that are connected already, and takes pipes that come through one.
        spoken = ("recvmsg", "sendto", "shutdown")
        denied = {k: v for k, v in ENGINE.items() if k not in spoken}
        ruled = {k: v for k, v in (engine | _NO_SETID).items() if k not in (*STARTING, *CHANGING)}
        return NEVER | denied | CHANGING | STARTING, ruled
    if profile is Profile.RESTORE:
        return NEVER | ENGINE, engine
    if profile is Profile.LAUNCHED:
        return NEVER | ENGINE | CHANGING | EMPTYING, engine | _launched(pid)
    engine |= {name: conditions for name, conditions in _NO_SETID.items() if name not in CHANGING}
    if profile is Profile.MOUNT:
        # Connected to each other and to nobody else, for ever: a stream takes no address (unix(7)).
        engine["socketpair"] = (Condition(0, (_AF_UNIX,)), Condition(1, (_STREAM,), _SOCKET_TYPE))
        denied = {k: v for k, v in ENGINE.items() if k not in ("socketpair", "recvmsg")}
        return NEVER | denied | CHANGING, engine
    return NEVER | ENGINE | CHANGING, engine


# -- the program: struct sock_filter { u16 code; u8 jt; u8 jf; u32 k; }

_LOAD, _AND, _JUMP, _JEQ, _JGE, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def program(profile: Profile, arch: Arch, pid: int) -> bytes:
    """The filter as the kernel wants it."""
    denied, ruled = rules(profile, pid)
    deny = _op(_RETURN, _ERRNO | EPERM)
    out = [
        _op(_LOAD, _ARCH), _op(_JEQ, arch.audit, 1), deny,
        _op(_LOAD, _NR), *([_op(_JGE, arch.alien, 0, 1), deny] if arch.alien else []),
        _op(_JGE, HORIZON, 0, 1), _op(_RETURN, _ERRNO | ENOSYS),
    ]  # fmt: skip
    # Programs fall back to clone and openat, whose flags are not behind a pointer.
    absent = ("clone3", "openat2") if "openat" in ruled else ("clone3",)
    for name in absent:
        number = RULED[name][arch.column]
        out += [_op(_JEQ, number, 0, 1), _op(_RETURN, _ERRNO | ENOSYS)]
    if profile is Profile.LAUNCHED:
        out += _answer_all(TOUCHING, arch, _ERRNO)
    for name, conditions in ruled.items():
        number = RULED[name][arch.column]
        if number < 0:
            continue
        body = [part for c in conditions for part in _check(c)]
        out += [_op(_JEQ, number, 0, len(body) + 1), *body, _op(_RETURN, _ALLOW)]
    out += _answer_all(denied, arch, _ERRNO | EPERM)
    out.append(_op(_RETURN, _ALLOW))
    return b"".join(out)


def _check(condition: Condition) -> list[bytes]:
    """Return EPERM unless the condition holds; fall through if it does.

    One that suffices returns "allowed" if it holds, and falls through if it does not.
    """
    out = [_op(_LOAD, _ARGS + 8 * condition.argument)]
    if condition.mask != 0xFFFFFFFF:
        out.append(_op(_AND, condition.mask))
    count = len(condition.values)
    deny = _op(_RETURN, _ERRNO | EPERM)
    for i, value in enumerate(condition.values):
        out.append(_op(_JEQ, value, count - i))
    if condition.suffices:
        return [*out, _op(_JUMP, 1), _op(_RETURN, _ALLOW)]
    return [*out, _op(_JUMP, 1), deny] if condition.none_of else [*out, deny]


def _answer_all(numbers: Numbers, arch: Arch, answer: int) -> list[bytes]:
    """Compare with each number; jumps reach 255 instructions, so in blocks.

    The answer _ERRNO without a number is that of a call that went well: engines set modes and times in
    their caches, and take it for a failure if they may not; nothing depends on it there.
    """
    left = sorted(n[arch.column] for n in numbers.values() if n[arch.column] >= 0)
    out: list[bytes] = []
    while left:
        block, left = left[:200], left[200:]
        out += [_op(_JEQ, n, len(block) - i) for i, n in enumerate(block)]
        out += [_op(_JUMP, 1), _op(_RETURN, answer)]
    return out


# -- loading it

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def install(profile: Profile) -> None:
    """Filter this process and its children for ever. Raises OSError.

    For an engine's profile call it in the process that becomes the engine: the filter lets it send
    signals to itself alone.
    """
    machine = os.uname().machine
    if machine not in ARCHES:
        raise OSError(ENOSYS, os.strerror(ENOSYS), f"seccomp filter for {machine}")
    code = program(profile, ARCHES[machine], os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog { u16 len; struct sock_filter *filter; }
    head = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    libc.prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    pointer = ctypes.cast(ctypes.create_string_buffer(head, len(head)), ctypes.c_void_p)
    libc.prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _MODE_FILTER, pointer)
