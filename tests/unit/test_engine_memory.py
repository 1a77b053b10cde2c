"""A new engine is one file and one line: with them it is configured, planned, and at work in rooms.

The rooms are those of every engine; only the port is another, which plays in memory what it is told.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from capkeep import engines
from capkeep.config.load import load
from capkeep.engines.base import Cause
from capkeep.errors import Failure, StepError
from capkeep.plan.compile import compile_plan
from capkeep.plan.model import Places, Plan, Walls, outline
from capkeep.rooms import keeper, reader, viewer
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.engine import RunningEngine
from capkeep.rooms.protocol import Message
from tests.unit.memory import Memory
from tests.unit.test_compile import SYSTEM

CONFIG = """
[repositories.repo]
engine = "memory"
location = "@/repository"
[jobs.job]
repositories = ["repo"]
include = ["@/source"]
"""
Action = Callable[[EngineRoom, Message], Message]


class Running:
    """A call that has been played already."""

    def __init__(self, lines: list[bytes], code: int) -> None:
        self._lines, self._code = lines, code
        self._end = b""

    def take_parts(self) -> None:
        self._end = b"\n"

    def run(
        self, on_line: Callable[[str, bytes], None], *, on_tick: Callable[[], None], deadline: float
    ) -> int:
        assert deadline > time.monotonic()
        on_tick()
        for line in self._lines:
            on_line("stdout", line + self._end)
        return self._code


class Room(EngineRoom):
    """A room of the plan without a process, a caller or a vault."""

    def __init__(self, plan: Plan, name: str, memory: Memory) -> None:
        self.brief = outline(plan, plan.room(name), Walls(()))
        self.wire = self.origin = None
        self.told: list[Message] = []
        self._handover = None
        self._awaited, self.standing, self.steady = False, "/", lambda: None
        self._memory = memory

    def tell(self, message: Message) -> None:
        self.told.append(message)

    @contextmanager
    def engine(
        self, argv: Sequence[str], env: dict[str, str], **_: object
    ) -> Iterator[RunningEngine]:
        yield cast("RunningEngine", Running(*self._memory.play(tuple(argv), env)))


class Scene:
    """A plan of one job, and the memory that its engine has."""

    def __init__(self, base: Path) -> None:
        self.source = f"{base}/source"
        self.memory = Memory()
        self.told: list[Message] = []
        for name in ("source", "etc", "cache"):
            (base / name).mkdir()
        (base / "source/there").write_text("")
        (base / "etc/capkeep.toml").write_text(CONFIG.replace("@", str(base)))
        config = load(f"{base}/etc", user_mode=True)
        places = Places(*(f"{base}/{n}" for n in ("etc", "state", "cache", "log", "run")))
        plan = compile_plan(config, SYSTEM._replace(places=places))
        for room in plan.rooms:
            for path in room.grant.write:
                Path(path).mkdir(parents=True, exist_ok=True)
        # Where programs are is looked up for the engines that were there when capkeep started.
        repositories = tuple(r._replace(program="/usr/bin/true") for r in plan.repositories)
        jobs = tuple(job._replace(canary="") for job in plan.jobs)
        self.plan = plan._replace(jobs=jobs, repositories=repositories)

    def ask(self, action: Action, room: str, **options: object) -> Message:
        visited = Room(self.plan, room, self.memory)
        self.told = visited.told
        return action(visited, {"options": options})

    def backup(self) -> Message:
        return self.ask(reader.backup, "reader-job-repo")

    def entries(self) -> set[str]:
        found = (str(m["path"]) for m in self.told if m["event"] == "entry")
        return {path.removeprefix(f"{self.source}/") for path in found}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setitem(engines.MODULES, "memory", "tests.unit.memory")  # the one line
    return Scene(tmp_path)


def test_an_engine_is_one_file_and_one_line(scene: Scene) -> None:
    with pytest.raises(StepError) as refused:
        scene.ask(keeper.check, "keeper-repo")
    assert refused.value.failure is Failure.NO_REPOSITORY
    assert scene.ask(keeper.init, "keeper-repo")["text"] == "the repository was made"
    assert scene.ask(keeper.init, "keeper-repo")["text"] == "the repository was there already"

    scene.memory.files = {f"{scene.source}/{n}": n.encode() for n in ("a", "b")}
    made = scene.backup()
    assert (made["exit_code"], made["failure"], made["engine"]) == (0, None, "memory 1.0.0")
    scene.memory.files[f"{scene.source}/c"] = b"rot"
    scene.memory.files[f"{scene.source}/a"] = Cause.DENIED
    partial = scene.backup()
    assert partial["exit_code"] == 3
    assert [m["cause"] for m in scene.told if m["event"] == "unreadable"] == ["denied"]

    scene.ask(keeper.snapshots, "keeper-repo")
    listed = [cast("Message", m["snapshot"]) for m in scene.told if m["event"] == "snapshot"]
    first, second = (str(s["id"]) for s in listed)
    assert (first, second) == (made["snapshot"], partial["snapshot"])
    assert [s["tags"] for s in listed] == [["capkeep:job"]] * 2

    scene.ask(viewer.ls, "viewer-repo", snapshot="latest", paths=[])
    assert scene.entries() == {"b", "c"}
    scene.ask(viewer.find, "viewer-repo", patterns=["a"])
    assert scene.entries() == {"a"}
    scene.ask(viewer.diff, "viewer-repo", first=first, second=second)
    assert scene.entries() == {"a", "c"}

    assert scene.ask(keeper.check, "keeper-repo")["failure"] is None
    with pytest.raises(StepError) as damaged:
        scene.ask(keeper.check, "keeper-repo", read_data="all")
    assert damaged.value.failure is Failure.DAMAGED
