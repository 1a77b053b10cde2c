"""`--user`: a normal user's own files, and root has no part in it."""

import contextlib
import json
import os
import shutil
import sqlite3
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
        if verb not in ("apply", "audit"):
            return python(self.package, "capkeep.__main__")
        # Who reads the configuration needs a library: that of the Python that runs the tests.
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
        with mounted_out_of_reach(Path(base, "closed")):
            yield user
            wait_for(lambda: not processes(), 30)
    finally:
        shutil.rmtree(base)


@contextlib.contextmanager
def mounted_out_of_reach(closed: Path) -> Iterator[None]:
    """Others' mounts, behind a directory that the user may not enter, as a container engine's are."""
    mount = closed / "mount"
    mount.mkdir(parents=True)
    closed.chmod(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "others", mount], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True, timeout=10)


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


def warnings(said: Said) -> list[str]:
    """What a run warned of, but for what some hosts lack."""
    told = [str(m["text"]) for m in lines(said) if m["event"] == "warning"]
    return [text for text in told if "Landlock" not in text]


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
        told = warnings(done)
        assert len(told) == 1
        assert str(hers) in told[0]
    finally:
        hers.unlink()
    done = user("run", "--json")
    assert warnings(done) == []


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


def test_dumps_and_hooks_of_one_s_own(user: User) -> None:
    path = user.documents / "app.db"
    config = user.home / ".config/capkeep"
    before = (config / "capkeep.toml").read_text()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (n int)")
    os.chown(path, UID, UID)
    (config / "conf.d").mkdir()
    note = f"echo $CAPKEEP_HOOK >{user.documents}/noted; ! cat {config}/secrets/repo"
    (config / "conf.d/dumps.toml").write_text(
        f'[dumps.app]\nkind = "sqlite"\npaths = ["{path}"]\n'
        '[dumps.who]\nkind = "command"\ncommand = ["/usr/bin/id", "-u"]\nstream = true\n'
        f'[hooks.note]\ncommand = ["/bin/sh", "-c", "{note}"]\nwrite = ["{user.documents}"]\n'
    )
    for made in (config / "conf.d", config / "conf.d/dumps.toml"):
        os.chown(made, UID, UID)
    (config / "capkeep.toml").write_text(
        before.replace("[jobs.own]", '[jobs.own]\ndumps = ["app", "who"]\nafter = ["note"]')
    )
    try:
        assert user("apply").code == 0
        done = user("run", "--json")
        steps = [json.loads(line) for line in done.out.splitlines()]
        ended = {m["kind"]: m["outcome"] for m in steps if m["event"] == "step-end"}
        assert ended["dump"] == ended["stream"] == ended["after"] == "complete", done
        assert (user.documents / "noted").read_text() == "after\n"
        copies = list(user.home.glob(".local/state/capkeep/dumps/app/last/*.db"))
        assert len(copies) == 1
    finally:
        (config / "capkeep.toml").write_text(before)
        shutil.rmtree(config / "conf.d")
        assert user("apply").code == 0


def test_ones_own_schedule_needs_no_root_either(user: User) -> None:
    config = user.home / ".config" / "capkeep" / "capkeep.toml"
    written = config.read_text()
    config.write_text(written.replace("[jobs.own]", '[jobs.own]\nschedule = ["*:*:0/5"]'))
    try:
        applied = user("apply")
        assert applied.code == 0, applied
        before = len(json.loads(user("history", "--json").out))
        scheduler = subprocess.Popen(
            [INTERPRETER, *python(user.package, "capkeep.__main__"), "--user", "schedule"],
            user=UID, group=UID, extra_groups=[], cwd="/",
            env={"PATH": "/usr/bin", "HOME": str(user.home)}, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            wait_for(lambda: len(json.loads(user("history", "--json").out)) > before + 1, 40)
        finally:
            scheduler.terminate()
            out, _ = scheduler.communicate(timeout=90)
        assert scheduler.returncode == 0
        assert b"schedule: own backup: next at" in out
    finally:
        config.write_text(written)
        assert user("apply").code == 0
    assert json.loads(user("history", "--json").out)[1]["outcome"] == "complete"


def test_one_s_own_backups_are_drilled(user: User) -> None:
    """The letter's content, mode and time are proven; that it is one's own, too."""
    config = user.home / ".config/capkeep/capkeep.toml"
    before = config.read_text()
    config.write_text(before + "[jobs.own.drill]\ndumps = false\n")
    try:
        assert user("apply").code == 0
        assert user("run").code == 0
        done = user("drill", "--all", "--json")
        assert done.code == 0, done
        (facts,) = [m["facts"] for m in lines(done) if m["event"] == "part"]
        assert isinstance(facts, dict)
        assert facts["differing"] == 0
        assert facts["live"]["same"] >= 2, facts
        assert "no ids of its own to give" in "".join(warnings(done))
    finally:
        config.write_text(before)
        assert user("apply").code == 0


def test_snapshots_are_copied_without_root_too(user: User) -> None:
    config = user.home / ".config" / "capkeep" / "capkeep.toml"
    text = config.read_text()
    first = text.split("[engines.restic]")[0]
    second = first.replace("repositories.repo]", "repositories.second]").replace(
        '/repo"\np', '/second"\np'
    )
    config.write_text(second + text + '[jobs.own.copies]\ninto = ["second"]\n')
    for verb in ("apply", "init"):
        done = user(verb)
        assert done.code == 0, done
    told = lines(user("run", "--json"))
    copied = next(m for m in told if m["event"] == "step-end" and m["kind"] == "copy")
    assert copied["outcome"] == "complete", copied
    assert not str(copied["text"]).startswith("0 snapshots")
    assert all(m["weaker"] == [] for m in told if m["event"] == "proof")
