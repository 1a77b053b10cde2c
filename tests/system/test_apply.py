"""`apply`, `plan` and `remove` as root uses them: with users of its own, and nothing left behind."""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import capkeep
from capkeep.errors import EXIT_CODES, Failure
from tests.engines import restic_programs
from tests.rooms.house import wait_for
from tests.system.conftest import SECONDS, Said

PREFIX = f"cke2e{os.getpid()}"
MAKING_THE_PLAN = "        plan = hide_by_real_names("
CONFIG = """
[host]
user-prefix = "{prefix}"
group = "{prefix}"
[repositories.repo]
engine = "restic"
location = "{base}/repo"
password = {{ file = "{base}/etc/secrets/repo" }}
[engines.restic]
program = "{restic}"
[jobs.job]
repositories = ["repo"]
include = ["{base}/source"]
"""


class Host:
    """Where `capkeep --prefix` is run."""

    def __init__(self, base: str) -> None:
        self.base = Path(base)
        self.base.chmod(0o755)
        self.package = self.base / "lib" / "capkeep"
        shutil.copytree(Path(capkeep.__file__).parent, self.package,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        self.restic = self.base / "restic"
        shutil.copy(restic_programs()["0.14"], self.restic)
        (self.base / "source").mkdir()
        (self.base / "source" / "file").write_text("kept\n")
        (self.base / "etc" / "secrets").mkdir(parents=True)
        (self.base / "etc" / "secrets").chmod(0o700)
        (self.base / "etc" / "secrets" / "repo").write_text("a password\n")
        (self.base / "etc" / "secrets" / "repo").chmod(0o600)
        self.config = self.base / "etc" / "capkeep.toml"
        self.config.write_text(CONFIG.format(prefix=PREFIX, base=base, restic=self.restic))

    def __call__(self, *words: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "capkeep", "--prefix", str(self.base), *words],
            env={"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": str(self.package.parent),
                 "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/", capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def applied_host() -> Iterator[Host]:
    """A host on which everything has been applied, and is taken back at the end."""
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    try:
        host = Host(base)
        made = host("apply")
        assert made.code == 0, made
        try:
            yield host
        finally:
            _remove(host)
    finally:
        shutil.rmtree(base)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with applied_host() as host:
        yield host


def ours() -> list[str]:
    return [u.pw_name for u in pwd.getpwall() if u.pw_name.startswith(PREFIX)]


@contextlib.contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


def test_the_users_of_the_rooms_can_log_in_nowhere(host: Host) -> None:
    assert PREFIX in ours()
    assert f"{PREFIX}-reader" in ours()
    for name in ours():
        assert pwd.getpwnam(name).pw_shell.endswith(("nologin", "false"))


def test_a_second_apply_changes_nothing(host: Host) -> None:
    for verb in ("plan", "apply", "plan"):
        done = host(verb)
        assert (done.code, done.out) == (0, "nothing to change\n"), done


def test_nobody_else_can_change_the_plan_or_read_secrets(host: Host) -> None:
    runner = pwd.getpwnam(PREFIX)
    wanted = {
        "etc/secrets": (0, 0, 0o700),
        "etc/canary": (0, 0, 0o600),
        "state": (0, 0, 0o755),
        "state/plan.json": (0, runner.pw_gid, 0o640),
        "state/records": (runner.pw_uid, runner.pw_gid, 0o750),
        "run": (0, 0, 0o755),
        "run/stage": (0, 0, 0o700),
    }
    for name, (uid, gid, bits) in wanted.items():
        found = (host.base / name).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (uid, gid, bits), name
    vault = pwd.getpwnam(f"{PREFIX}-vault")
    repository = (host.base / "repo").stat()
    assert (repository.st_uid, stat.S_IMODE(repository.st_mode)) == (vault.pw_uid, 0o700)


@pytest.mark.parametrize("verb", ["plan", "apply"])
@pytest.mark.parametrize("which", ["engine", "package"])
def test_what_others_can_change_is_never_executed(host: Host, verb: str, which: str) -> None:
    path = host.restic if which == "engine" else host.package / "rooms" / "reader.py"
    with mode(path, 0o777):
        refused = host(verb)
    assert refused.code == 4, refused
    assert str(path) in refused.err


@pytest.mark.parametrize("verb", ["plan", "apply"])
def test_somebody_elses_repository_is_not_taken_over(host: Host, verb: str) -> None:
    repository = host.base / "repo"
    owner = repository.stat().st_uid
    (repository / "config").write_text("hers")
    os.chown(repository, 70000, 70000)
    try:
        refused = host(verb)
        assert refused.code == 4, refused
        assert str(repository) in refused.err
        assert repository.stat().st_uid == 70000
    finally:
        (repository / "config").unlink()
        os.chown(repository, owner, owner)


@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_two_do_not_change_the_host_at_once(host: Host, verb: str) -> None:
    with open(host.base / "state/apply.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = host(verb)
    assert refused.code == 4, refused
    assert "under way" in refused.err


def test_root_is_not_led_elsewhere_on_the_way_to_a_repository(host: Host) -> None:
    """Who owns a directory above a repository cannot have root give away another one."""
    hers, precious = host.base / "hers", host.base / "precious"
    (precious / "repo").mkdir(parents=True)
    hers.mkdir()
    os.chown(hers, 70000, 70000)
    (hers / "way").symlink_to(precious)
    before = host.config.read_text()
    host.config.write_text(before.replace(f"{host.base}/repo", f"{hers}/way/repo"))
    try:
        refused = host("apply")
        assert refused.code == 5, refused
        assert "symbolic link" in refused.err
        assert (precious / "repo").stat().st_uid == 0
    finally:
        host.config.write_text(before)
        assert host("apply").code == 0


def test_a_link_of_roots_on_the_way_to_everything() -> None:
    """As where /var is a link to another disk."""
    real = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    os.chmod(real, 0o755)
    os.symlink(real, f"{real}-link")
    os.mkdir(f"{real}/below")
    try:
        host = Host(f"{real}-link/below")
        host.config.write_text(host.config.read_text().replace(PREFIX, f"{PREFIX}c"))
        for verb in (["apply"], ["init"], ["run"], ["restore", "latest", "--to", f"{real}/back"]):
            done = host(*verb)
            assert done.code == 0, done
        assert _remove(host).code == 0
    finally:
        os.unlink(f"{real}-link")
        shutil.rmtree(real)


@contextlib.contextmanager
def fresh_host() -> Iterator[tuple[Host, str]]:
    """A host on which nothing has been applied, and the prefix of its users."""
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    other = f"{PREFIX}b"
    try:
        host = Host(base)
        host.config.write_text(host.config.read_text().replace(PREFIX, other))
        yield host, other
    finally:
        for name in [n for n in ours() if n.startswith(other)]:
            subprocess.run(["/usr/sbin/userdel", name], check=False, timeout=30)
        shutil.rmtree(base)


def everything(base: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Every file and directory: owner, group, mode and content."""
    found = {}
    for path in sorted(base.rglob("*")):
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(base))] = (state.st_uid, state.st_gid, state.st_mode, content)
    return found


def test_an_apply_that_fails_leaves_a_bare_host_as_it_was() -> None:
    with fresh_host() as (host, other):
        (host.base / "repo").mkdir()
        (host.base / "repo" / "config").write_text("hers")
        os.chown(host.base / "repo", 70000, 70000)
        before = everything(host.base)
        failed = host("apply")
        assert failed.code == 4, failed
        assert "holds files of uid 70000" in failed.err
        assert "what had been made was taken back" in failed.err
        assert everything(host.base) == before
        assert not [name for name in ours() if name.startswith(other)]


def test_a_repository_of_another_machine_is_handed_over_if_asked_for() -> None:
    with fresh_host() as (host, other):
        repository = host.base / "repo"
        (repository / "data").mkdir(parents=True)
        (repository / "data/pack").write_text("hers")
        (repository / "link").symlink_to("/etc/hostname")
        for path in (repository, *repository.rglob("*")):
            os.lchown(path, 70000, 70000)
        before = os.stat("/etc/hostname")
        done = host("apply", "--hand-over")
        assert done.code == 0, done
        vault = pwd.getpwnam(f"{other}-vault").pw_uid
        assert {p.lstat().st_uid for p in (repository, *repository.rglob("*"))} == {vault}
        assert os.stat("/etc/hostname") == before, "no link was followed"
        assert host("apply").code == 0


def test_an_apply_that_is_ended_leaves_a_bare_host_as_it_was() -> None:
    with fresh_host() as (host, other):
        before = everything(host.base)
        program = host.package / "host" / "compile.py"
        text = program.read_text()
        assert text.count(MAKING_THE_PLAN) == 1
        program.write_text(text.replace(
            MAKING_THE_PLAN, "        os.kill(os.getpid(), 15)\n" + MAKING_THE_PLAN
        ))  # fmt: skip
        assert host("apply").code == EXIT_CODES[Failure.STOPPED]
        program.write_text(text)
        assert everything(host.base) == before
        assert not [name for name in ours() if name.startswith(other)]


def test_an_apply_that_fails_at_its_end_puts_back_the_plan_before() -> None:
    with fresh_host() as (host, _):
        assert host("apply").code == 0
        before = everything(host.base)
        host.config.write_text(host.config.read_text() + 'exclude = ["*.tmp"]\n')
        before["etc/capkeep.toml"] = everything(host.base)["etc/capkeep.toml"]
        (host.base / "etc" / "canary").unlink()
        (host.base / "etc" / "canary").mkdir()  # so the last step fails
        failed = host("apply")
        assert failed.code != 0, failed
        (host.base / "etc" / "canary").rmdir()
        after = everything(host.base)
        assert after == {k: v for k, v in before.items() if k != "etc/canary"}
        assert host("apply").code == 0
        assert _remove(host).code == 0


def test_an_apply_that_dies_does_not_forget_the_users_it_made() -> None:
    with fresh_host() as (host, other):
        program = host.package / "host" / "compile.py"
        text = program.read_text()
        assert text.count(MAKING_THE_PLAN) == 1
        killed = text.replace(
            MAKING_THE_PLAN, "        os.kill(os.getpid(), 9)\n" + MAKING_THE_PLAN
        )
        program.write_text(killed)
        assert host("apply").code == -9  # after the users, before the plan
        assert f"{other}-vault" in ours()
        program.write_text(text)
        assert host("apply").code == 0
        assert _remove(host).code == 0
        assert not [name for name in ours() if name.startswith(other)]


def test_what_would_change_is_shown_line_by_line(host: Host) -> None:
    text = host.config.read_text()
    host.config.write_text(text + 'exclude = ["*.tmp"]\n')
    try:
        shown = host("plan")
        assert shown.out.startswith(f"would make plan {host.base}/state/plan.json\n"), shown
        assert f"\n--- {host.base}/state/plan.json\n" in shown.out
        assert '\n+    "*.tmp"\n' in shown.out
        assert json.loads(host("--json", "plan").out)["differences"][0] in shown.out
        assert shown.out == host("apply", "--dry-run").out
    finally:
        host.config.write_text(text)
    assert host("plan").out == "nothing to change\n"


def test_root_runs_without_doors_being_open_and_what_it_needs_goes_again(host: Host) -> None:
    made = host("init")
    assert made.code == 0, made
    done = host("run")
    assert done.code == 0, done


def test_remove_leaves_the_repository_and_the_configuration(host: Host) -> None:
    host("init")
    before = sorted(p.name for p in (host.base / "repo").iterdir())
    try:
        removed = _remove(host)
        assert removed.code == 0, removed
        assert ours() == []
        assert sorted(p.name for p in (host.base / "repo").iterdir()) == before
        assert host.config.exists()
        assert (host.base / "etc/secrets/repo").exists()
        for name in ("run", "cache", "state/plan.json", "state/vault", "etc/canary"):
            assert not (host.base / name).exists(), name
    finally:
        # A removed user's number may be another's by now: apply says what must be handed over.
        shutil.rmtree(host.base / "repo")
        assert host("apply").code == 0


def _remove(host: Host) -> Said:
    """Remove, once the doors that a run has opened for a while are closed again."""
    answers: list[Said] = []

    def removed() -> bool:
        answers.append(host("remove"))
        return answers[-1].code == 0

    wait_for(removed, 30)
    return answers[-1]
