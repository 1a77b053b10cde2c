"""`--user`: a normal user's own files, and root has no part in it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import capkeep
from capkeep.kernel.process import python
from tests.engines import restic_programs
from tests.rooms.house import INTERPRETER, wait_for
from tests.system.conftest import SECONDS, Said

UID = 61231
CONFIG = """
[repositories.repo]
engine = "restic"
location = "{home}/repo"
password = {{ file = "{home}/.config/capkeep/secrets/repo" }}
[engines.restic]
program = "{restic}"
[jobs.own]
repositories = ["repo"]
include = ["{home}/documents", "{home}/.config"]
"""


class User:
    """Somebody with a home and no right on this machine."""

    def __init__(self, home: str, package: str) -> None:
        self.home = Path(home)
        self.package = package
        self.documents = self.home / "documents"
        self.documents.mkdir()
        (self.documents / "letter").write_text("dear all\n")
        config = self.home / ".config" / "capkeep"
        (config / "secrets").mkdir(parents=True, mode=0o700)
        (config / "secrets" / "repo").write_text("a password\n")
        (config / "secrets" / "repo").chmod(0o600)
        restic = restic_programs()["0.14"]
        (config / "capkeep.toml").write_text(CONFIG.format(home=home, restic=restic))
        for base, folders, files in os.walk(home):
            for name in (".", *folders, *files):
                os.chown(Path(base, name), UID, UID)

    def __call__(self, *words: str) -> Said:
        done = subprocess.run(
            [INTERPRETER, *self._program(words[0]), "--user", *words],
            user=UID, group=UID, extra_groups=[], cwd="/",
            env={"PATH": "/usr/bin", "HOME": str(self.home)},
            capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def _program(self, verb: str) -> tuple[str, ...]:
        if verb != "apply":
            return python(self.package, "capkeep.__main__")
        # `apply` alone needs a library: that of the Python that runs the tests.
        import pydantic

        below = str(Path(pydantic.__file__).parents[1])
        code = (
            f"import sys; sys.path += [{self.package!r}, {below!r}];"
            " from capkeep.__main__ import main; sys.exit(main())"
        )
        return ("-I", "-S", "-c", code)


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    try:
        Path(base).chmod(0o755)
        shutil.copytree(Path(capkeep.__file__).parent, f"{base}/lib/capkeep",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        os.mkdir(f"{base}/home", 0o700)
        user = User(f"{base}/home", f"{base}/lib")
        for verb in ("apply", "init"):
            done = user(verb)
            assert done.code == 0, done
        yield user
        wait_for(lambda: not processes(), 30)
    finally:
        shutil.rmtree(base)


def processes() -> list[str]:
    """The numbers of the user's processes."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and entry.stat().st_uid == UID:
                found.append(entry.name)
        except OSError:
            continue  # it has just ended
    return found


def lines(said: Said) -> list[dict[str, object]]:
    return [json.loads(line) for line in said.out.splitlines()]


def test_ones_own_files_are_kept_and_come_back(user: User) -> None:
    done = user("run")
    assert done.code == 0, done
    back = user.home / "back"
    letter = user.documents / "letter"
    restored = user("restore", "latest", str(letter), "--to", str(back))
    assert restored.code == 0, restored
    assert Path(f"{back}{letter}").read_text() == "dear all\n"


def test_ones_secrets_are_not_in_the_snapshot(user: User) -> None:
    assert user("run").code == 0
    listed = user("ls", "latest").out
    config = f"{user.home}/.config/capkeep"
    assert f"{config}/capkeep.toml" in listed
    assert f"{config}/secrets" not in listed


def test_every_room_is_a_user_namespace_without_a_capability(user: User) -> None:
    proofs = [m for m in lines(user("run", "--json")) if m["event"] == "proof"]
    assert proofs
    for proof in proofs:
        facts = proof["facts"]
        assert isinstance(facts, dict)
        assert (facts["effective"], facts["bounding"], proof["weaker"]) == ([], [], [])
        assert set(facts["uids"]) == {UID}
    reader = next(m["facts"] for m in proofs if m["process"] == "room")
    assert isinstance(reader, dict)
    assert "user" in reader["separated"]


def test_an_owner_that_cannot_be_kept_is_told(user: User) -> None:
    hers = user.documents / "hers"
    hers.write_text("readable by all")
    os.chown(hers, 70000, 70000)
    try:
        done = user("run", "--json")
        assert done.code == 0, done
        told = [str(m["text"]) for m in lines(done) if m["event"] == "warning"]
        assert len(told) == 1
        assert str(hers) in told[0]
    finally:
        hers.unlink()
    done = user("run", "--json")
    assert [m for m in lines(done) if m["event"] == "warning"] == []


def test_what_the_user_may_not_read_makes_it_partial(user: User) -> None:
    closed = user.documents / "closed"
    closed.write_text("not for you")
    closed.chmod(0o600)
    os.chown(closed, 70000, 70000)
    try:
        done = user("run")
        assert done.code == 3, done
        assert str(closed) in done.out
    finally:
        closed.unlink()
