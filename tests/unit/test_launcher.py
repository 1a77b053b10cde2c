"""The launcher's bytes, and what a launched reader's job comes to, without running anything."""

import struct
from pathlib import Path

import pytest

from capkeep.host.launched import readable
from capkeep.kernel.launcher import MACHINES, Mark, attribute, program
from capkeep.kernel.syscalls import CHANGING, ENGINE, NEVER, RULED, STARTING

ARGV = ("/usr/bin/python3", "-I", "ä b")
ENV = {"LANG": "C.UTF-8"}
BASE = 0x400000
CODE = 64 + 2 * 56
PRCTL = {"x86_64": 157, "aarch64": 167}
EXIT = {"x86_64": 60, "aarch64": 93}
Calls = list[tuple[int, list[int]]]


def disassembled_x86_64(code: bytes) -> Calls:
    """As far as launchers go: `mov` of a constant to a register, and `syscall`."""
    names = {b"\xbf": 0, b"\xbe": 1, b"\xba": 2, b"\x41\xba": 3, b"\x41\xb8": 4, b"\xb8": 8}
    calls: Calls = []
    registers: dict[int, int] = {}
    while len(calls) < 5:
        if code.startswith(b"\x0f\x05"):
            calls.append((registers.pop(8), [registers[i] for i in sorted(registers)]))
            registers, code = {}, code[2:]
            continue
        found = next(n for n in names if code.startswith(n))
        (registers[names[found]],) = struct.unpack_from("<I", code, len(found))
        code = code[len(found) + 4 :]
    return calls


def disassembled_aarch64(code: bytes) -> Calls:
    """As far as launchers go: `movz` and `movk` of 32-bit registers, and `svc #0`."""
    calls: Calls = []
    registers: dict[int, int] = {}
    for (word,) in struct.iter_unpack("<I", code[: len(code) // 4 * 4]):
        value, register = word >> 5 & 0xFFFF, word & 0x1F
        if word == 0xD4000001:
            calls.append((registers.pop(8), [registers[i] for i in sorted(registers)]))
            registers = {}
        elif word & 0xFFE00000 == 0x52800000:
            registers[register] = value
        elif word & 0xFFE00000 == 0x72A00000:
            registers[register] |= value << 16
        if len(calls) == 5:
            break
    return calls


def words(content: bytes, address: int) -> list[str]:
    """A list of pointers to texts, with a null pointer at its end."""
    found = []
    while pointer := struct.unpack_from("<Q", content, address - BASE)[0]:
        found.append(content[pointer - BASE :].partition(b"\0")[0].decode())
        address += 8
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_it_makes_five_calls_and_no_more(machine: str) -> None:
    content = program(machine, ARGV, ENV)
    read = disassembled_x86_64 if machine == "x86_64" else disassembled_aarch64
    calls = read(content[CODE:])
    column = list(MACHINES).index(machine)
    capset, execve = ENGINE["capset"][column], STARTING["execve"][column]
    numbers = [number for number, _ in calls]
    assert numbers == [capset, PRCTL[machine], PRCTL[machine], execve, EXIT[machine]]
    header, sets = calls[0][1]
    assert struct.unpack_from("<Ii", content, header - BASE) == (0x20080522, 0)
    assert struct.unpack_from("<6I", content, sets - BASE) == (4, 4, 4, 0, 0, 0)
    assert calls[1][1] == [47, 2, 2, 0, 0]  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, the capability
    assert calls[2][1] == [38, 1, 0, 0, 0]  # PR_SET_NO_NEW_PRIVS
    path, argv, envp = calls[3][1]
    assert content[path - BASE :].partition(b"\0")[0].decode() == ARGV[0]
    assert words(content, argv) == list(ARGV)
    assert words(content, envp) == ["LANG=C.UTF-8"]
    assert argv % 8 == envp % 8 == 0


@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_of_it_can_be_written_when_it_runs(machine: str) -> None:
    content = program(machine, ARGV, ENV)
    kind, flags, offset, address, _, size, memory, _ = struct.unpack_from("<IIQQQQQQ", content, 64)
    assert (kind, flags, offset, address, size, memory) == (
        1,
        5,
        0,
        BASE,
        len(content),
        len(content),
    )
    assert struct.unpack_from("<II", content, 64 + 56) == (0x6474E551, 6)  # a stack without code


def test_the_attribute_is_setcap_s() -> None:
    assert attribute(Mark.PERMITTED).hex() == "0100000204000000000000000000000000000000"
    assert attribute(Mark.INHERITABLE).hex() == "0100000200000000040000000000000000000000"


def test_what_is_hidden_is_not_among_what_may_be_read(tmp_path: Path) -> None:
    for name in ("a/one", "a/deep/secret", "a/deep/open", "b/two", "mounted/x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "link").symlink_to("a/deep/secret")
    top = str(tmp_path)
    found = readable((top,), (f"{top}/a/deep/secret",), frozenset((f"{top}/mounted",)))
    assert set(found.whole) == {f"{top}/a/one", f"{top}/a/deep/open", f"{top}/b"}
    above = str(tmp_path.parent)
    assert set(found.names) == {above, top, f"{top}/a", f"{top}/a/deep"}
    assert readable((f"{top}/b",), (f"{top}/a",), frozenset()).whole == (f"{top}/b",)
    assert readable((f"{top}/link",), (), frozenset()).whole == ()
    assert readable((f"{top}/a/one",), (f"{top}/a",), frozenset()).whole == ()


def test_what_is_left_out_of_a_job_cannot_be_read_where_it_is_mounted(tmp_path: Path) -> None:
    """Landlock's rules for a directory hold in what is mounted below it too."""
    for name in ("home/one/file", "home/one/nas/other", "home/two/file", "srv/file"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    top = str(tmp_path)
    found = readable((top,), (), frozenset((f"{top}/home/one/nas",)))
    assert set(found.whole) == {f"{top}/home/one/file", f"{top}/home/two", f"{top}/srv"}


def test_no_number_is_answered_twice() -> None:
    """What is taken for done in a launched engine is not denied outright elsewhere, save in RULED."""
    from capkeep.kernel.syscalls import TOUCHING

    assert not TOUCHING.keys() & (NEVER | ENGINE | CHANGING).keys()
    for name in TOUCHING.keys() & RULED.keys():
        assert TOUCHING[name] == RULED[name]
