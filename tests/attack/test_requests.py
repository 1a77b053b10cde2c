"""Callers who ask for what is not on the menu, and engines who talk nonsense."""

import array
import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.host.direct import converse
from capkeep.kernel.process import Child
from capkeep.plan.model import Room, RoomKind
from capkeep.rooms.protocol import MAX_LINE, Message, decode
from tests.rooms.house import House, house, members_of, wait_for

KINDS = (RoomKind.RUNNER, RoomKind.READER, RoomKind.KEEPER)
MEMORY = 60 << 20  # bytes, of any process of capkeep's own
MALFORMED = {
    "nothing": b"",
    "an empty line": b"\n",
    "no message": b"[]\n",
    "null": b"null\n",
    "a number with no end": b"1" * 100_000 + b"\n",
    "a number too large": b'{"action": 1e999999}\n',
    "not JSON": b"\x00\xff\xfe{{{\n",
    "half a message": b'{"action": "backup"',
    "a deep nest": b"[" * 200_000 + b"\n",
    "a deep nest inside": b'{"action": ' + b'{"a": ' * 100_000 + b"\n",
    "a name that is no text": b'{"action": "\\ud800"}\n',
    "no action": b"{}\n",
    "an action that is a list": b'{"action": ["backup"]}\n',
    "an unknown action": b'{"action": "delete"}\n',
    "an action with a path": b'{"action": "../../bin/sh"}\n',
    "options that are no options": b'{"action": "backup", "options": [1]}\n',
    "a flag that is a word": b'{"action": "backup", "options": {"dry_run": "yes"}}\n',
    "an option for the engine": b'{"action": "check", "options": {"read_data": "--password-command=id"}}\n',
    "a part that is a list": b'{"action": "check", "options": {"read_data": ["all"]}}\n',
    "a job that is a path": b'{"action": "run", "jobs": ["../../etc"]}\n',
    "a job that is an option": b'{"action": "run", "jobs": ["--help"]}\n',
    "jobs that are no list": b'{"action": "run", "jobs": {"job": 1}}\n',
    "a repository that is not there": b'{"action": "check", "repositories": ["other"]}\n',
}  # fmt: skip


@pytest.fixture(scope="module")
def home() -> Iterator[House]:
    with house() as made:
        with made.doors():
            assert made.ask({"action": "init"})[-1]["exit_code"] == 0, made.said()
        yield made


@pytest.fixture(scope="module")
def doors(home: House) -> Iterator[Child]:
    with home.doors() as child:
        yield child


def living(doors: Child) -> list[int]:
    """Every process of a room; none while one of them ends under our eyes."""
    with contextlib.suppress(FileNotFoundError):
        return members_of(doors.pid)
    return [0]


def door(home: House, kind: RoomKind) -> str:
    found = next(r for r in home.plan.rooms if r.kind is kind)
    assert found.door is not None
    return found.door.path


def connect(home: House, kind: RoomKind) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(door(home, kind))
    return sock


def hear_out(sock: socket.socket) -> list[Message]:
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(1 << 20):
            data += part
    return [decode(line) for line in data.splitlines()]


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_off_the_menu_is_refused(
    kind: RoomKind, request_: bytes, home: House, doors: Child
) -> None:
    with connect(home, kind) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(request_)
            sock.shutdown(socket.SHUT_WR)
        events = hear_out(sock)
    assert not [e for e in events if e.get("event") == "progress"]
    ends = [e for e in events if e.get("event") in ("result", "end")]
    for end in ends:
        assert end.get("exit_code") in (None, 2)
        assert end.get("failure", "refused") in ("refused", "interrupted", None), end
    wait_for(lambda: not living(doors))


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_without_end_costs_no_memory(kind: RoomKind, home: House, doors: Child) -> None:
    sent, most = 0, 0
    with connect(home, kind) as sock:
        deadline = time.monotonic() + 20
        with contextlib.suppress(ConnectionError, TimeoutError):
            while sent < 50 * MAX_LINE and time.monotonic() < deadline:
                sent += sock.send(b"x" * 65536)
                most = max([most, *(peak(pid) for pid in living(doors))])
    assert sent < 10 * MAX_LINE
    assert most < MEMORY
    wait_for(lambda: not living(doors))


def peak(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


@pytest.mark.parametrize("kind", KINDS)
def test_descriptors_that_a_caller_sends_are_kept_by_nobody(
    kind: RoomKind, home: House, doors: Child
) -> None:
    before = len(os.listdir(f"/proc/{doors.pid}/fd"))
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as end:
        with connect(home, kind) as sock:
            rights = array.array("i", [writer] * 200)
            with contextlib.suppress(OSError):
                sock.sendmsg([b"{}\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os.close(writer)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            hear_out(sock)
        assert select.select([end], [], [], 20)[0]
        assert end.read(1) == b"", "nobody holds the other end any more"
    wait_for(lambda: not living(doors))
    assert len(os.listdir(f"/proc/{doors.pid}/fd")) == before


@pytest.mark.heavy
def test_a_caller_who_says_nothing_is_let_go(home: House, doors: Child) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(home, kind)) for kind in KINDS]
        start = time.monotonic()
        for sock in socks:
            sock.settimeout(45)
            hear_out(sock)
        assert time.monotonic() - start < 40
    wait_for(lambda: not living(doors))


def test_after_all_that_a_backup_is_complete(home: House, doors: Child) -> None:
    assert doors.poll() is None
    assert home.backup_code() == 0, home.said()


# -- rooms that root asks


@pytest.mark.parametrize(
    "options",
    [
        {"snapshot": "--help"},
        {"snapshot": "latest --repo /etc"},
        {"snapshot": "../../etc"},
        {"snapshot": ""},
        {"snapshot": 1},
        {"snapshot": "latest", "paths": "/"},
        {"snapshot": "latest", "paths": [["/"]]},
    ],
)
def test_a_viewer_takes_no_option_for_a_snapshot(options: Message, home: House) -> None:
    room = next(r for r in home.plan.rooms if r.kind is RoomKind.VIEWER)
    result = converse(home.plan, room, {"action": "ls", "options": options}, lambda _: None)
    assert result["failure"] == "refused", result


@pytest.mark.parametrize("target", ["/etc", "/", "", "--help", "{cache}", "{target}/../..", None])
def test_a_restorer_writes_nowhere_else(target: str | None, home: House) -> None:
    place = f"{home.base}/target"
    os.makedirs(place, exist_ok=True)
    room = next(r for r in home.plan.rooms if r.kind is RoomKind.RESTORER)
    cache = room.grant.write[0]
    room = room._replace(grant=room.grant._replace(write=(cache, place)))
    named = target.format(cache=cache, target=place) if target is not None else None
    request: Message = {"action": "restore", "options": {"snapshot": "latest", "target": named}}
    assert converse(home.plan, room, request, lambda _: None)["failure"] == "refused"
    assert os.listdir(place) == []


# -- engines that talk nonsense

TALK = {
    "a line without end": "import os\nfor _ in range(3000): os.write(1, b'x' * 65536)",
    "many lines": "import os\nfor _ in range(2): os.write(1, b'y\\n' * 32768)",
    "many warnings": "import os\nfor _ in range(100000): os.write(2, b'warning: no\\n')",
    "a deep nest": "import os\nos.write(1, b'{\"message_type\": ' + b'[' * 200000 + b'\\n')",
    "a long number": "import os\nos.write(1, b'{\"message_type\": \"status\", \"seconds_remaining\": ' + b'9' * 9999 + b'}\\n')",
    "wrong types": "print('{\"message_type\": \"status\", \"percent_done\": {}, \"current_files\": 7}')\n"
                   "print('{\"message_type\": \"summary\", \"files_new\": \"many\", \"snapshot_id\": []}')",
    "no text": "import os\nos.write(1, bytes(range(256)) * 100)",
    "a list for an error": "import sys\nprint('{\"message_type\": \"error\", \"error\": [], \"item\": 3}', file=sys.stderr)",
    "its own death": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "closed ears": "import os, time\nos.close(1); os.close(2); time.sleep(1)",
}  # fmt: skip


@pytest.mark.parametrize("talk", TALK.values(), ids=TALK)
def test_an_engine_that_talks_nonsense_is_a_failure_with_a_name(talk: str, home: House) -> None:
    program = Path(home.base, "lib", "engine")
    program.write_text(f"#!/usr/bin/python3 -IS\n{talk}\n")
    program.chmod(0o755)
    repository = home.plan.repository("repo")._replace(program=str(program))
    plan = home.plan._replace(repositories=(repository,))
    result = converse(plan, reader(home), {"action": "backup"}, lambda _: None)
    assert result["event"] == "result"
    assert result["failure"] or result["exit_code"] != 0 or not result["canary_seen"], result


def reader(home: House) -> Room:
    return next(r for r in home.plan.rooms if r.kind is RoomKind.READER)


def test_an_engine_that_shouts_costs_the_runner_no_memory(home: House, doors: Child) -> None:
    program = Path(home.base, "lib", "engine")
    program.write_text(
        "#!/usr/bin/python3 -IS\nimport os\nfor _ in range(100): os.write(2, b'warning: ' + b'x' * 900000 + b'\\n')\n"
    )
    program.chmod(0o755)
    repository = home.plan.repository("repo")._replace(program=str(program))
    home.apply(home.plan._replace(repositories=(repository,)))
    try:
        most = 0
        with connect(home, RoomKind.RUNNER) as sock:
            sock.sendall(b'{"action": "run"}\n')
            sock.settimeout(60)
            while sock.recv(1 << 20):
                most = max([most, *(peak(pid) for pid in living(doors))])
        assert 0 < most < MEMORY
    finally:
        home.apply(home.plan)
    assert home.backup_code() == 0
