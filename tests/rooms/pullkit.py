"""A server and a target on one machine, joined by a real sshd: two installations of their own."""

import contextlib
import os
import pwd
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from capkeep.kernel.process import python
from capkeep.plan.model import Plan, Repository, RoomKind, Secret, SecretSource, Target, View
from capkeep.rooms.protocol import Message
from tests.rooms.house import INTERPRETER, House, house
from tests.rooms.test_vault_engines import Sshd, running

LOGIN = "root"  # the answerer's here: it gives up all it could do, whoever it is
PULLER = pwd.getpwnam("games")  # ssh wants its user to have a name
NAME = "far"


class Pair(NamedTuple):
    """Both installations, and the sshd between them."""

    server: House
    target: House
    sshd: Sshd

    def run(self, action: str = "run") -> list[Message]:
        return self.server.ask({"action": action})

    def enroll(self, command: str = "") -> None:
        """Let the server's key do one thing."""
        door = self.target.plan.room("reader-job-repo").door
        assert door is not None
        words = (INTERPRETER, *python(self.target.package, "capkeep.rooms.answerer"), door.path)
        line = command or shlex.join(words)
        key = (self.sshd.base / "id.pub").read_text()
        quoted = line.replace('"', '\\"')
        (self.sshd.base / "authorized").write_text(f'restrict,command="{quoted}" {key}')


def as_server(home: House, sshd: Sshd, source: str) -> Plan:
    """The plan of a host that pulls: of the job the puller stands for the reader."""
    plan = home.compiled()
    job = plan.job("job")._replace(include=(source,), target=NAME)
    host_key = " ".join((sshd.base / "host.pub").read_text().split()[:2])
    target = Target(NAME, "127.0.0.1", LOGIN, (host_key,), sshd.port)
    identity = Path(home.base, "etc/secrets/identity")
    identity.write_bytes((sshd.base / "id").read_bytes())
    identity.chmod(0o600)

    def changed(room):
        if room.kind is not RoomKind.READER:
            return room
        grant = room.grant._replace(
            user=PULLER.pw_name, uid=PULLER.pw_uid, gid=PULLER.pw_gid, capabilities=(),
            view=View.TOOLS, sources=(), hide=(), network=True,
        )  # fmt: skip
        secrets = (*room.secrets, Secret("identity", SecretSource(file=str(identity))))
        return room._replace(kind=RoomKind.PULLER, grant=grant, secrets=secrets)

    return plan._replace(
        jobs=(job,), targets=(target,), rooms=tuple(map(changed, plan.rooms))
    )


def as_target(home: House) -> Plan:
    """The plan of a host that is pulled from: a reader without a wire, and nothing of a repository."""
    plan = home.compiled()
    repository: Repository = plan.repository("repo")._replace(location="", pulled_by="a key")
    rooms = []
    for room in plan.rooms:
        if room.kind is RoomKind.READER:
            assert room.door is not None
            door = room.door._replace(uid=0, gid=0)
            rooms.append(room._replace(wire=None, secrets=(), door=door))
        elif room.kind is RoomKind.RUNNER:
            rooms.append(room)
    return plan._replace(repositories=(repository,), rooms=tuple(rooms))


@contextlib.contextmanager
def pair(engine: Callable[[House], None] | None = None) -> Iterator[Pair]:
    """Both with their doors open, the server's repository made."""
    with house() as server, house() as target:
        base = Path(server.base, "sshd")
        base.mkdir()
        sshd = Sshd(base)
        for home in (server, target):
            if engine:
                engine(home)
        made = Pair(server, target, sshd)
        target.plan = as_target(target)
        target.apply(target.plan)
        server.plan = as_server(server, sshd, f"{target.base}/source")
        server.apply(server.plan)
        made.enroll()
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(base / "sshd_config")]
        with running(argv, sshd.port), target.doors(), server.doors():
            said = made.run("init")
            assert said[-1]["exit_code"] == 0, said
            yield made


def result(said: list[Message]) -> Message:
    """How the one step ended."""
    return next(m for m in said if m.get("event") == "step-end")


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def answerers(made: Pair) -> list[int]:
    """What runs of the target's answerer."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
            if b"rooms.answerer" in words and words.startswith(os.fsencode(INTERPRETER)):
                if os.fsencode(made.target.base) in words:
                    found.append(int(entry.name))
    return found
