"""Who holds which secret while a backup is under way, looked at from outside, by root.

Everything that the kernel shows of a process is searched: its environment, its command line, what
its descriptors lead to, and its memory (proc(5)).
"""

import base64
import contextlib
import hashlib
import os
import secrets
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from capkeep.plan.model import RoomKind
from tests.engines import restic_programs
from tests.rooms.house import UIDS, House, house, members_of, wait_for
from tests.rooms.test_vault_engines import RestServer, running
from tests.system.conftest import Product
from tests.system.test_places import rest_place
from tests.system.test_trouble import start

KINDS = {UIDS[kind]: kind for kind in (RoomKind.RUNNER, RoomKind.READER, RoomKind.VAULT)}
MIB = 1 << 20
STORED = 16 * MIB  # so much lies in the remote place: the engine is in the middle of its work
FILE_MOST, MAPPING_MOST = 16 * MIB, 512 * MIB
OVERLAP = 4096  # longer than any form of a secret


class Found(NamedTuple):
    kind: RoomKind
    process: str
    where: str
    secret: str


class Search:
    """Looks for secrets, each in all the forms it takes, in the rooms of one installation."""

    def __init__(self, doors: int, forms: dict[str, tuple[bytes, ...]]) -> None:
        self.doors = doors
        self.forms = forms
        self.found: set[Found] = set()

    def processes(self) -> dict[int, RoomKind]:
        """By the user they run as: the owner of /proc/PID is root where memory is hidden."""
        kinds = {}
        for pid in _below(self.doors):
            with contextlib.suppress(OSError):  # it has just ended
                status = Path(f"/proc/{pid}/status").read_text()
                uids = next(x for x in status.splitlines() if x.startswith("Uid:")).split()[1:]
                if kind := next((KINDS[int(u)] for u in uids if int(u) in KINDS), None):
                    kinds[pid] = kind
        return kinds

    def engines(self) -> list[int]:
        readers = [p for p, kind in self.processes().items() if kind is RoomKind.READER]
        return [pid for pid in readers if "restic" in _program(pid)]

    def glance(self) -> None:
        """All but the memory, of processes that may just be ending."""
        for pid, kind in self.processes().items():
            with contextlib.suppress(OSError):
                self._outside(pid, kind)

    def look(self) -> set[RoomKind]:
        """Everything of all processes, which must stay. The kinds that were searched."""
        processes = self.processes()
        for pid, kind in processes.items():
            self._outside(pid, kind)
            self._memory(pid, kind)
        return set(processes.values())

    def _outside(self, pid: int, kind: RoomKind) -> None:
        for name in ("environ", "cmdline"):
            self._note(pid, kind, name, Path(f"/proc/{pid}/{name}").read_bytes())
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just been closed
                state = entry.stat()
                if stat.S_ISREG(state.st_mode) and state.st_size <= FILE_MOST:
                    with entry.open("rb") as file:
                        text = file.read(FILE_MOST)
                    self._note(pid, kind, f"fd {entry.name} -> {entry.readlink()}", text)

    def _memory(self, pid: int, kind: RoomKind) -> None:
        seen = 0
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for begin, end, name in _mappings(pid):
                for at in range(begin, end, 8 * MIB):
                    with contextlib.suppress(OSError):  # the kernel's own pages, [vvar] and such
                        size = min(8 * MIB + OVERLAP, end - at)
                        text = os.pread(memory.fileno(), size, at)
                        seen += len(text)
                        self._note(pid, kind, f"memory {name}", text)
        assert seen > 64 << 10, f"the memory of {kind} {pid} was not read"

    def _note(self, pid: int, kind: RoomKind, where: str, text: bytes) -> None:
        for secret, forms in self.forms.items():
            if any(form in text for form in forms):
                self.found.add(Found(kind, f"{pid} {_program(pid)}", where, secret))

    def holders(self, secret: str) -> set[RoomKind]:
        return {f.kind for f in self.found if f.secret == secret}


def _below(pid: int) -> list[int]:
    """As `members_of`, while they come and go."""
    while True:
        with contextlib.suppress(OSError):
            return members_of(pid)


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return "ended"


def _mappings(pid: int) -> Iterator[tuple[int, int, str]]:
    """What a process can have written to, or has made itself: no text of programs."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, mode, _, _, inode, *name = line.split(maxsplit=5)
        begin, end = (int(n, 16) for n in span.split("-"))
        own = "w" in mode or inode == "0"
        if mode[0] == "r" and own and end - begin <= MAPPING_MOST:
            yield begin, end, name[0] if name else "anonymous"


def _stored(server: RestServer) -> int:
    files = (os.path.join(at, n) for at, _, names in os.walk(server.base / "data") for n in names)
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # it has just got its name
            total += os.stat(file).st_size
    return total


class Scene(NamedTuple):
    product: Product
    server: RestServer
    search: Search


@pytest.fixture(params=["0.14", "0.19"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """An installation with secrets that occur nowhere else on this machine."""
    remote, repository = secrets.token_hex(20), secrets.token_hex(20)
    login = base64.b64encode(f"user:{remote}".encode())
    forms = {"remote": (remote.encode(), login), "repository": (repository.encode(),)}
    server = RestServer(tmp_path)
    digest = base64.b64encode(hashlib.sha1(remote.encode()).digest()).decode()
    (tmp_path / "htpasswd").write_text(f"user:{{SHA}}{digest}\n")
    with running(server.argv, server.port), house() as home, home.doors() as doors:
        product = _installed(home, server, remote, repository, request.param)
        forms["no secret"] = (home.base.encode(),)  # every room knows where it lives
        yield Scene(product, server, Search(doors.pid, forms))


def _installed(
    home: House, server: RestServer, remote: str, repository: str, engine: str
) -> Product:
    Path(home.base, "etc/secrets/repo").write_text(f"{repository}\n")
    product = rest_place(home, server, remote)
    programs = restic_programs()
    if engine != "0.14":
        product.configure(str(programs["0.14"]), str(programs[engine]))
    for number in range(8):
        with open(product.source / f"big{number}", "wb") as file:
            file.writelines(os.urandom(MIB) for _ in range(20))
    made = product("init")
    assert made.code == 0, made
    return product


@pytest.mark.heavy
def test_each_secret_is_in_the_one_room_that_needs_it(scene: Scene) -> None:
    search, stopped = scene.search, []
    run = start(scene.product, "run", "--json")
    try:

        def is_half_done() -> bool:
            search.glance()
            return _stored(scene.server) > STORED or run.poll() is not None

        wait_for(is_half_done, 60)
        stopped = search.engines()
        assert stopped, run.poll()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        assert search.look() == set(KINDS.values())
        assert search.engines() == stopped, "it was under way all the time"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        out, _ = run.communicate(timeout=100)
    assert run.returncode == 0, out
    assert search.holders("remote") == {RoomKind.VAULT}, search.found
    assert search.holders("repository") == {RoomKind.READER}, search.found
    _assert_the_search_finds_what_is_there(search.found)


def _assert_the_search_finds_what_is_there(found: set[Found]) -> None:
    """In the memory of every kind of room, and in the environment of the engine.

    The brief lies in its memory file too shortly to insist on seeing it there.
    """
    for kind in KINDS.values():
        ways = {f.where.split()[0] for f in found if f.kind is kind}
        assert "memory" in ways, (kind, found)
    environments = {
        (f.secret, f.kind) for f in found if f.where == "environ" and "restic" in f.process
    }
    assert ("repository", RoomKind.READER) in environments, found
