"""One installation for each engine, with its doors open, for all tests of the whole product."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import restic_programs
from tests.rooms.house import GROUP, MEMBER, House, house

SECONDS = 120


class Product:
    """capkeep as people use it: the command line, as root or as a member of the group."""

    def __init__(self, home: House) -> None:
        self.home = home
        self.source = Path(home.base, "source")
        self.repository = Path(home.base, "repositories", "repo")

    def __call__(self, *words: str, uid: int = MEMBER, group: int = GROUP) -> "Said":
        """Run a command as an ordinary user; uid 0 for root."""
        done = subprocess.run(
            self.home.command(*words),
            user=uid, group=uid, extra_groups=[group] if uid else [], cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin"}, capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def root(self, *words: str) -> "Said":
        return self(*words, uid=0)

    def configure(self, old: str, new: str) -> None:
        """Change the configuration and apply it; the doors follow."""
        path = Path(self.home.base, "etc/capkeep.toml")
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        self.home.apply(self.home.compiled())

    def newest(self) -> dict[str, object]:
        found = json.loads(self("snapshots", "--json").out)
        newest = found[0]["snapshots"][-1]
        assert isinstance(newest, dict)
        return newest


class Said:
    """What a command answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


@pytest.fixture(scope="module", params=["0.14", "0.18", "0.19"])
def any_engine(request: pytest.FixtureRequest) -> Iterator[Product]:
    with house() as home, home.doors():
        product = Product(home)
        programs = restic_programs()
        if request.param != "0.14":
            product.configure(str(programs["0.14"]), str(programs[request.param]))
        made = product("init")
        assert made.code == 0, made
        yield product


@pytest.fixture
def product() -> Iterator[Product]:
    """A fresh installation with a repository."""
    with house() as home, home.doors():
        product = Product(home)
        made = product("init")
        assert made.code == 0, made
        yield product
