"""One laboratory for each restic: a place of its own, a cheap repository, and a way to run calls."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from capkeep.engines import ENGINES
from capkeep.engines.base import Call, Command, Event, LineReader, Snapshot
from capkeep.plan.model import Job
from tests.contract.differences import VERSIONS
from tests.contract.quick import quick_key
from tests.contract.scenes import Scenes
from tests.contract.stand import stand
from tests.engines import restic_programs

SECONDS = 60  # no single call takes longer
UID = 61999  # nobody's: without capabilities and without files

RESTIC = ENGINES["restic"]


class Done(NamedTuple):
    """A call that has ended."""

    code: int
    out: bytes
    err: bytes

    def lines(self) -> Iterator[tuple[str, bytes]]:
        for stream, data in (("stdout", self.out), ("stderr", self.err)):
            for line in data.split(b"\n"):
                yield stream, line

    def feed(self, reader: LineReader) -> list[Event]:
        return [event for stream, line in self.lines() for event in reader.feed(stream, line)]


class Lab:
    """Directories of one test, its repository, and one version of restic."""

    def __init__(self, version: str, program: Path, base: Path, template: Path) -> None:
        self.version = version
        self.base = base
        self.source = base / "source"
        self.repo = base / "repo"
        self.target = base / "target"
        for name in ("source", "target", "cache", "tmp"):
            (base / name).mkdir()
        shutil.copytree(template, self.repo)
        self.call = Call(
            str(program), str(self.repo), str(base / "cache"), str(base / "tmp"), "secret"
        )
        self.give(UID)

    def give(self, uid: int) -> None:
        """Let that user's engine work: repository, cache and scratch are its own."""
        for top in (self.repo, self.base / "cache", self.base / "tmp"):
            for path in (top, *top.rglob("*")):
                os.chown(path, uid, uid, follow_symlinks=False)

    def job(self, *include: Path | str, **more: object) -> Job:
        return Job("j", ("r",), tuple(map(str, include or (self.source,))))._replace(**more)  # type: ignore[arg-type]

    def start(self, command: Command, uid: int = UID) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command.argv, env=dict(command.env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            user=uid, group=uid, extra_groups=[],
        )  # fmt: skip

    def run(self, command: Command, uid: int = UID) -> Done:
        with self.start(command, uid) as process:
            return finish(process)

    def as_root(self, command: Command) -> Done:
        return self.run(command, 0)

    def backup(self, job: Job | None = None, uid: int = UID) -> Done:
        return self.run(RESTIC.backup(self.call, job or self.job()), uid)

    def snapshots(self) -> tuple[Snapshot, ...]:
        return RESTIC.parse_snapshots(self.run(RESTIC.snapshots(self.call)).out)


def finish(process: subprocess.Popen[bytes]) -> Done:
    """Wait, within limits; what does not end is killed, and the test fails."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Done(process.returncode, out, err)


def until(condition: Callable[[], bool], seconds: float = 20, pause: float = 0.0005) -> None:
    """Wait for something to become true. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(pause)


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Path]:
    """A place in memory that every user may walk into: restic syncs each file it writes."""
    place = Path(tempfile.mkdtemp(prefix="capkeep-contract-"))
    _mount(["-t", "tmpfs", "-o", "size=1g,mode=0755", "capkeep-contract", str(place)])
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=SECONDS)
        place.rmdir()


@pytest.fixture(scope="session", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def template(version: str, laboratory: Path) -> Path:
    """An empty repository whose key is quick to open."""
    place = laboratory / f"template-{version}"
    if not place.exists():  # of another file's tests
        quick_key(restic_programs()[version], place, "secret")
    return place


@pytest.fixture
def lab(version: str, laboratory: Path, template: Path) -> Iterator[Lab]:
    yield from _lab(version, laboratory, template)


@pytest.fixture
def disk_lab(version: str, template: Path) -> Iterator[Lab]:
    """On a disk: older kernels have no user attributes in memory."""
    yield from _lab(version, Path("/var/tmp"), template)


def _lab(version: str, place: Path, template: Path) -> Iterator[Lab]:
    base = Path(tempfile.mkdtemp(prefix=f"capkeep-contract-{version}-", dir=place))
    base.chmod(0o755)
    try:
        yield Lab(version, restic_programs()[version], base, template)
    finally:
        shutil.rmtree(base)


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Path]:
    """A filesystem of 6 MiB."""
    place = lab.base / "small"
    place.mkdir()
    _mount(["-t", "tmpfs", "-o", "size=6m,mode=0777", "capkeep-contract", str(place)])
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=SECONDS)


def _mount(words: Sequence[str]) -> None:
    subprocess.run(["mount", *words], check=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def scenes(engine: str) -> Iterator[Scenes]:
    """All that one engine is put through."""
    with stand(engine) as made:
        yield Scenes(made)
