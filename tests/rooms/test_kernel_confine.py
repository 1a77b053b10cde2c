"""Landlock and seccomp on a real kernel, and real engines under them."""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capkeep.kernel import landlock, seccomp
from capkeep.kernel.process import spawn
from capkeep.kernel.seccomp import Profile
from tests.engines import rest_server, restic_programs
from tests.rooms.test_kernel_facts import in_child
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


def test_this_kernel_has_landlock() -> None:
    assert landlock.abi() >= 1, "the suite proves nothing on a kernel without it"


def test_writing_goes_on_below_the_given_places_only(open_dir: Path) -> None:
    def do() -> None:
        assert landlock.restrict([str(open_dir / "open")], []) == landlock.abi()
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


def test_a_file_may_be_given_instead_of_a_directory(open_dir: Path) -> None:
    def do() -> None:
        landlock.restrict([str(open_dir / "file")], [])
        (open_dir / "file").write_text("x")
        refused((open_dir / "new").touch, 13)

    assert in_child(do) == 0


def test_tcp_goes_to_the_given_ports_only() -> None:
    if landlock.abi() < 4:
        pytest.skip("this kernel's Landlock knows no TCP")
    with (
        socket.create_server(("127.0.0.1", 0)) as mine,
        socket.create_server(("127.0.0.1", 0)) as not_mine,
    ):

        def do() -> None:
            landlock.restrict([], [mine.getsockname()[1]])
            socket.create_connection(mine.getsockname()).close()
            refused(lambda: socket.create_connection(not_mine.getsockname()), 13)
            refused(lambda: socket.create_server(("127.0.0.1", 0)), 13)

        assert in_child(do) == 0


def test_a_granted_network_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as any_server:

        def do() -> None:
            landlock.restrict([], None)
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
            landlock.restrict([], [])
            refused(lambda: os.kill(parent, 0), 1)
            os.kill(os.getpid(), 0)
            refused(lambda: socket.socket(socket.AF_UNIX).connect(name), 1)

        assert in_child(do) == 0


def test_a_missing_place_is_an_error(tmp_path: Path) -> None:
    def do() -> None:
        refused(lambda: landlock.restrict([str(tmp_path / "missing")], []), 2)

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
        seccomp.install(Profile.ROOM)  # as in a room, whose filter stays in force
        seccomp.install(profile)
        socket.socket().close()
        refused(lambda: socket.socket(socket.AF_UNIX), 1)
        refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 1)
        refused(os.fork, 1)
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


def test_installing_takes_less_than_a_room_can_afford() -> None:
    def do() -> None:
        seccomp.program(Profile.READ, seccomp.ARCHES[os.uname().machine], 1)
        start = time.perf_counter()
        seccomp.install(Profile.READ)
        assert time.perf_counter() - start < 0.01

    assert in_child(do) == 0


# -- engines


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [
            rest_server(),
            "--path",
            str(tmp_path / "repo"),
            "--listen",
            f"127.0.0.1:{port}",
            "--no-auth",
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not is_served(port) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait(10)


def is_served(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("version", [e.name for e in ENGINES if e.package == "restic"])
@pytest.mark.heavy
def test_every_restic_does_everything_confined(version: str, server: int, tmp_path: Path) -> None:
    cache, target, source = tmp_path / "cache", tmp_path / "target", tmp_path / "source"
    for directory in (cache, target, source):
        directory.mkdir()
    (source / "file").write_text("content")
    os.link(source / "file", source / "hard")
    os.symlink("file", source / "soft")
    os.mkfifo(source / "fifo")
    os.setxattr(source / "file", "user.x", b"y")
    os.chown(source / "file", 4711, 4712)
    env = {"RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": f"rest:http://127.0.0.1:{server}/", "HOME": "/",
           "RESTIC_CACHE_DIR": str(cache), "TMPDIR": str(cache), "PATH": "/usr/bin"}  # fmt: skip

    def run(profile: Profile, writable: list[str], *words: str) -> None:
        def confine() -> None:
            seccomp.install(Profile.ROOM)
            landlock.restrict(writable, [server])
            seccomp.install(profile)

        child = spawn([str(restic_programs()[version]), *words], env=env, prepare=confine)
        try:
            assert child.wait(60) == 0, words
        finally:
            child.kill()

    for words in (["init"], ["backup", str(source)], ["backup", "--force", str(source)], ["check", "--read-data"],
                  ["forget", "--keep-last", "1", "--prune"], ["snapshots"], ["ls", "latest"], ["unlock"]):  # fmt: skip
        run(Profile.READ, [str(cache)], *words)
    run(Profile.RESTORE, [str(cache), str(target)], "restore", "latest", "--target", str(target))
    restored = Path(f"{target}{source}")
    assert (restored / "file").stat().st_nlink == 2
    assert ((restored / "file").stat().st_uid, (restored / "file").stat().st_gid) == (4711, 4712)
    assert os.getxattr(restored / "file", "user.x") == b"y"
    assert (restored / "soft").is_symlink()
    assert (restored / "fifo").is_fifo()
