"""A real vault on one end of a wire, and its repository seen from outside."""

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

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

PACKAGE: Final = str(Path(__file__).parents[2] / "src")
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
    ) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self.listener.getsockname()[1])
        self.near, self.child = _start(
            _brief(location, state, access, (secrets, options, environment), floor)
        )
        socket.send_fds(self.near, [b'{"listen":true}\n'], [self.listener.fileno()])

    def __enter__(self) -> "Vault":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.near.close()
        self.listener.close()
        try:
            self.child.wait(30)
        except TimeoutError:
            self.child.kill()
            raise

    @property
    def url(self) -> str:
        return f"rest:http://127.0.0.1:{self.port}/"

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

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=40)
        sock.settimeout(40)
        return sock

    def say(self, request: bytes, *, end: bool = True) -> bytes:
        """Send bytes on a connection of their own; everything that comes back."""
        with self.connect() as sock:
            try:
                sock.sendall(request)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # a refusal may come before all of it was sent
            answer = b""
            try:
                while part := sock.recv(65536):
                    answer += part
            except ConnectionError:
                pass
            return answer

    def ask(self, method: str, target: str, body: bytes = b"", more: str = "") -> tuple[int, bytes]:
        """One proper request: its status and body."""
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{more}\r\n"
        )
        answer = self.say(head.encode() + body)
        top, _, rest = answer.partition(b"\r\n\r\n")
        return (int(top.split()[1]) if top else 0), rest

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
    """A vault that has not been sent a listener: the room's end of its wire, and its process."""
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
        room, Mode.SYSTEM, places, None, repository, access, 0, "here", host_namespaces(), secrets
    )


def restic(program: Path, url: str, *args: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run a real restic; its output is in the result."""
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(cache), "RESTIC_PASSWORD": PASSWORD,
        "RESTIC_CACHE_DIR": str(cache), "RESTIC_REPOSITORY": url,
    }  # fmt: skip
    return subprocess.run(
        [str(program), *args], env=environment, timeout=90, text=True, capture_output=True,
        check=False,
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
