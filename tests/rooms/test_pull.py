"""Pulling, with everything real but the second machine: sshd, answerer, reader, engine, puller, vault."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.kernel.process import python
from capkeep.plan.model import RoomKind
from capkeep.rooms.protocol import Channel, Message
from capkeep.rooms.pull.frames import FIRST, HEAD, HELLO, TALK, WIRE, Data, Ended, Session, Type
from tests.rooms.house import INTERPRETER, wait_for
from tests.rooms.pullkit import NAME, READERS, Pair, pair

SECONDS = 60
HOSTILE = Path(__file__).with_name("hostile_target.py")
BACKUP: Message = {"action": "backup", "options": {"dry_run": False}}


@pytest.fixture(scope="module")
def pulled() -> Iterator[Pair]:
    with pair() as made:
        yield made


@contextlib.contextmanager
def asking(pulled: Pair, request: Message, job: str = "job") -> Iterator[Iterator[Message]]:
    """The puller, asked as its runner would; again while whoever asked before is still leaving."""
    door = pulled.server.plan.room(READERS[job]).door
    assert door is not None
    found: list[Channel] = []

    def is_let_in() -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(SECONDS)
        channel = Channel(sock)
        try:
            sock.connect(door.path)
            channel.send(request)
            first = channel.receive()
        except (BrokenPipeError, ConnectionResetError):
            first = None
        if first is None or first.get("event") == "result":
            channel.close()
            return False
        found.append(channel)
        return True

    wait_for(is_let_in)
    with found[0] as channel:
        yield iter(channel)


def ask(pulled: Pair, request: Message, job: str = "job") -> list[Message]:
    """All that the puller says, after its own proof."""
    with asking(pulled, request, job) as said:
        return list(said)


def failure(pulled: Pair, request: Message = BACKUP, job: str = "job") -> tuple[object, str]:
    result = ask(pulled, request, job)[-1]
    assert result["event"] == "result"
    return result["failure"], str(result["text"])


def of(uid: int) -> set[int]:
    """The processes of a user."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and entry.stat().st_uid == uid:
                found.add(int(entry.name))
    return found


def readers(pulled: Pair) -> set[int]:
    """All that runs as the target's reader, its engine included."""
    room = next(r for r in pulled.target.plan.rooms if r.kind is RoomKind.READER)
    return of(room.grant.uid)


def links(pulled: Pair) -> list[int]:
    """What runs of ssh for this server: the client, and not its agent."""
    found = []
    for pid in of(pulled.server.plan.room(READERS["job"]).grant.uid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            is_client = Path(f"/proc/{pid}/comm").read_text() == "ssh\n"
            if is_client and pulled.server.base.encode() in words:
                found.append(pid)
    return found


def running_as(uid: int, module: str, pulled: Pair) -> list[int]:
    """What runs a room's program there, on either side: Python, and not what started it."""
    found = []
    bases = [home.base.encode() for home in (pulled.server, pulled.target)]
    for pid in of(uid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            ours = any(base in words for base in bases) and words.startswith(INTERPRETER.encode())
            if ours and f"{module} import".encode() in words:
                found.append(pid)
    return found


@pytest.mark.parametrize("job", READERS)
def test_every_engine_backs_another_host_up(pulled: Pair, job: str) -> None:
    for _ in range(2):  # the second one finds nothing new
        ended = pulled.run(job)
        assert ended["outcome"] == "complete", (ended, pulled.server.said(), pulled.target.said())
        assert ended["engine_network"] is False, "the engine had none"


def test_who_did_what_is_proven_and_said(pulled: Pair) -> None:
    """The target's proofs beside the server's own; no word of the server's vault in what it hears."""
    pulled.enroll()
    events = ask(pulled, {"action": "probe", "options": {}})
    assert events[-1]["failure"] is None, events[-1]
    proofs = {str(e["process"]): e["facts"] for e in events if e["event"] == "proof"}
    assert list(proofs) == ["vault", "target", "target engine"]
    capabilities = {p: f["effective"] for p, f in proofs.items() if isinstance(f, dict)}
    assert capabilities == {
        "vault": [], "target": ["CAP_DAC_READ_SEARCH"], "target engine": ["CAP_DAC_READ_SEARCH"],
    }  # fmt: skip


def test_live_files_are_summed_for_drills(pulled: Pair) -> None:
    pulled.enroll()
    path = f"{pulled.target.base}/source/file"
    options: Message = {"paths": [path], "nonce": "n" * 32, "before": 1 << 62}
    sums = []
    for _ in range(2):
        events = ask(pulled, {"action": "sums", "options": options})
        assert events[-1]["failure"] is None, events[-1]
        (live,) = (e for e in events if e["event"] == "live")
        (file,) = live["files"]
        assert file.pop("above") > 0  # others work in the directories above it, too
        sums.append(file)
    assert sums[0] == sums[1]
    assert sums[0]["content"]
    assert failure(pulled, {"action": "sums", "options": {**options, "paths": ["/etc/shadow"]}})[
        0
    ] == ("refused")


# -- what is wrong is told by its name


def test_ways_to_a_target_that_do_not_lead_there(pulled: Pair) -> None:
    pulled.enroll()
    authorized = pulled.sshd.base / "authorized"
    for line, kind, words in (
        ("", "denied", "does not let us in"),
        ('command="/bin/false"', "unreachable", NAME),
        ('command="no-such-program"', "refused", "no capkeep answers there"),
        (
            f'command="{INTERPRETER} -I -S -c \\"import capkeep.rooms.answerer\\""',
            "refused",
            "no capkeep answers there",
        ),
    ):
        key = (pulled.sshd.base / "id.pub").read_text()
        authorized.write_text(f"{line} {key}" if line else "")
        found = failure(pulled)
        assert found[0] == kind, found
        assert words in found[1]


def test_another_host_key_is_refused_in_loud_words(pulled: Pair) -> None:
    pulled.enroll()
    plan = pulled.server.plan
    (target,) = plan.targets
    stranger = " ".join((pulled.sshd.base / "stranger.pub").read_text().split()[:2])
    try:
        pulled.server.apply(plan._replace(targets=(target._replace(host_keys=(stranger,)),)))
        wait_for(lambda: "ANOTHER HOST KEY" in failure(pulled)[1])
        assert failure(pulled)[0] == "denied"
        pulled.server.apply(plan._replace(targets=(target._replace(port=1),)))
        wait_for(lambda: failure(pulled)[0] == "unreachable")
    finally:
        pulled.server.apply(plan)
    wait_for(lambda: failure(pulled)[0] is None)


def test_through_a_host_on_the_way(pulled: Pair) -> None:
    """The same sshd is both; its key is pinned for each of them."""
    pulled.enroll()
    authorized = pulled.sshd.base / "authorized"
    line = authorized.read_text().replace("restrict", "restrict,port-forwarding", 1)
    plan = pulled.server.plan
    (target,) = plan.targets
    way = target._replace(jump=f"root@127.0.0.1:{target.port}", jump_keys=target.host_keys)
    other = " ".join((pulled.sshd.base / "stranger.pub").read_text().split()[:2])
    try:
        authorized.write_text(line)
        pulled.server.apply(plan._replace(targets=(way._replace(jump_keys=(other,)),)))
        wait_for(lambda: f"root@127.0.0.1:{target.port} SHOWS" in failure(pulled)[1])
        shut = way._replace(jump=f"unheard-of@127.0.0.1:{target.port}")
        pulled.server.apply(plan._replace(targets=(shut,)))
        wait_for(lambda: f"{shut.jump} does not let us in" in failure(pulled)[1])
        pulled.server.apply(plan._replace(targets=(way,)))
        wait_for(lambda: failure(pulled)[0] is None)
    finally:
        pulled.server.apply(plan)


def test_a_reader_without_a_door_and_one_that_is_busy(pulled: Pair) -> None:
    pulled.enroll()
    door = pulled.target.plan.room(READERS["job"]).door
    assert door is not None
    os.rename(door.path, f"{door.path}.away")
    try:
        assert failure(pulled)[0] == "refused"
    finally:
        os.rename(f"{door.path}.away", door.path)
    wait_for(lambda: not readers(pulled))  # of the test before
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(door.path)
        wait_for(lambda: bool(readers(pulled)))
        assert failure(pulled)[0] == "locked"
    wait_for(lambda: not readers(pulled))


@pytest.mark.parametrize("who", ["link", "puller", "answerer", "caller"])
def test_whoever_is_killed_leaves_nothing(pulled: Pair, who: str) -> None:
    """The engine on the target ends within seconds, and no lock stays."""
    pulled.enroll()
    victim = Path(pulled.target.base, "source/endless")
    with open(victim, "wb") as file:
        file.truncate(1 << 40)  # holes: it takes for ever, and no place
    try:
        with asking(pulled, BACKUP) as said:
            assert any(message.get("process") == "target engine" for message in said)
            if who == "link":
                os.kill(links(pulled)[0], signal.SIGKILL)
            elif who != "caller":
                uid = pulled.server.plan.room(READERS["job"]).grant.uid if who == "puller" else 0
                programs = running_as(uid, f"rooms.{who}", pulled)
                assert programs
                for pid in programs:
                    os.kill(pid, signal.SIGKILL)
            if who in ("link", "answerer"):
                last = list(said)[-1]
                assert (last["event"], last["failure"]) == ("result", "unreachable")
        wait_for(lambda: not readers(pulled) and not links(pulled))
    finally:
        victim.unlink()
    locks = Path(pulled.server.base, "repositories/repo/locks")
    wait_for(lambda: not list(locks.iterdir()))


def test_the_next_pull_heals(pulled: Pair) -> None:
    assert pulled.run()["outcome"] == "complete"


# -- a hostile target


def hostile(pulled: Pair, kind: str) -> None:
    """Have one in the answerer's place."""
    script = Path(pulled.target.base, "hostile.py")
    script.write_bytes(HOSTILE.read_bytes())
    source = f"{pulled.target.base}/source"
    line = f"{INTERPRETER} {script} {pulled.target.package} {kind} {source}"
    pulled.enroll(command=line)


@pytest.mark.parametrize("job", READERS)
@pytest.mark.parametrize("kind", ["made-up", "nameless"])
def test_snapshots_that_are_not_there_do_not_count(pulled: Pair, job: str, kind: str) -> None:
    hostile(pulled, kind)
    found = failure(pulled, job=job)
    assert found[0] == "refused", found
    assert found[1].endswith("and our vault got none")


@pytest.mark.parametrize(
    "kind,name,words",
    [
        ("banner", "refused", "Welcome to web1!"),
        ("credit", "refused", "more data than was asked for"),
        ("nine", "refused", "channels at a time"),
        ("type", "refused", "type 77"),
        ("wire", "refused", "words on a wire"),
        ("line", "refused", "longer than"),
        ("json", "refused", "not a JSON message"),
        ("hurry", "refused", "before it said what it keeps"),
        ("other", "refused", "/somewhere/else"),
        ("unproven", "refused", "has not proven itself"),
        ("foreign", "refused", "not the job's"),
        ("mute", "locked", "busy"),
        ("leaves", "unreachable", NAME),
    ],
)
def test_a_hostile_target_is_told_as_one(pulled: Pair, kind: str, name: str, words: str) -> None:
    hostile(pulled, kind)
    found = failure(pulled)
    assert found[0] == name, found
    assert words in found[1]
    assert not links(pulled)


# -- a hostile server, or whoever has its key


class Answerer:
    """The target's side, with us as the server."""

    def __init__(self, pulled: Pair, path: str = "") -> None:
        door = pulled.target.plan.room(READERS["job"]).door
        assert door is not None
        program = python(pulled.target.package, "capkeep.rooms.answerer")
        words = [INTERPRETER, *program, path or door.path]
        self.child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd="/",
            env={"PATH": "/usr/bin"},
        )  # fmt: skip
        self.session = Session(opens=False)
        self.talk = b""

    def __enter__(self) -> "Answerer":
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self.child.stdin, self.child.stdout):
            assert end is not None
            with contextlib.suppress(OSError):
                end.close()
        try:
            self.child.wait(10)
        finally:
            self.child.kill()
            self.child.wait()

    def say(self, data: bytes) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def ask(self, request: Message) -> None:
        self.session.send(TALK, json.dumps(request).encode() + b"\n")
        self.say(bytes(self.session.outgoing))
        self.session.outgoing.clear()

    def hear(self) -> list[Message]:
        """What the reader says, until it has left or the answerer has."""
        assert self.child.stdout is not None
        while data := os.read(self.child.stdout.fileno(), 1 << 16):
            for event in self.session.feed(data):
                if isinstance(event, Data) and event.channel == TALK:
                    self.talk += event.data
                if isinstance(event, Ended) and event.channel == TALK:
                    return [json.loads(line) for line in self.talk.splitlines()]
        return [json.loads(line) for line in self.talk.splitlines()]


@pytest.mark.parametrize(
    "request_",
    [
        {"action": "stream", "options": {"dump": "x", "file": "y"}},
        {"action": "backup", "options": {"dry_run": False, "include": ["/root"]}},
        {"action": "backup", "options": {}, "command": "id"},
        {"action": "sums", "options": {"paths": "all"}},
        ["backup"],
    ],
)
def test_a_key_asks_for_nothing_but_what_a_reader_does(pulled: Pair, request_: Message) -> None:
    with Answerer(pulled) as answerer:
        answerer.ask(request_)
        said = b""
        while b"refused" not in said:
            assert answerer.child.stdout is not None
            part = os.read(answerer.child.stdout.fileno(), 1 << 16)
            assert part, said
            said += part
    wait_for(lambda: not readers(pulled))


@pytest.mark.parametrize(
    "more",
    [
        HEAD.pack(Type.OPEN, FIRST, 0),
        HEAD.pack(Type.DATA, TALK, 2) + b"{}",
        HEAD.pack(Type.DATA, FIRST, 2) + b"{}",
        b"\xff" * 100,
    ],
)
def test_whatever_else_a_server_says_is_its_end(pulled: Pair, more: bytes) -> None:
    with Answerer(pulled) as answerer:
        answerer.ask({"action": "probe", "options": {}})
        answerer.say(more)
        answerer.hear()
        assert answerer.child.wait(20) == 1
    wait_for(lambda: not readers(pulled))


def test_a_reader_that_is_busy_says_so_however_late_it_says_it(
    pulled: Pair, tmp_path: Path
) -> None:
    """All that it was told is on its way, and is never read."""
    words = struct.pack("i", 0)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        door.listen()
        with Answerer(pulled, str(tmp_path / "door")) as answerer:
            answerer.session.send(WIRE, b'{"event":"proof"}\n')
            answerer.ask({"action": "probe", "options": {}})
            caller, _ = door.accept()
            with caller:
                _, fds, _, _ = socket.recv_fds(caller, 1, 1, socket.MSG_PEEK)
                wait_for(lambda: fcntl.ioctl(fds[0], termios.FIONREAD, words) != words)
                os.close(fds[0])
                caller.sendall(b'{"event":"result","failure":"locked"}\n')
            assert [said["failure"] for said in answerer.hear()] == ["locked"]


def test_an_answerer_is_closed_in_and_outlives_nobody(pulled: Pair) -> None:
    with Answerer(pulled) as answerer:
        assert answerer.child.stdout is not None
        assert os.read(answerer.child.stdout.fileno(), len(HELLO)) == HELLO
        pid = answerer.child.pid
        status = Path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [n for n in held if n != "/dev/null" and not n.startswith(("pipe:", "socket:"))]
        assert answerer.child.stdin is not None
        answerer.child.stdin.close()
        assert answerer.child.wait(20) == 1
    wait_for(lambda: not readers(pulled))
