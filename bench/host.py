"""What the measurements share: capkeep set up below a directory of its own, and medians.

Everything needs root, and runs from the tests' virtual environment (`make bench-NAME`).
"""

import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

USERS = "capkeep-bench"
BASE = Path("/var/cache/capkeep-tests")
CAPKEEP = Path(sys.executable).parent / "capkeep"
# 32 bytes in base64, as `openssl rand -base64 32` writes them: of these capkeep makes a quick key.
PASSWORD = "Mg6F0iSCTuFbG8mYOjlUvIGyZT0xIpnbxG1pZfQ6ku4="
SECONDS = 1800  # for one command
QUIET = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


def say(text: str) -> None:
    """What happens, for people; the result goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def run(argv: Sequence[str | Path], **environment: str) -> None:
    """Run a program to its end. Raises CalledProcessError with what it said."""
    done = subprocess.run(
        list(argv), env=QUIET | environment, capture_output=True, timeout=SECONDS, check=False
    )
    if done.returncode != 0:
        say((done.stdout[-2000:] + done.stderr[-2000:]).decode(errors="replace"))
        done.check_returncode()


def milliseconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def alternate(
    rounds: int, *actions: Callable[[], None], before: Callable[[], None] = lambda: None
) -> list[float]:
    """Median milliseconds of each action, measured in turn so that all see the same machine.

    `before` is done ahead of every call, outside the measurement.
    """
    taken: list[list[float]] = [[] for _ in actions]
    for number in range(rounds):
        order = range(len(actions)) if number % 2 == 0 else reversed(range(len(actions)))
        for index in order:
            before()
            os.sync()
            taken[index].append(milliseconds(actions[index]))
    return [statistics.median(times) for times in taken]


def fill(folder: Path, count: int, size: int, *, per_folder: int = 500) -> None:
    """Files of incompressible content, the same in every run."""
    source = random.Random(4711)
    for number in range(count):
        if number % per_folder == 0:
            current = folder / f"{number // per_folder:04}"
            current.mkdir(parents=True)
        with open(current / f"file-{number}", "wb") as file:
            file.writelines(
                source.randbytes(min(1 << 24, size - start)) for start in range(0, size, 1 << 24)
            )


class Installed:
    """A capkeep with one repository and one job, its doors open."""

    def __init__(
        self, place: Path, source: Path, program: Path, tables: str = "", engine: str = "restic"
    ) -> None:
        self.place = place
        self.source = source
        self.restic = program
        self.engine = engine
        self.tables = tables
        self.repository = place / "repository"
        self.doors: subprocess.Popen[bytes] | None = None

    def capkeep(self, *arguments: str) -> None:
        """One command, to its end."""
        run([CAPKEEP, "--prefix", self.place, *arguments])

    def by_hand(self, *arguments: str, repository: Path) -> None:
        """The engine as one would call it without capkeep: as root, on the repository itself."""
        cache = self.place / "cache-by-hand"
        run(
            [self.restic, "--repo", repository, "--cache-dir", cache, *arguments],
            RESTIC_PASSWORD=PASSWORD,
        )

    def twin(self, beside: Path, *, same_key: bool = False) -> None:
        """A copy of the repository for the engine by hand, with a key as the engine itself makes it.

        restic makes opening one as slow as half a second of its own measuring says, which differs by
        150 ms from time to time. With the `same_key` what is left is the cost of the rooms alone.
        """
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(self.repository, beside)
        if self.engine == "restic" and not same_key:
            with tempfile.NamedTemporaryFile("w") as file:
                file.write(PASSWORD)
                file.flush()
                self.by_hand("key", "passwd", f"--new-password-file={file.name}", repository=beside)

    def configure(self) -> None:
        """Write the configuration, apply it, open the doors."""
        secrets = self.place / "etc/secrets"
        secrets.mkdir(parents=True, mode=0o700)
        (secrets / "bench").touch(mode=0o600)
        (secrets / "bench").write_text(PASSWORD)
        password = f'password = {{ file = "{secrets}/bench" }}\n'
        (self.place / "etc/capkeep.toml").write_text(
            f'[host]\nuser-prefix = "{USERS}"\n'
            f'[engines.{self.engine}]\nprogram = "{self.restic}"\n'
            f'[repositories.bench]\nengine = "{self.engine}"\nlocation = "{self.repository}"\n'
            + ("" if self.engine == "rdiff-backup" else password)
            + f'[jobs.bench]\nrepositories = ["bench"]\ninclude = ["{self.source}"]\n'
            + self.tables
        )
        self.capkeep("apply")
        self.doors = subprocess.Popen(
            [CAPKEEP, "--prefix", self.place, "doors"], env=QUIET, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while not (self.place / "run/run.sock").exists():
            if time.monotonic() > deadline or self.doors.poll() is not None:
                raise TimeoutError("the doors do not open")
            time.sleep(0.05)

    def remove(self) -> None:
        """Close the doors and take everything back."""
        if self.doors is not None:
            self.doors.terminate()
            self.doors.wait(60)
        if (self.place / "state/plan.json").exists():
            self.capkeep("remove", "--delete-records")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that only root writes and everybody may pass through, removed at the end."""
    BASE.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=BASE))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def installed(
    place: Path, source: Path, program: Path, tables: str = "", engine: str = "restic"
) -> Iterator[Installed]:
    """A capkeep for the time of a measurement; `tables` are added to its configuration."""
    host = Installed(place, source, program, tables, engine)
    place.mkdir(mode=0o755)
    try:
        host.configure()
        yield host
    finally:
        host.remove()


def result(**numbers: float) -> None:
    """The measurement's one JSON object, on the last line."""
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}), flush=True)
