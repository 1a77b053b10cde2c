"""A whole small installation below a directory of its own: config, plan, users by number, doors."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import capkeep
from capkeep.config.load import load
from capkeep.host import apply, lent
from capkeep.host.users import ids
from capkeep.kernel.process import Child, python, spawn
from capkeep.plan.compile import HostFacts, compile_plan
from capkeep.plan.hooks import users_lent
from capkeep.plan.model import Mode, Places, Plan, RoomKind
from capkeep.rooms.protocol import Channel, Message
from tests.engines import rclone, restic_programs

INTERPRETER: Final = os.path.realpath("/usr/bin/python3")
# Users without names, of this run alone: two runs on one machine do not end each other's rooms.
GROUP: Final = 1_200_000 + secrets.randbelow(100_000) * 40
UIDS: Final = {kind: GROUP + 1 + number for number, kind in enumerate(RoomKind)}
SUBORDINATE: Final = GROUP // 40 << 16 & 0x3FFF0000 | 1 << 30  # ids of the prover's, likewise
MEMBER, OTHER_MEMBER, STRANGER = GROUP + 21, GROUP + 22, GROUP + 23
CONFIG: Final = """
[repositories.repo]
engine = "restic"
location = "{base}/repositories/repo"
password = {{ file = "{base}/etc/secrets/repo" }}

[engines.restic]
program = "{restic}"

[jobs.job]
repositories = ["repo"]
include = ["{base}/source"]
"""


class House:
    """An installation of capkeep; `places` are as with --prefix."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.places = Places(*(f"{base}/{n}" for n in ("etc", "state", "cache", "log", "run")))
        os.chmod(base, 0o755)
        self.package = f"{base}/lib"  # where only root can write, wherever the checkout lies
        shutil.copytree(Path(capkeep.__file__).parent, f"{self.package}/capkeep",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        for name in ("etc/secrets", "source", "repositories"):
            os.makedirs(f"{base}/{name}", mode=0o755)
        os.chmod(f"{base}/etc/secrets", 0o700)
        Path(base, "source", "file").write_text("kept\n")
        secret = Path(base, "etc/secrets/repo")
        secret.write_text("a password\n")
        secret.chmod(0o600)
        restic = restic_programs()["0.14"]
        Path(base, "etc/capkeep.toml").write_text(CONFIG.format(base=base, restic=restic))
        self.plan = self.compiled()
        self.apply(self.plan)

    def compiled(self) -> Plan:
        config = lent.resolved(load(self.places.config), Mode.SYSTEM)
        users = {"capkeep": UIDS[RoomKind.RUNNER]}
        users |= {f"capkeep-{kind}": uid for kind, uid in UIDS.items()}
        facts = HostFacts(
            mode=Mode.SYSTEM, places=self.places, group=GROUP, interpreter=INTERPRETER,
            package=self.package, hostname="house",
            users={n: (u, u) for n, u in users.items()} | ids(users_lent(config)),
            rclone=str(rclone()), subordinate=(SUBORDINATE, 1 << 16),
        )  # fmt: skip
        return lent.bound(compile_plan(config, facts))

    def apply(self, plan: Plan) -> None:
        for change in apply.changes(plan):
            change.make()
        apply.renew_canary(plan)

    def command(self, *arguments: str) -> list[str]:
        program = [INTERPRETER, *python(self.package, "capkeep.__main__")]
        return [*program, "--prefix", self.base, *arguments]

    @contextlib.contextmanager
    def doors(self, *, umask: int = 0o022) -> Iterator[Child]:
        """`capkeep doors`, open; ended politely, and killed if that does not help."""
        log = os.open(f"{self.base}/doors-said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        program = f'umask {umask:03o}; exec "$@"'
        argv = ["/bin/sh", "-c", program, "sh", *self.command("doors")]
        before = os.fstat(log).st_size
        child = spawn(argv, env={"PATH": "/usr/sbin:/usr/bin"}, stderr=log)
        os.close(log)
        try:
            wait_for(lambda: len(self.said()) > before or child.poll() is not None)
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                child.wait(30)
            child.kill()

    def said(self) -> str:
        return Path(self.base, "doors-said").read_text()

    def ask(self, request: Message, seconds: float = 60) -> list[Message]:
        """What the runner says to root."""
        with Channel(self.connect()) as channel:
            channel.sock.settimeout(seconds)
            channel.send(request)
            return list(channel)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Waits, but not for ever, while many others wait to be let in (a Python time limit does not).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 20, 0))
        sock.connect(self.places.runner_socket)
        sock.settimeout(20)
        return sock

    def backup_code(self) -> object:
        return self.ask({"action": "run"})[-1].get("exit_code")


@contextlib.contextmanager
def house() -> Iterator[House]:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    try:
        yield House(base)
    finally:
        shutil.rmtree(base)


def members_of(pid: int) -> list[int]:
    """All processes below a process, the nearest first."""
    try:
        found = [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended
    return found + [below for child in found for below in members_of(child)]


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until it is true. Fails when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


@contextlib.contextmanager
def as_user(uid: int, *groups: int) -> Iterator[None]:
    """This process with the effective identity of somebody else."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
