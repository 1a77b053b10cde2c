"""What a started room holds of its parent, and where root is led when it starts one."""

import contextlib
import os
import pty
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.errors import RefusedError
from capkeep.host import start
from capkeep.host.direct import converse
from capkeep.host.start import Target
from capkeep.kernel.process import Child, spawn
from capkeep.kernel.ways import open_way
from capkeep.plan.model import Limits, Room, RoomKind
from capkeep.rooms.protocol import Message
from tests.rooms.house import MEMBER, House, as_user, house, members_of, wait_for


@pytest.fixture(scope="module")
def home() -> Iterator[House]:
    with house() as made:
        with made.doors():
            assert made.ask({"action": "init"})[-1]["exit_code"] == 0, made.said()
            assert made.backup_code() == 0, made.said()
        yield made


@pytest.fixture
def keeper(home: House) -> Iterator[start.Started]:
    """A keeper and its vault that wait to be asked."""
    near, far = socket.socketpair()
    with near:
        with far:
            started = start.start(home.plan, home.plan.room("keeper-repo"), far, 0)
        try:
            for child in started.children():
                wait_for(lambda child=child: has_read_its_brief(innermost(child)))  # type: ignore[misc]
            yield started
        finally:
            near.close()
            for child in started.children():
                with contextlib.suppress(TimeoutError):
                    child.wait(20)
                child.kill()


def innermost(child: Child) -> int:
    return [child.pid, *members_of(child.pid)][-1]


def links_of(pid: int) -> dict[int, str]:
    return {int(n): os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}


def foreign(pid: int) -> set[str]:
    """What it holds beside its standard descriptors, sockets and a vault's own file.

    Files of /proc come and go.
    """
    with contextlib.suppress(FileNotFoundError):
        links = {link for number, link in links_of(pid).items() if number > 2}
        return {t for t in links if not (t.startswith("socket:") or "/state/vault/repo/" in t)}
    return {"(changing)"}


def has_read_its_brief(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        is_python = "python" in os.readlink(f"/proc/{pid}/exe")
        return is_python and not any("memfd" in link for link in links_of(pid).values())
    return False


def test_a_room_holds_its_own_descriptors_and_no_other(keeper: start.Started) -> None:
    room, vault = (innermost(child) for child in keeper.children())
    for pid, wire in ((room, {4}), (vault, set())):
        links = links_of(pid)
        assert links[0] == links[1]
        assert links[0].startswith("socket:")
        wait_for(lambda pid=pid: not foreign(pid))  # type: ignore[misc]
        assert wire <= links.keys()


def test_a_room_has_no_terminal_nor_place_nor_environment_of_its_callers(
    keeper: start.Started,
) -> None:
    for child in keeper.children():
        pid = innermost(child)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {entry.partition(b"=")[0] for entry in environment if entry}
        assert names <= {b"PATH", b"LANG", b"PWD"}
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert fields[4] == "0", "it has a controlling terminal"
        assert "Umask:\t0022" in Path(f"/proc/{pid}/status").read_text()


def test_the_limits_are_in_force(home: House, keeper: start.Started) -> None:
    limits: Limits = home.plan.room("keeper-repo").grant.limits
    for child in keeper.children():
        pid = innermost(child)
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        found = {line[:26].strip(): line[26:].split()[:2] for line in lines}
        for name, wanted in (
            ("Max core file size", 0),
            ("Max data size", limits.memory_bytes),
            ("Max processes", limits.processes),
            ("Max open files", limits.open_files),
        ):
            soft, hard = found[name]
            assert soft == hard
            assert int(hard) <= wanted, name


def test_a_room_does_not_hold_the_terminal_it_is_started_from(home: House) -> None:
    """Who holds a terminal reads what is typed there, and writes on it what it likes."""
    main, terminal = pty.openpty()
    room = home.plan.room("viewer-repo")
    code = (
        "import os, sys; from capkeep.host.direct import converse\n"
        "from capkeep.cli.places import prefixed; from capkeep.plan.load import load_plan\n"
        "plan = load_plan(prefixed(sys.argv[1])); room = plan.room(sys.argv[2])\n"
        "from capkeep.host import start\n"
        "print(os.readlink(f'/proc/self/fd/{start._log(plan, room)}'), os.isatty(2), flush=True)\n"
    )
    out, into = os.pipe()
    child = spawn(
        ["/usr/bin/python3", "-c", "import sys; sys.path.insert(0, sys.argv[3])\n" + code,
         home.base, room.name, home.package],
        env={}, stdin=terminal, stdout=into, stderr=terminal,
    )  # fmt: skip
    os.close(into)
    with open(out) as file:
        said = file.read()
    child.wait(20)
    os.close(main)
    os.close(terminal)
    assert said == f"{home.places.rooms_log} True\n"


# -- a restore's target


def restore(home: House, target: str, fd: int) -> Message:
    room = next(r for r in home.plan.rooms if r.kind is RoomKind.RESTORER)
    room = _writing(room, target)
    options = {"snapshot": "latest", "paths": [f"{home.base}/source"], "target": target}
    request: Message = {"action": "restore", "options": options}
    return converse(home.plan, room, request, lambda _: None, Target(target, fd))


def _writing(room: Room, target: str) -> Room:
    return room._replace(grant=room.grant._replace(write=(*room.grant.write, target)))


@pytest.fixture
def hers(home: House) -> Iterator[Path]:
    """A directory of an ordinary user, and beside it one of root's."""
    folder = Path(home.base, "hers")
    folder.mkdir()
    os.chown(folder, MEMBER, MEMBER)
    Path(home.base, "roots").mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)
    shutil.rmtree(f"{home.base}/roots")


def test_a_restore_goes_where_its_directory_is_not_where_its_name_leads(
    home: House, hers: Path
) -> None:
    target = str(hers / "back")
    fd = open_way(target, make=0o700, links=False)
    with as_user(MEMBER):  # between our look and the room's start
        (hers / "back").rename(hers / "moved")
        (hers / "back").symlink_to(f"{home.base}/roots")
    try:
        result = restore(home, target, fd)
    finally:
        os.close(fd)
    assert result.get("failure") is None, result
    assert (hers / f"moved{home.base}/source/file").read_text() == "kept\n"
    assert os.listdir(f"{home.base}/roots") == []


@pytest.mark.parametrize("where", ["back", "way/back"])
def test_a_restore_follows_no_link_to_its_target(home: House, hers: Path, where: str) -> None:
    with as_user(MEMBER):
        (hers / where.split("/", maxsplit=1)[0]).symlink_to(f"{home.base}/roots")
    child = spawn(
        home.command("restore", "latest", "--to", str(hers / where)),
        env={"PATH": "/usr/bin"},
        stderr=os.open(f"{home.base}/restore-said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    )
    try:
        assert child.wait(60) == 4
    finally:
        child.kill()
    assert "symbolic link" in Path(home.base, "restore-said").read_text()
    assert os.listdir(f"{home.base}/roots") == []


def test_a_race_for_the_target_is_never_won(home: House, hers: Path) -> None:
    done = threading.Event()

    def race() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                shutil.rmtree(hers / "a")
                (hers / "a").symlink_to(f"{home.base}/roots")
            with contextlib.suppress(OSError):
                (hers / "a").unlink()
                (hers / "a").mkdir()

    racer = threading.Thread(target=race)
    racer.start()
    try:
        for _ in range(2000):
            with contextlib.suppress(OSError, RefusedError):
                fd = open_way(f"{hers}/a/back", make=0o700, links=False)
                where = os.readlink(f"/proc/self/fd/{fd}")
                os.close(fd)
                assert where.startswith(str(hers)), where
    finally:
        done.set()
        racer.join(10)
    assert os.listdir(f"{home.base}/roots") == []
