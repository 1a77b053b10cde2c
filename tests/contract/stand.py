"""One installation for each engine: jobs and repositories of its own for each scene, and real rooms.

A room is asked as the runner, or root's command, asks it; what it says is all that a test knows.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from capkeep.engines import ENGINES
from capkeep.host.apply import make_run_directories
from capkeep.host.start import Target, start
from capkeep.plan.model import Grant, Job, Plan, Room, RoomKind, View
from capkeep.rooms.protocol import Channel, Message
from capkeep.run import heard as run_heard
from capkeep.run import verdict
from tests.contract.declared import CONTESTANTS
from tests.contract.quick import quick_key
from tests.engines import borg_programs, restic_programs
from tests.rooms.house import UIDS, House, members_of

SECONDS: Final = 60  # no single request takes longer
PASSWORD: Final = "a password"
PACE: Final = 32 << 20  # bytes a second, of backups that are to be met while they read
SCENES: Final = (
    "tree",
    "trouble",
    "moving",
    "history",
    "damage",
    "full",
    "stream",
    "labels",
    "huge",
)

HEAD: Final = """
[engines.{engine}]
program = "{program}"

[limits]
free-space = "16MiB"
"""
DUMP: Final = """
[dumps.rows]
kind = "command"
user = "nobody"
command = ["/bin/true"]
stream = true
"""
SCENE: Final = """
[repositories.{scene}]
engine = "{engine}"
location = "{base}/repositories/{scene}"
{password}

[jobs.{scene}]
repositories = ["{scene}"]
include = ["{base}/source/{scene}"]
exclude = ["*.left-out", "**/cache-[ab]", "{base}/source/{scene}/sub/exactly"]
"""


class Contestant(NamedTuple):
    """An engine in one version."""

    engine: str
    version: str
    program: Path

    @property
    def name(self) -> str:
        return f"{self.engine} {self.version}"


def contestant(name: str) -> Contestant:
    """By the name that the contract has for it."""
    engine, _, version = name.rpartition(" ")
    programs = {"restic": restic_programs, "borg": borg_programs}.get(engine)
    program = programs()[version] if programs else Path("/usr/bin", engine)
    assert name in CONTESTANTS
    return Contestant(engine, version, program)


class Heard:
    """All that a room said to one request."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.result = messages[-1] if messages and messages[-1].get("event") == "result" else {}

    def all(self, event: str) -> list[Message]:
        return [m for m in self.messages if m.get("event") == event]

    @property
    def failure(self) -> str:
        return str(self.result.get("failure") or "")

    @property
    def ok(self) -> bool:
        return self.result.get("exit_code") == 0 and not self.failure

    @property
    def unread(self) -> dict[str, str]:
        """What was not read, by its name alone, and why."""
        found = self.all("unreadable")
        return {str(m["path"]).rpartition("/")[2]: str(m["cause"]) for m in found}

    def verdict(self, job: Job) -> str:
        """What the completeness gate makes of a backup."""
        heard = run_heard.Heard(
            job, Room("reader", RoomKind.READER, Grant("", 0, 0)), lambda _: None
        )
        for message in self.messages:
            heard.take(dict(message))
        return verdict.backup(job, heard, self.result, None, dry_run=False).outcome

    def __repr__(self) -> str:
        told = [m for m in self.messages if m.get("event") not in ("proof", "alive", "source")]
        return "\n".join(map(str, told[-12:])) or "nothing was said"


class Asked:
    """A room that is at work. Leaving it ends it."""

    def __init__(self, plan: Plan, room: str, request: Message, target: Path | None = None) -> None:
        chosen = plan.room(room)
        held = None
        if target:
            grant = chosen.grant._replace(write=(*chosen.grant.write, str(target)))
            chosen = chosen._replace(grant=grant)
            held = Target(str(target), os.open(target, os.O_PATH | os.O_DIRECTORY))
        near, far = socket.socketpair()
        self.channel = Channel(near)
        near.settimeout(SECONDS)
        with far:
            self.started = start(plan, chosen, far, 0, held)
        if held:
            os.close(held.fd)
        self.channel.send(request)

    def __enter__(self) -> "Asked":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.channel.close()
        for child in self.started.children():
            with contextlib.suppress(TimeoutError):
                child.wait(20)
            child.kill()

    def hear_out(self) -> Heard:
        return Heard(list(self.channel))

    def engine(self) -> int:
        """The process that is the engine, or is about to be. Raises TimeoutError."""
        found: list[int] = []

        def there() -> bool:
            for pid in members_of(self.started.room.pid):
                with contextlib.suppress(OSError):
                    program = os.readlink(f"/proc/{pid}/exe").rpartition("/")[2]
                    if program.startswith("python"):  # that of the room, and no wall around it
                        found[:] = members_of(pid)[:1]
                        return bool(found)
            return False

        until(there)
        return found[0]

    def reading(self, file: Path) -> int:
        """Wait until the engine has read some of a file; it stands still then."""
        engine, wanted = self.engine(), os.stat(file)
        until(lambda: _has_read(engine, wanted))
        os.kill(engine, signal.SIGSTOP)
        return engine


def _has_read(pid: int, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), wanted):
                    return int(Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split()[1]) > 0
    return False


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something to become true. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.004)


class Stand:
    """The installation of one engine."""

    def __init__(self, base: str, who: Contestant) -> None:
        self.who = who
        self.engine = ENGINES[who.engine]
        self.traits = self.engine.traits
        self.home = House(base)
        self.base = Path(base)
        password = f'password = {{ file = "{base}/etc/secrets/repo" }}'
        text = HEAD.format(engine=who.engine, program=who.program)
        for scene in SCENES:
            self.source(scene).mkdir()
            text += SCENE.format(
                scene=scene, engine=who.engine, base=base,
                password=password if self.traits.password else "",
            )  # fmt: skip
            if scene == "history":
                text += "retention = { keep-last = 2, trust-clock = true }\n"
            if scene == "stream" and who.engine != "rdiff-backup":
                text += f'dumps = ["rows"]\n{DUMP}'
        Path(base, "etc/capkeep.toml").write_text(text)
        self.plan = self._with_its_own_python(self.home.compiled())
        self.home.apply(self.plan)
        make_run_directories(self.plan)
        template = self._template()
        for scene in SCENES:
            self.give(shutil.copytree(template, self.repository(scene), dirs_exist_ok=True))

    def _template(self) -> Path:
        """An empty repository whose key is quick to open."""
        place = self.base / "template"
        if self.who.engine == "restic":
            place.mkdir()
            quick_key(self.who.program, place, PASSWORD)
            return place
        made = self.ask(RoomKind.KEEPER, "tree", "init")
        assert made.ok, made
        return shutil.copytree(self.repository("tree"), place)

    def _with_its_own_python(self, plan: Plan) -> Plan:
        """A borg of another release has its release's Python beside it, which rooms must see."""
        folder = str(self.who.program.parent)
        if self.who.engine != "borg" or folder.startswith("/usr/"):
            return plan
        rooms = (
            r._replace(grant=r.grant._replace(read=(*r.grant.read, folder)))
            if r.repository and r.grant.view is View.TOOLS else r
            for r in plan.rooms
        )  # fmt: skip
        return plan._replace(rooms=tuple(rooms))

    def give(self, folder: Path) -> None:
        owner = UIDS[RoomKind.VAULT]
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, owner, follow_symlinks=False)

    def source(self, scene: str) -> Path:
        return self.base / "source" / scene

    def repository(self, scene: str) -> Path:
        return self.base / "repositories" / scene

    def room(self, kind: RoomKind, scene: str) -> str:
        found = (r for r in self.plan.rooms if r.kind is kind and r.repository == scene)
        return next(r.name for r in found if r.job in ("", scene))

    def asked(
        self,
        kind: RoomKind,
        scene: str,
        action: str,
        options: Message | None = None,
        *,
        plan: Plan | None = None,
        target: Path | None = None,
    ) -> Asked:
        request: Message = {"action": action, "options": options or {}}
        return Asked(plan or self.plan, self.room(kind, scene), request, target)

    def ask(
        self, kind: RoomKind, scene: str, action: str, plan: Plan | None = None, **options: object
    ) -> Heard:
        with self.asked(kind, scene, action, options, plan=plan) as room:
            return room.hear_out()

    def back_up(self, scene: str, plan: Plan | None = None, **options: object) -> Heard:
        return self.ask(RoomKind.READER, scene, "backup", plan, **options)

    def snapshots(self, scene: str) -> list[dict[str, object]]:
        found = self.ask(RoomKind.KEEPER, scene, "snapshots")
        assert found.ok, found
        return [s for m in found.all("snapshot") if isinstance(s := m["snapshot"], dict)]

    def restore(self, scene: str, *paths: Path, snapshot: str = "latest") -> tuple[Heard, Path]:
        """What was said, and where the source is then."""
        target = Path(tempfile.mkdtemp(prefix="back-", dir=self.base))
        options: Message = {
            "snapshot": snapshot,
            "paths": list(map(str, paths)),
            "target": str(target),
        }
        with self.asked(RoomKind.RESTORER, scene, "restore", options, target=target) as room:
            return room.hear_out(), target / self.source(scene).relative_to("/")

    def without_capability(self, scene: str) -> Plan:
        """A plan whose reader is anybody: what it may not read stays unread."""
        name = self.room(RoomKind.READER, scene)
        rooms = tuple(
            r._replace(grant=r.grant._replace(capabilities=())) if r.name == name else r
            for r in self.plan.rooms
        )
        return self.with_job(scene, canary="")._replace(rooms=rooms)

    def with_job(self, scene: str, **changed: object) -> Plan:
        """A plan in which the scene's job is another."""
        jobs = (j._replace(**changed) if j.name == scene else j for j in self.plan.jobs)  # type: ignore[arg-type]
        return self.plan._replace(jobs=tuple(jobs))

    def with_password(self, text: str) -> Plan:
        """A plan in which every password is another."""
        file = self.base / "etc/secrets/other"
        file.write_text(text)
        file.chmod(0o600)

        def other(secret: object) -> object:
            return secret._replace(source=secret.source._replace(file=str(file)))  # type: ignore[attr-defined]

        rooms = (r._replace(secrets=tuple(map(other, r.secrets))) for r in self.plan.rooms)  # type: ignore[arg-type]
        return self.plan._replace(rooms=tuple(rooms))

    def with_repository(self, scene: str, place: Path) -> Plan:
        """A plan in which the scene's repository is another."""
        here = str(self.repository(scene))
        text = {here: str(place)}
        rooms = (
            r._replace(grant=r.grant._replace(write=tuple(text.get(w, w) for w in r.grant.write)))
            for r in self.plan.rooms
        )
        repositories = (
            r._replace(location=str(place)) if r.name == scene else r
            for r in self.plan.repositories
        )
        return self.plan._replace(rooms=tuple(rooms), repositories=tuple(repositories))


@contextlib.contextmanager
def stand(name: str) -> Iterator[Stand]:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    try:
        yield Stand(base, contestant(name))
    finally:
        shutil.rmtree(base)
