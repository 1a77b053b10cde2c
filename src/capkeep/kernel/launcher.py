"""A launcher: a program of a few hundred bytes that becomes one fixed program with one capability.

It stands in for a copy of setpriv(1) with a file capability, which gives that capability to whatever its
caller names. This one looks at no argument, no variable and no file. It asks for CAP_DAC_READ_SEARCH
to be kept over execve(2) (inheritable and ambient, and no other beside it), gives up ever getting more
(no_new_privs), and becomes the program that is written in it. Whether it had the capability it does not
ask either: calls that are refused change nothing, and the program that it becomes says what is missing.

So it does not matter where the capability comes from: the file's own set (`ep`), one that a login made
inheritable (pam_cap) and the file makes effective (`ei`), or one that the caller has as ambient.

The machine code is put together here from the calls below, so that it can be read, needs no compiler,
and is the same bytes at every `apply`.

Sources: elf(5), syscall(2), capset(2), prctl(2), capabilities(7), linux/capability.h, the x86-64 and
AArch64 instruction sets.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.kernel.facts import CAPABILITIES

CAPABILITY: Final = "CAP_DAC_READ_SEARCH"
ATTRIBUTE: Final = "security.capability"

_BIT: Final = CAPABILITIES.index(CAPABILITY)
_BASE: Final = 0x400000  # where the file is mapped, as linkers do
_ALIGNMENT: Final = 0x10000  # the largest page of AArch64
_HEADER, _SEGMENT = 64, 56  # bytes of Elf64_Ehdr and Elf64_Phdr
_LOAD, _GNU_STACK = 1, 0x6474E551
_READ_WRITE, _READ_EXECUTE = 6, 5
_VERSION_3: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_NO_NEW_PRIVS: Final = 38
_AMBIENT, _RAISE = 47, 2
_FAILED: Final = 127  # as shells say it of what cannot be run
_REVISION_2, _EFFECTIVE = 0x02000000, 1  # struct vfs_cap_data


class Mark(StrEnum):
    """What the file of a launcher is marked with, in the words of setcap(8)."""

    PERMITTED = "ep"  # whoever may run it has the capability
    INHERITABLE = "ei"  # whoever may run it, and was given it as inheritable by his login


class _Machine(NamedTuple):
    """One architecture."""

    elf: int  # e_machine
    capset: int
    prctl: int
    execve: int
    exit: int
    call: Callable[[int, Sequence[int]], bytes]  # a system call: its number and its arguments


def _x86_64(number: int, arguments: Sequence[int]) -> bytes:
    """`mov r32, imm32` for each register, which clears the upper half, and `syscall`."""
    # rdi, rsi, rdx, r10, r8, and rax for the number
    registers = (b"\xbf", b"\xbe", b"\xba", b"\x41\xba", b"\x41\xb8")
    loads = [
        register + struct.pack("<I", value)
        for register, value in zip(registers, arguments, strict=False)
    ]
    return b"".join(loads) + b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"


def _aarch64(number: int, arguments: Sequence[int]) -> bytes:
    """`movz` and `movk` for the halves of x0 to x4 and of x8, the number, and `svc #0`."""
    words = []
    for register, value in (*enumerate(arguments), (8, number)):
        words.append(0x52800000 | (value & 0xFFFF) << 5 | register)
        words.append(0x72A00000 | (value >> 16) << 5 | register)
    return struct.pack(f"<{len(words) + 1}I", *words, 0xD4000001)


MACHINES: Final = {
    "x86_64": _Machine(62, 126, 157, 59, 60, _x86_64),
    "aarch64": _Machine(183, 91, 167, 221, 93, _aarch64),
}


def program(machine: str, argv: Sequence[str], env: Mapping[str, str]) -> bytes:
    """The launcher of `argv` for an architecture (uname(2)). Raises KeyError for one not known."""
    it = MACHINES[machine]
    start = _HEADER + 2 * _SEGMENT
    # The code is as long wherever the data lies: once to learn its length, once for good.
    length = len(_code(it, _Data(0, 0, 0, 0, 0, b"")))
    data = _data(_BASE + start + length, argv, [f"{name}={value}" for name, value in env.items()])
    code = _code(it, data)
    size = start + len(code) + len(data.content)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, it.elf, 1, _BASE + start, _HEADER, 0, 0,
        _HEADER, _SEGMENT, 2, 0, 0, 0,
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", _LOAD, _READ_EXECUTE, 0, _BASE, _BASE, size, size, _ALIGNMENT)
    stack = struct.pack("<IIQQQQQQ", _GNU_STACK, _READ_WRITE, 0, 0, 0, 0, 0, 16)
    return header + load + stack + code + data.content


class _Data(NamedTuple):
    """What the code points to, with the addresses of its parts."""

    header: int
    sets: int
    path: int
    argv: int
    envp: int
    content: bytes


def _code(it: _Machine, data: _Data) -> bytes:
    """The whole program: five calls in a row, without a branch."""
    calls = (
        # The capability permitted, effective and inheritable, and no other.
        (it.capset, (data.header, data.sets)),
        (it.prctl, (_AMBIENT, _RAISE, _BIT, 0, 0)),
        (it.prctl, (_NO_NEW_PRIVS, 1, 0, 0, 0)),
        (it.execve, (data.path, data.argv, data.envp)),
        (it.exit, (_FAILED,)),
    )
    return b"".join(it.call(number, arguments) for number, arguments in calls)


def _data(address: int, argv: Sequence[str], env: Sequence[str]) -> _Data:
    """Pointers first, so that they are aligned, then what they point to."""
    padding = -address % 8
    words = [word.encode("utf-8", "surrogateescape") + b"\0" for word in (*argv, *env)]
    pointers = address + padding
    header = pointers + 8 * (len(words) + 2)
    sets = header + 8
    strings = sets + 24
    places, at = [], strings
    for word in words:
        places.append(at)
        at += len(word)
    own, others = places[: len(argv)], places[len(argv) :]
    mask = 1 << _BIT
    content = b"\0" * padding
    content += struct.pack(f"<{len(words) + 2}Q", *own, 0, *others, 0)
    content += struct.pack("<Ii", _VERSION_3, 0)
    content += struct.pack("<6I", mask, mask, mask, 0, 0, 0)
    envp = pointers + 8 * (len(argv) + 1)
    return _Data(header, sets, own[0], pointers, envp, content + b"".join(words))


def attribute(mark: Mark) -> bytes:
    """The file's extended attribute for that mark (capabilities(7), revision 2)."""
    mask = 1 << _BIT
    permitted, inheritable = (mask, 0) if mark is Mark.PERMITTED else (0, mask)
    return struct.pack("<5I", _REVISION_2 | _EFFECTIVE, permitted, inheritable, 0, 0)
