"""The one process that stays root, and what callers, engines and accidents can do to it."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.kernel.process import Child, spawn
from capkeep.plan.model import RoomKind
from capkeep.rooms.protocol import Channel
from tests.rooms.house import (
    GROUP,
    MEMBER,
    OTHER_MEMBER,
    STRANGER,
    UIDS,
    House,
    as_user,
    house,
    members_of,
    wait_for,
)


@pytest.fixture(scope="module")
def home() -> Iterator[House]:
    with house() as made:
        with made.doors():
            assert made.ask({"action": "init"})[-1]["exit_code"] == 0, made.said()
        yield made


@pytest.fixture
def doors(home: House) -> Iterator[Child]:
    with home.doors() as child:
        yield child


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_who_may_connect_where(home: House, doors: Child) -> None:
    def reaches(path: str) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(path) == 0

    assert doors.poll() is None
    rooms = [r for r in home.plan.rooms if r.door]
    assert len(rooms) == 3
    for room in rooms:
        assert room.door is not None
        is_runner = room.kind is RoomKind.RUNNER
        with as_user(STRANGER):
            assert not reaches(room.door.path), room.name
        with as_user(MEMBER, GROUP):
            assert reaches(room.door.path) is is_runner, room.name


def test_a_run_needs_no_directory_that_a_restart_has_taken(home: House) -> None:
    shutil.rmtree(home.places.run)
    with home.doors(umask=0o077):
        modes = {p: os.stat(p).st_mode & 0o777 for p in (home.places.run, home.places.stage)}
        assert modes == {home.places.run: 0o755, home.places.stage: 0o700}
        assert home.backup_code() == 0, home.said()


def test_the_doors_open_once(home: House, doors: Child) -> None:
    assert doors.poll() is None
    before = home.said()
    with home.doors() as second:
        assert second.wait(20) == 4
    assert "open already" in home.said().removeprefix(before)
    assert home.ask({"action": "nothing"})


def test_one_member_cannot_keep_the_runner_from_another(home: House, doors: Child) -> None:
    room = home.plan.room("runner")
    assert room.door is not None
    with contextlib.ExitStack() as stack:
        with as_user(MEMBER, GROUP):
            for _ in range(room.door.connections + 3):
                stack.enter_context(home.connect())
        wait_for(lambda: len(children(doors.pid)) == room.door.connections)  # type: ignore[union-attr]
        with as_user(OTHER_MEMBER, GROUP), Channel(home.connect()) as channel:
            channel.send({"action": "nothing"})
            events = list(channel)
    assert events[-1] == {"event": "done", "exit_code": 2}


def test_many_hostile_callers_leave_nothing_behind(home: House, doors: Child) -> None:
    home.ask({"action": "nothing"})
    wait_for(lambda: not children(doors.pid))
    before = descriptors(doors.pid), resident(doors.pid)
    with as_user(MEMBER, GROUP):
        for number in range(300):
            with home.connect() as sock, contextlib.suppress(OSError):
                sock.sendall((b"\x00" * 100, b"{}\n" * 50, b"[" * 5000 + b"\n", b"")[number % 4])
    wait_for(lambda: not children(doors.pid), 60)
    assert home.ask({"action": "nothing"})[-1]["exit_code"] == 2
    wait_for(lambda: not children(doors.pid))
    assert descriptors(doors.pid) == before[0]
    assert resident(doors.pid) - before[1] < 8 << 20


def resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("plan", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 9}', None])
def test_a_plan_that_is_broken_or_gone_changes_nothing(
    home: House, doors: Child, plan: bytes | None
) -> None:
    path = Path(home.places.plan)
    whole = path.read_bytes()
    path.unlink()
    try:
        if plan is not None:
            path.write_bytes(plan)
        with contextlib.suppress(ConnectionError):
            home.ask({"action": "nothing"})
        time.sleep(1.2)
        assert doors.poll() is None
    finally:
        path.write_bytes(whole)
        os.chown(path, 0, GROUP)
        path.chmod(0o640)
    assert home.backup_code() == 0
    assert "is not used" in home.said()


def test_a_room_that_cannot_be_opened_is_told_and_closes_no_other_door(
    home: House, doors: Child
) -> None:
    secret = Path(home.places.secrets, "repo")
    secret.rename(secret.with_suffix(".away"))
    os.mkfifo(secret, 0o600)
    try:
        events = home.ask({"action": "run"})
    finally:
        secret.unlink()
        secret.with_suffix(".away").rename(secret)
    assert events[-1]["exit_code"] not in (0, None)
    assert doors.poll() is None
    assert home.backup_code() == 0


def test_doors_out_of_descriptors_come_back(home: House, doors: Child) -> None:
    limit = resource.prlimit(doors.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(doors.pid, resource.RLIMIT_NOFILE, (descriptors(doors.pid), limit[1]))
    with home.connect() as waiting:
        before = cpu_seconds(doors.pid)
        time.sleep(1)
        assert cpu_seconds(doors.pid) - before < 0.5, "it must not spin"
        assert doors.poll() is None
        resource.prlimit(doors.pid, resource.RLIMIT_NOFILE, limit)
        waiting.sendall(b'{"action":"nothing"}\n')
        assert b"unknown request" in waiting.recv(65536, socket.MSG_WAITALL)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_killed_room_is_reaped_and_can_be_asked_again(home: House, doors: Child) -> None:
    with home.connect() as sock:
        wait_for(lambda: len(members_of(doors.pid)) == 3)  # bubblewrap, its init, and the runner
        os.kill(children(doors.pid)[0], signal.SIGKILL)
        assert sock.recv(10) == b""
    wait_for(lambda: not children(doors.pid))
    assert home.backup_code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ended_doors_leave_no_room_and_no_socket(home: House, number: signal.Signals) -> None:
    with home.doors() as child, home.connect():
        wait_for(lambda: bool(children(child.pid)))
        rooms = children(child.pid)
        child.send_signal(number)
        assert child.wait(20) == 0
        assert not [p for p in rooms if os.path.exists(f"/proc/{p}")]
        assert not [n for n in os.listdir(home.places.run) if n.endswith(".sock")]


def test_killed_doors_take_their_rooms_along_and_can_be_opened_again(home: House) -> None:
    with home.doors() as child, home.connect() as sock:
        wait_for(lambda: len(members_of(child.pid)) == 3)
        child.kill()
        assert sock.recv(10) == b"", "the room has died with its parent"
    with home.doors():
        assert home.backup_code() == 0


def test_the_log_of_doors_opened_for_a_while_cannot_be_led_astray(home: House) -> None:
    """The runner owns the log directory, and root must not write where it points."""
    victim = Path(home.base, "victim")
    victim.write_text("")
    trap = Path(home.places.log, "doors.log")
    trap.symlink_to(victim)
    os.lchown(trap, UIDS[RoomKind.RUNNER], UIDS[RoomKind.RUNNER])
    try:
        child = spawn(home.command("check"), env={"PATH": "/usr/bin"})
        try:
            assert child.wait(120) == 0
        finally:
            child.kill()
        assert "doors are open" in Path(home.places.doors_log).read_text()
        assert victim.read_text() == ""
    finally:
        trap.unlink()
        wait_for(lambda: not os.path.exists(home.places.runner_socket), 30)


def test_nothing_is_removed_while_the_doors_are_open(home: House, doors: Child) -> None:
    assert doors.poll() is None
    child = spawn(home.command("remove"), env={"PATH": "/usr/sbin:/usr/bin"})
    try:
        assert child.wait(60) == 4
    finally:
        child.kill()
    assert home.backup_code() == 0


def test_remove_takes_what_a_hostile_engine_left(home: House) -> None:
    """Last in this file: it ends the installation."""
    kept = Path(home.base, "kept")
    kept.mkdir()
    (kept / "file").touch()
    cache = Path(home.places.cache, "reader-job-repo")
    (cache / "link").symlink_to(kept)
    with contextlib.chdir(cache):
        for _ in range(3000):
            os.mkdir("deep")
            os.chdir("deep")
    child = spawn(home.command("remove"), env={"PATH": "/usr/sbin:/usr/bin"})
    try:
        assert child.wait(60) == 0
    finally:
        child.kill()
    assert not os.path.exists(home.places.cache)
    assert not os.path.exists(home.places.plan)
    assert os.listdir(kept) == ["file"]
