"""Landlock and seccomp on a real kernel, and real engines under them."""

import ctypes
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capkeep.engines.base import Call
from capkeep.engines.restic import Restic
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.process import interpreter, spawn
from capkeep.kernel.seccomp import Profile
from capkeep.plan.model import Access
from tests.engines import restic_programs
from tests.rooms.test_kernel_facts import in_child
from tests.rooms.vaultkit import RELAY, Vault
from tools.engines import ENGINES


def refused(do: Callable[[], object], *numbers: int) -> None:
    with pytest.raises(OSError) as error:
        do()
    assert error.value.errno in numbers


# -- landlock


@pytest.fixture
def open_dir(tmp_path: Path) -> Path:
    (tmp_path / "open").mkdir()
    (tmp_path / "file").write_text("as it was")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="this host offers no Landlock")


@needs_landlock
def test_writing_goes_on_below_the_given_places_only(open_dir: Path) -> None:
    def do() -> None:
        assert landlock.restrict([str(open_dir / "open")], network=False) == landlock.abi()
        (open_dir / "open/new").write_text("x")
        os.rename(open_dir / "open/new", open_dir / "open/renamed")
        os.unlink(open_dir / "open/renamed")
        assert (open_dir / "file").read_text() == "as it was"
        for attempt in (
            lambda: (open_dir / "file").write_text("x"),
            lambda: os.open(open_dir / "fifo", os.O_WRONLY | os.O_NONBLOCK),
            lambda: os.mkdir(open_dir / "dir"),
            lambda: os.unlink(open_dir / "file"),
            lambda: os.symlink("x", open_dir / "link"),
            lambda: os.mkfifo(open_dir / "another"),
            lambda: socket.socket(socket.AF_UNIX).bind(str(open_dir / "sock")),
        ):
            refused(attempt, 13)
        if landlock.abi() >= 3:
            refused(lambda: os.truncate(open_dir / "file", 0), 13)
        Path("/dev/null").write_text("x")
        refused(lambda: os.open("/dev/full", os.O_WRONLY), 13)

    assert in_child(do) == 0


@needs_landlock
def test_a_file_may_be_given_instead_of_a_directory(open_dir: Path) -> None:
    def do() -> None:
        landlock.restrict([str(open_dir / "file")], network=False)
        (open_dir / "file").write_text("x")
        refused((open_dir / "new").touch, 13)

    assert in_child(do) == 0


def test_there_is_no_tcp() -> None:
    if landlock.abi() < 4:
        pytest.skip("this kernel's Landlock knows no TCP")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def do() -> None:
            landlock.restrict([], network=False)
            refused(lambda: socket.create_connection(server.getsockname()), 13)
            refused(lambda: socket.create_server(("127.0.0.1", 0)), 13)

        assert in_child(do) == 0


def test_a_granted_network_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as any_server:

        def do() -> None:
            landlock.restrict([], network=True)
            socket.create_connection(any_server.getsockname()).close()
            socket.create_server(("127.0.0.1", 0)).close()

        assert in_child(do) == 0


def test_signals_and_abstract_sockets_outside_are_out_of_reach() -> None:
    if landlock.abi() < 6:
        pytest.skip("this kernel's Landlock has no scopes")
    name = f"\0capkeep-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        parent = os.getpid()

        def do() -> None:
            landlock.restrict([], network=False)
            refused(lambda: os.kill(parent, 0), 1)
            os.kill(os.getpid(), 0)
            refused(lambda: socket.socket(socket.AF_UNIX).connect(name), 1)

        assert in_child(do) == 0


@needs_landlock
def test_a_missing_place_is_an_error(tmp_path: Path) -> None:
    def do() -> None:
        refused(lambda: landlock.restrict([str(tmp_path / "missing")], network=False), 2)

    assert in_child(do) == 0


# -- seccomp


@pytest.mark.parametrize("profile", Profile)
def test_a_filter_is_in_force_and_takes_new_privileges_away(profile: Profile) -> None:
    def do() -> None:
        seccomp.install(profile)
        status = Path("/proc/self/status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x10000000) == -1
        assert ctypes.get_errno() == 1
        assert libc.syscall(463, 0) == -1
        assert ctypes.get_errno() == 38

    assert in_child(do) == 0


@pytest.mark.parametrize("profile", [Profile.READ, Profile.RESTORE])
def test_an_engine_can_do_its_work_and_no_more(profile: Profile) -> None:
    def do() -> None:
        near, far = socket.socketpair()
        seccomp.install(Profile.ROOM)  # as in a room, whose filter stays in force
        seccomp.install(profile)
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
            refused(lambda family=family: socket.socket(family), 1)
        refused(socket.socketpair, 1)
        with near, far:
            near.sendmsg([b"x"])
            refused(lambda: near.send(b"x"), 1)
            refused(lambda: near.recv(1), 1)
            refused(lambda: near.connect("/run/x"), 1)
        relay = os.fork()
        if not relay:
            os._exit(0)
        os.waitpid(relay, 0)
        refused(lambda: os.kill(os.getppid(), 0), 1)
        refused(lambda: fcntl.fcntl(0, 8, 1), 1)
        os.kill(os.getpid(), 0)
        signal.raise_signal(signal.SIGWINCH)
        threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert in_child(do) == 0


def test_an_engine_that_shows_files_can_be_handed_a_descriptor_and_no_more() -> None:
    def do() -> None:
        seccomp.install(Profile.ROOM)
        seccomp.install(Profile.MOUNT)
        near, far = socket.socketpair()
        with near, far:
            device = os.open("/dev/null", os.O_RDONLY)
            packed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, device.to_bytes(4, "little"))]
            near.sendmsg([b"x"], packed)
            assert far.recvmsg(1, socket.CMSG_SPACE(4))[1]
            refused(lambda: near.connect("/run/x"), 1)
            refused(lambda: near.sendmsg([b"x"], [], 0, "/run/x"), 106)  # EISCONN
        refused(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), 1)
        refused(lambda: socket.socket(socket.AF_UNIX), 1)

    assert in_child(do) == 0


def test_installing_takes_less_than_a_room_can_afford() -> None:
    def do() -> None:
        seccomp.program(Profile.READ, seccomp.ARCHES[os.uname().machine], 1)
        start = time.perf_counter()
        seccomp.install(Profile.READ)
        assert time.perf_counter() - start < 0.01

    assert in_child(do) == 0


# -- engines


@pytest.mark.parametrize("version", [e.name for e in ENGINES if e.package == "restic"])
@pytest.mark.heavy
def test_every_restic_does_everything_confined(version: str, tmp_path: Path) -> None:
    cache, target, source = tmp_path / "cache", tmp_path / "target", tmp_path / "source"
    for directory in (cache, target, source):
        directory.mkdir()
    (source / "file").write_text("content")
    os.link(source / "file", source / "hard")
    os.symlink("file", source / "soft")
    os.mkfifo(source / "fifo")
    os.setxattr(source / "file", "user.x", b"y")
    os.chown(source / "file", 4711, 4712)
    root = tmp_path / "repository"
    root.mkdir()

    def run(profile: Profile, writable: list[str], *words: str) -> None:
        def confine() -> None:
            seccomp.install(Profile.ROOM)
            landlock.restrict(writable, network=False)
            seccomp.install(profile)

        relay = (interpreter(), "-I", "-S", RELAY, "3")
        call = Call(str(restic_programs()[version]), "", str(cache), str(cache), "x", relay)
        command = Restic().snapshots(call)  # for the options that every call has
        argv = [*command.argv[: command.argv.index("snapshots")], *words]
        child = spawn(
            argv, env=dict(command.env), keep={3: vault.handover.fileno()}, prepare=confine
        )
        try:
            assert child.wait(60) == 0, words
        finally:
            child.kill()

    with Vault(str(root), tmp_path / "state", Access.ADMIN) as vault:
        for words in (["init"], ["backup", str(source)], ["backup", "--force", str(source)], ["check", "--read-data"],
                      ["forget", "--keep-last", "1", "--prune"], ["snapshots"], ["ls", "latest"], ["unlock"]):  # fmt: skip
            run(Profile.READ, [str(cache)], *words)
        run(
            Profile.RESTORE, [str(cache), str(target)], "restore", "latest", "--target", str(target)
        )
    restored = Path(f"{target}{source}")
    assert (restored / "file").stat().st_nlink == 2
    assert ((restored / "file").stat().st_uid, (restored / "file").stat().st_gid) == (4711, 4712)
    assert os.getxattr(restored / "file", "user.x") == b"y"
    assert (restored / "soft").is_symlink()
    assert (restored / "fifo").is_fifo()
