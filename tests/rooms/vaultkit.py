"""A real vault on one end of a wire, and its repository seen from outside."""

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from capkeep.host.bubblewrap import walls
from capkeep.kernel.facts import host_namespaces
from capkeep.kernel.process import Child, interpreter, python, spawn
from capkeep.plan import codec
from capkeep.plan.model import (
    Access,
    Brief,
    Grant,
    Limits,
    Mode,
    Places,
    Repository,
    Room,
    RoomKind,
)
from capkeep.rooms.vault import MAKE
from tests.rooms.h2 import Client, say

PACKAGE: Final = str(Path(__file__).parents[2] / "src")
RELAY: Final = f"{PACKAGE}/capkeep/rooms/relay.py"
PASSWORD: Final = "correct horse"
Pairs = Sequence[tuple[str, str]]


class Vault:
    """A vault that runs. `finish` ends it politely, leaving the context ends it anyway."""

    def __init__(
        self,
        location: str,
        state: Path,
        access: Access = Access.APPEND,
        *,
        secrets: Pairs = (),
        options: Pairs = (),
        environment: Pairs = (),
        floor: int = 1 << 20,
        engine: tuple[str, str] = ("restic", "/usr/bin/restic"),
        kept: bool = False,
        make: bool = False,
    ) -> None:
        """`kept`: its target keeps the password; `make`: the room asks to let it be made."""
        self.handover, far = socket.socketpair()
        brief = _brief(location, state, access, (secrets, options, environment), floor)
        assert brief.repository is not None
        name, program = engine
        repository = brief.repository._replace(
            engine=name, program=program, target_keeps_password=kept
        )
        self.near, self.child = _start(brief._replace(repository=repository))
        with far:
            socket.send_fds(self.near, [b'{"handover":true}\n'], [far.fileno()])
        if make:
            self.near.sendall(MAKE)

    def __enter__(self) -> "Vault":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.near.close()
        self.handover.close()
        try:
            self.child.wait(30)
        except TimeoutError:
            self.child.kill()
            raise

    def events(self, seconds: float = 30) -> list[dict[str, object]]:
        """All that the vault says until it ends."""
        self.near.settimeout(seconds)
        said = b""
        while part := self.near.recv(65536):
            said += part
        return [json.loads(line) for line in said.splitlines()]

    def finish(self) -> list[dict[str, object]]:
        """Shut the wire as a room does; what the vault said in its whole life."""
        self.near.shutdown(socket.SHUT_WR)
        return self.events()

    def connect(self) -> Client:
        """Speak HTTP/2 to it as an engine does."""
        return Client(self.handover)

    def say(self, request: bytes) -> bytes:
        """Send bytes on a pair of pipes of their own; everything that comes back."""
        return say(self.handover, request)

    def ask(self, method: str, target: str, body: bytes = b"", **more: str) -> tuple[int, bytes]:
        """One proper request: its status and body; (0, b"") if it is not answered."""
        with self.connect() as client:
            return client.ask(method, target, body, **more)

    def add(self, kind: str, content: bytes) -> tuple[int, str]:
        """Store an object under its right name."""
        name = hashlib.sha256(content).hexdigest()
        return self.ask("POST", f"/{kind}/{name}", content)[0], name


def _start(brief: Brief) -> tuple[socket.socket, Child]:
    near, far = socket.socketpair()
    fd = os.memfd_create("brief", os.MFD_CLOEXEC)
    with far, open(fd, "w+b") as file:
        file.write(codec.dumps(brief).encode())
        file.seek(0)
        child = spawn(
            [interpreter(), *python(PACKAGE, "capkeep.rooms.vault")],
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            stdin=far.fileno(), stdout=far.fileno(), keep={3: fd},
        )  # fmt: skip
    return near, child


@contextmanager
def start_bare(base: Path) -> Iterator[tuple[socket.socket, Child]]:
    """A vault that has not been sent a handover: the room's end of its wire, and its process."""
    root = base / "repository"
    root.mkdir()
    near, child = _start(_brief(str(root), base / "state", Access.APPEND, ((), (), ()), 1 << 20))
    try:
        yield near, child
    finally:
        near.close()
        child.kill()


def _brief(
    location: str, state: Path, access: Access, given: tuple[Pairs, Pairs, Pairs], floor: int
) -> Brief:
    secrets, options, environment = (tuple(pairs) for pairs in given)
    own = state / "vault" / "test"
    own.mkdir(parents=True, exist_ok=True)
    # rclone's kind "local" has its place on this machine, which no real grant would show.
    local = location.removeprefix("rclone:disk:")
    places = Places(*(str(state) for _ in Places._fields))
    grant = Grant(
        "root", os.getuid(), os.getgid(), network=not location.startswith("/"),
        write=(local, str(own)) if local.startswith("/") else (str(own),),
        limits=Limits(free_space_bytes=floor),
    )  # fmt: skip
    room = Room("vault-test", RoomKind.VAULT, grant, repository="test")
    repository = Repository("test", "restic", location, "/usr/bin/restic", environment, options)
    return Brief(
        room, Mode.SYSTEM, places, None, repository, access, 0, "here", host_namespaces(),
        walls(grant, Mode.SYSTEM), secrets,
    )  # fmt: skip


def restic(
    program: Path, where: Vault | str, *args: str, cache: Path
) -> subprocess.CompletedProcess[str]:
    """Run a real restic on a vault or on a location; its output is in the result."""
    with start_restic(program, where, *args, cache=cache) as child:
        try:
            said, complained = child.communicate(timeout=90)
        except BaseException:
            child.kill()
            raise
    return subprocess.CompletedProcess(child.args, child.returncode, said, complained)


def initialised(program: Path, opening: AbstractContextManager[Vault], cache: Path) -> None:
    """A new repository, by a vault that serves the keeper: nobody else may make one."""
    with opening as vault:
        done = restic(program, vault, "init", cache=cache)
        assert done.returncode == 0, done.stderr
        assert failures(vault.finish()) == []


def start_restic(
    program: Path,
    where: Vault | str,
    *args: str,
    cache: Path,
    stdin: int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A real restic that runs."""
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(cache), "RESTIC_PASSWORD": PASSWORD,
        "RESTIC_CACHE_DIR": str(cache), **(env or {}),
    }  # fmt: skip
    options: list[str] = []
    keep: list[int] = []
    if isinstance(where, Vault):
        keep = [where.handover.fileno()]
        relay = f"'{interpreter()}' -I -S '{RELAY}' {keep[0]}"
        options = ["-o", f"rclone.program={relay}", "-o", "rclone.args="]
        where = "rclone:capkeep:"
    return subprocess.Popen(
        [str(program), *options, *args], env={**environment, "RESTIC_REPOSITORY": where},
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=keep,
    )  # fmt: skip


def tree(root: Path) -> dict[str, str]:
    """Every file and what is in it, read from outside."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def failures(events: list[dict[str, object]]) -> list[str]:
    return [str(e["failure"]) for e in events if e["event"] == "failure"]


def wait_for_port(port: int, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on {port}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
