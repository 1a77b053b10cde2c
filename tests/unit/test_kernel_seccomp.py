"""The filters, run by a small machine for classic BPF, and their numbers against libseccomp's."""

import ctypes
import ctypes.util
import os
import struct

import pytest

from capkeep.kernel import syscalls
from capkeep.kernel.seccomp import ARCHES, Arch, Profile, program, rules

PID = 4242
ALLOW, DENY, ABSENT = 0x7FFF0000, 0x00050001, 0x00050026
DONE = 0x00050000  # an error without a number
TABLES = {
    **syscalls.NEVER,
    **syscalls.ENGINE,
    **syscalls.CHANGING,
    **syscalls.TOUCHING,
    **syscalls.EMPTYING,
    **syscalls.STARTING,
    **syscalls.RULED,
}
ENGINES = (Profile.READ, Profile.RESTORE, Profile.LAUNCHED)


def run(code: bytes, number: int, audit: int, *args: int) -> int:
    """What the kernel would answer: struct seccomp_data through the program."""
    data = struct.pack("=iIQ6Q", number, audit, 0, *(*args, *[0] * (6 - len(args))))
    steps = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        op, jt, jf, k = steps[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif op == 0x54:
            accumulator &= k
        elif op == 0x05:
            at += k
        elif op == 0x15:
            at += jt if accumulator == k else jf
        elif op == 0x35:
            at += jt if accumulator >= k else jf
        else:
            assert op == 0x06
            return int(k)


def ask(profile: Profile, name: str, *args: int, arch: Arch = ARCHES["x86_64"]) -> int:
    return run(program(profile, arch, PID), TABLES[name][arch.column], arch.audit, *args)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_numbers_are_those_of_libseccomp(name: str) -> None:
    library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2")
    for arch in ARCHES.values():
        found = library.seccomp_syscall_resolve_name_arch(
            ctypes.c_uint32(arch.audit), name.encode()
        )
        assert TABLES[name][arch.column] == max(found, -1)


@pytest.mark.parametrize("arch", ARCHES.values(), ids=ARCHES)
@pytest.mark.parametrize("profile", Profile)
def test_each_name_denied_is_denied_and_nothing_else(profile: Profile, arch: Arch) -> None:
    denied, ruled = rules(profile, PID)
    numbers = {n[arch.column] for n in denied.values()}
    ours = {TABLES[n][arch.column] for n in [*ruled, "clone3", "openat2"]}
    done = (
        {n[arch.column] for n in syscalls.TOUCHING.values()} if profile is Profile.LAUNCHED else {}
    )
    code = program(profile, arch, PID)
    assert len(code) // 8 <= 4096  # BPF_MAXINSNS
    for number in range(syscalls.HORIZON):
        if number not in ours:
            expected = DONE if number in done else DENY if number in numbers else ALLOW
            assert run(code, number, arch.audit) == expected, number


@pytest.mark.parametrize("arch", ARCHES.values(), ids=ARCHES)
@pytest.mark.parametrize("profile", Profile)
def test_calls_newer_than_the_table_do_not_exist(profile: Profile, arch: Arch) -> None:
    code = program(profile, arch, PID)
    for number in (syscalls.HORIZON, 470, 0x3FFFFFFF):
        assert run(code, number, arch.audit) == ABSENT


@pytest.mark.parametrize("profile", Profile)
def test_other_architectures_are_refused(profile: Profile) -> None:
    code = program(profile, ARCHES["x86_64"], PID)
    assert run(code, 39, 0x40000003) == DENY  # i386
    assert run(code, 0x40000000 + 39, 0xC000003E) == DENY  # x32
    assert run(code, 0xFFFFFFFF - (1 << 32), 0xC000003E) == DENY


@pytest.mark.parametrize("profile", ENGINES)
def test_an_engine_makes_no_socket_and_sends_on_the_one_it_was_given(profile: Profile) -> None:
    for family in range(64):
        for kind in (1, 2, 3, 5, 1 | 0o2000000 | 0o4000):
            assert ask(profile, "socket", family, kind, 0) == DENY
    assert (
        run(program(profile, ARCHES["x86_64"], PID), 46, ARCHES["x86_64"].audit) == ALLOW
    )  # sendmsg
    for name in ("socketpair", "connect", "bind", "listen", "accept4", "sendto", "recvmsg"):
        assert ask(profile, name) == DENY


def test_a_launched_engine_empties_what_landlock_lets_it_write_and_nothing_else() -> None:
    """Landlock looks at whoever writes; before its third version at nobody else who empties."""
    trunc, creat, write, both, neither = 0o1000, 0o100, 1, 2, 3
    for flags in (trunc, trunc | neither, trunc | creat, trunc | 0o2000000):
        assert ask(Profile.LAUNCHED, "openat", 0, 0, flags, 0o600) == DENY
        assert ask(Profile.LAUNCHED, "open", 0, flags, 0o600) == DENY
    for flags in (0, write, trunc | write, trunc | both, trunc | creat | write):
        assert ask(Profile.LAUNCHED, "openat", 0, 0, flags, 0o600) == ALLOW
        assert ask(Profile.LAUNCHED, "open", 0, flags, 0o600) == ALLOW
    assert ask(Profile.LAUNCHED, "openat", 0, 0, creat | write, 0o4600) == DENY
    assert ask(Profile.LAUNCHED, "truncate") == DENY
    assert ask(Profile.READ, "openat", 0, 0, trunc) == ALLOW


@pytest.mark.parametrize("arch", ARCHES.values(), ids=ARCHES)
def test_a_launched_engine_limits_and_ranks_nobody_but_itself(arch: Arch) -> None:
    """Its user's other rooms are in sight of it, and the kernel would let it end or starve them."""
    for itself in (0, PID):
        for name, *words in (
            ("prlimit64", itself), ("sched_setaffinity", itself), ("setpriority", 0, itself),
            ("ioprio_set", 1, itself),
        ):  # fmt: skip
            assert ask(Profile.LAUNCHED, str(name), *map(int, words), arch=arch) == ALLOW
    for other in (1, PID + 1, 0xFFFFFFFF):
        for name, *words in (
            ("prlimit64", other), ("sched_setaffinity", other), ("setpriority", 0, other),
            ("ioprio_set", 1, other),
        ):  # fmt: skip
            assert ask(Profile.LAUNCHED, str(name), *map(int, words), arch=arch) == DENY
    for which in (1, 2):  # a group of processes, all of a user's: 0 is then its own user
        assert ask(Profile.LAUNCHED, "setpriority", which, 0, arch=arch) == DENY
        assert ask(Profile.LAUNCHED, "ioprio_set", which + 1, 0, arch=arch) == DENY


def test_a_launched_engine_asks_of_what_it_has_open_and_changes_nothing() -> None:
    asking = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A, 0x80086601)
    for request in asking:
        assert ask(Profile.LAUNCHED, "ioctl", 0, request) == ALLOW
    # FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY,
    # FS_IOC_SET_ENCRYPTION_POLICY, BTRFS_IOC_SNAP_CREATE, BTRFS_IOC_DEFRAG, FICLONE, FITHAW, FIOASYNC
    changing = (0x40086602, 0x40046602, 0x401C5820, 0x40806685, 0x800C6613, 0x50009401, 0x50009402,
                0x40049409, 0xC0045878, 0x5452)  # fmt: skip
    for request in changing:
        assert ask(Profile.LAUNCHED, "ioctl", 0, request) == DENY
        assert ask(Profile.LAUNCHED, "ioctl", 0, request | 1 << 40) == DENY


def test_an_engine_that_shows_files_is_handed_a_descriptor_and_nothing_else() -> None:
    assert ask(Profile.MOUNT, "socketpair", 1, 1 | 0o2000000 | 0o4000, 0) == ALLOW
    assert ask(Profile.MOUNT, "recvmsg") == ALLOW
    for family, kind in ((1, 2), (1, 5), (2, 1), (10, 1), (16, 3)):
        assert ask(Profile.MOUNT, "socketpair", family, kind, 0) == DENY
        assert ask(Profile.MOUNT, "socket", family, kind, 0) == DENY
    for name in ("connect", "bind", "listen", "accept4", "sendto", "recvfrom", "mount", "linkat"):
        assert ask(Profile.MOUNT, name) == DENY
    reading, mounting = (rules(p, PID) for p in (Profile.READ, Profile.MOUNT))
    assert reading[0].keys() - mounting[0].keys() == {"socketpair", "recvmsg"}
    assert mounting[1] == reading[1] | {"socketpair": mounting[1]["socketpair"]}


def test_the_high_half_of_an_argument_does_not_count() -> None:
    # The kernel takes these arguments as int, so does the filter.
    assert ask(Profile.VAULT, "socket", (1 << 32) | 16, 3, 0) == DENY
    assert ask(Profile.READ, "ioctl", 0, (1 << 40) | 0x5412) == DENY


@pytest.mark.parametrize("profile", ENGINES)
def test_an_engine_makes_threads_and_its_relay_but_no_namespace(profile: Profile) -> None:
    thread = 0x00010000 | 0x100 | 0x800
    assert ask(profile, "clone", thread) == ALLOW
    assert ask(profile, "clone", 17 | 0x100 | 0x4000) == ALLOW
    assert ask(profile, "clone", 17 | 0x10000000) == DENY
    assert ask(profile, "clone", thread | 0x10000000) == DENY
    assert ask(profile, "clone3") == ABSENT


@pytest.mark.parametrize("profile", ENGINES)
@pytest.mark.parametrize("name", ["kill", "tgkill"])
def test_an_engine_signals_itself_alone(profile: Profile, name: str) -> None:
    assert ask(profile, name, PID, 9) == ALLOW
    for other in (0, 1, PID + 1, 0xFFFFFFFF):
        assert ask(profile, name, other, 9) == DENY


@pytest.mark.parametrize("profile", Profile)
def test_no_words_into_a_terminal(profile: Profile) -> None:
    assert ask(profile, "ioctl", 0, 0x5401) == ALLOW
    assert ask(profile, "ioctl", 0, 0x5412) == DENY
    assert ask(profile, "ioctl", 0, 0x541C) == DENY


def test_a_room_allows_what_its_engines_need() -> None:
    """A child cannot have what its parent's filter denies."""
    for profile in (*ENGINES, Profile.MOUNT):
        assert rules(Profile.ROOM, PID)[0].keys() <= rules(profile, PID)[0].keys()
    for family in (1, 2, 10):
        assert ask(Profile.ROOM, "socket", family, 1, 0) == ALLOW
    assert ask(Profile.ROOM, "socket", 16, 3, 0) == DENY


def test_only_restoring_changes_owners_and_links() -> None:
    assert ask(Profile.READ, "linkat") == DENY
    assert ask(Profile.RESTORE, "linkat") == ALLOW
    assert ask(Profile.RESTORE, "mknodat") == ALLOW
    assert ask(Profile.RESTORE, "open_by_handle_at") == DENY


def test_a_reading_engine_leaves_no_setuid_program() -> None:
    assert ask(Profile.READ, "chmod", 0, 0o755) == ALLOW
    assert ask(Profile.READ, "chmod", 0, 0o4755) == DENY
    assert ask(Profile.READ, "fchmodat", 0, 0, 0o2755) == DENY
    creat = 0o101
    assert ask(Profile.READ, "openat", 0, 0, creat, 0o600) == ALLOW
    assert ask(Profile.READ, "openat", 0, 0, creat, 0o4700) == DENY
    assert ask(Profile.READ, "openat", 0, 0, 0, 0o4700) == ALLOW  # nothing is made
    assert ask(Profile.READ, "openat2") == ABSENT
    assert ask(Profile.RESTORE, "chmod", 0, 0o4755) == ALLOW
    # Other ways to a file with such a bit: made so, or made without a name.
    nameless = os.O_TMPFILE | os.O_RDWR
    assert ask(Profile.VAULT, "openat", 0, 0, nameless, 0o4755) == DENY
    assert ask(Profile.VAULT, "openat", 0, 0, nameless, 0o600) == ALLOW
    assert ask(Profile.VAULT, "openat", 0, 0, os.O_DIRECTORY, 0o7777) == ALLOW
    assert ask(Profile.VAULT, "mknodat", 0, 0, 0o104755) == DENY
    assert ask(Profile.VAULT, "mknodat", 0, 0, 0o100600) == ALLOW
    assert ask(Profile.READ, "mknodat", 0, 0, 0o100600) == DENY
