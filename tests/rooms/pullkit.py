"""A server and a target on one machine, joined by a real sshd: two installations of their own."""

import contextlib
import pwd
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from capkeep.kernel.process import python
from capkeep.plan.model import Plan, Room, RoomKind, Secret, SecretSource, Target, View
from capkeep.rooms.protocol import Message
from tests.rooms.house import INTERPRETER, House, house
from tests.rooms.test_vault_engines import Sshd, running

LOGIN = "root"  # the answerer's here: it gives up all it could do, whoever it is
PULLER = pwd.getpwnam("games")  # ssh wants its user to have a name
NAME = "far"
ENGINES = """
[repositories.borgs]
engine = "borg"
location = "{base}/repositories/borgs"
password = {{ file = "{base}/etc/secrets/repo" }}
[jobs.borg]
repositories = ["borgs"]
include = ["{base}/source"]

[repositories.mirror]
engine = "rdiff-backup"
location = "{base}/repositories/mirror"
[jobs.mirror]
repositories = ["mirror"]
include = ["{base}/source"]
"""
READERS = {"job": "reader-job-repo", "borg": "reader-borg-borgs", "mirror": "reader-mirror-mirror"}


class Pair(NamedTuple):
    """Both installations, and the sshd between them."""

    server: House
    target: House
    sshd: Sshd

    def run(self, job: str = "job") -> Message:
        """How a run's backup ended."""
        self.enroll(job)
        return ended(self.server.ask({"action": "run", "jobs": [job]}))

    def enroll(self, job: str = "job", command: str = "") -> None:
        """Let the server's key do one thing."""
        door = self.target.plan.room(READERS[job]).door
        assert door is not None
        words = (INTERPRETER, *python(self.target.package, "capkeep.rooms.answerer"), door.path)
        line = command or shlex.join(words)
        key = (self.sshd.base / "id.pub").read_text()
        quoted = line.replace('"', '\\"')
        (self.sshd.base / "authorized").write_text(f'restrict,command="{quoted}" {key}')


def as_server(home: House, sshd: Sshd, source: str, *, kept: bool = False) -> Plan:
    """The plan of a host that pulls: of the job the puller stands for the reader.

    `kept`: the targets keep the passwords.
    """
    plan = home.compiled()
    jobs = tuple(job._replace(include=(source,), target=NAME) for job in plan.jobs)
    host_key = " ".join((sshd.base / "host.pub").read_text().split()[:2])
    target = Target(NAME, "127.0.0.1", LOGIN, (host_key,), sshd.port)
    identity = Path(home.base, "etc/secrets/identity")
    identity.write_bytes((sshd.base / "id").read_bytes())
    identity.chmod(0o600)

    def changed(room: Room) -> Room:
        if room.kind is not RoomKind.READER:
            return room
        grant = room.grant._replace(
            user=PULLER.pw_name, uid=PULLER.pw_uid, gid=PULLER.pw_gid, capabilities=(),
            view=View.TOOLS, sources=(), hide=(), network=True,
        )  # fmt: skip
        secrets = (*room.secrets, Secret("identity", SecretSource(file=str(identity))))
        return room._replace(kind=RoomKind.PULLER, grant=grant, secrets=secrets)

    plan = plan._replace(jobs=jobs, targets=(target,), rooms=tuple(map(changed, plan.rooms)))
    return _without_passwords(plan) if kept else plan


def _without_passwords(plan: Plan) -> Plan:
    """As `plan.compile` has it where targets keep them."""
    kept = {r.name for r in plan.repositories if r.engine != "rdiff-backup"}
    rooms = tuple(
        room._replace(secrets=tuple(s for s in room.secrets if s.name != "password"))
        for room in plan.rooms
        if room.repository not in kept or room.kind is not RoomKind.KEEPER
    )
    repositories = tuple(
        r._replace(target_keeps_password=r.name in kept) for r in plan.repositories
    )
    return plan._replace(repositories=repositories, rooms=rooms)


def as_target(home: House, *, kept: bool = False) -> Plan:
    """The plan of a host that is pulled from: a reader without a wire, and nothing of a repository.

    `kept`: it has a password of its own.
    """
    plan = home.compiled()
    repositories = tuple(r._replace(location="", pulled_by="a key") for r in plan.repositories)
    rooms = []
    for room in plan.rooms:
        if room.kind is RoomKind.READER:
            assert room.door is not None
            door = room.door._replace(uid=0, gid=0)
            secrets = room.secrets if kept else ()
            rooms.append(room._replace(wire=None, secrets=secrets, door=door))
        elif room.kind is RoomKind.RUNNER:
            rooms.append(room)
    return plan._replace(repositories=repositories, rooms=tuple(rooms))


@contextlib.contextmanager
def pair(*, kept: str = "") -> Iterator[Pair]:
    """Both with their doors open, the server's repository made; not if it is the target's to make.

    `kept`: the password that the target keeps, and that the server never had.
    """
    with house() as server, house() as target:
        base = Path(server.base, "sshd")
        base.mkdir()
        sshd = Sshd(base)
        for home in (server, target):
            config = Path(home.base, "etc/capkeep.toml")
            config.write_text(config.read_text() + ENGINES.format(base=home.base))
        made = Pair(server, target, sshd)
        target.plan = as_target(target, kept=bool(kept))
        target.apply(target.plan)
        server.plan = as_server(server, sshd, f"{target.base}/source", kept=bool(kept))
        server.apply(server.plan)
        if kept:
            Path(target.base, "etc/secrets/repo").write_text(f"{kept}\n")
            Path(server.base, "etc/secrets/repo").unlink()
        made.enroll()
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(base / "sshd_config")]
        with running(argv, sshd.port), target.doors(), server.doors():
            said = server.ask({"action": "init", "repositories": ["mirror"] if kept else []})
            assert said[-1]["exit_code"] == 0, said
            yield made


def ended(said: list[Message]) -> Message:
    """How the backup of a run ended, or the run where there was none."""
    ends = [m for m in said if m.get("event") == "step-end" and m["kind"] == "backup"]
    return ends[0] if ends else said[-1]
