"""Pulling from a host without systemd and without a root parent: the answerer starts the reader itself."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capkeep.host.probe import probe
from capkeep.kernel import landlock
from capkeep.kernel.launcher import ATTRIBUTE
from capkeep.kernel.process import python
from capkeep.rooms.protocol import Message
from tests.rooms.house import INTERPRETER, House, house, wait_for
from tests.rooms.launched import USER, LaunchedTarget, only_root_s
from tests.rooms.pullkit import as_server, ended
from tests.rooms.test_vault_engines import Sshd, running

pytestmark = pytest.mark.skipif(
    not landlock.abi(), reason="without Landlock no launcher's reader begins"
)


@pytest.fixture(scope="module")
def pulled() -> Iterator[tuple[House, LaunchedTarget]]:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    try:
        target = LaunchedTarget(base)
        only_root_s(Path(base, "source/secret"), "for root alone\n")
        with house() as server:
            (Path(server.base) / "sshd").mkdir()
            sshd = Sshd(Path(server.base, "sshd"))
            server.plan = as_server(server, sshd, f"{base}/source")
            server.apply(server.plan)
            enroll(sshd, target)
            argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(sshd.base / "sshd_config")]
            with running(argv, sshd.port), server.doors():
                said = server.ask({"action": "init"})
                assert said[-1]["exit_code"] == 0, said
                yield server, target
    finally:
        shutil.rmtree(base)


def enroll(sshd: Sshd, target: LaunchedTarget) -> None:
    """The login's one command; root's sshd here lets it be another user first, as sshd itself does."""
    ids = ("--reuid", str(USER.pw_uid), "--regid", str(USER.pw_gid), "--clear-groups")
    answerer = python(target.package, "capkeep.rooms.answerer")
    words = ("/usr/bin/setpriv", *ids, "--", INTERPRETER, *answerer, str(target.launcher))
    quoted = shlex.join(words).replace('"', '\\"')
    key = (sshd.base / "id.pub").read_text()
    (sshd.base / "authorized").write_text(f'restrict,command="{quoted}" {key}')


def run(server: House) -> tuple[Message, list[Message]]:
    said = server.ask({"action": "run"})
    return ended(said), [m for m in said if m.get("event") == "proof"]


def test_root_s_files_come_by_a_login_that_is_nobody(pulled: tuple[House, LaunchedTarget]) -> None:
    server, _ = pulled
    end, proofs = run(server)
    assert end["outcome"] == "complete", end
    totals = end["totals"]
    assert isinstance(totals, dict)
    assert totals["files_new"] == 3  # the canary is one
    engine = next(m for m in proofs if m["process"] == "target engine")
    facts = engine["facts"]
    assert isinstance(facts, dict)
    assert facts["effective"] == ["CAP_DAC_READ_SEARCH"]
    assert set(facts["uids"]) == {USER.pw_uid}


@contextmanager
def logged_in(server: House, target: LaunchedTarget) -> Iterator[None]:
    """Another login with the server's key, which asks for nothing while its reader waits for that."""
    base = Path(server.base, "sshd")
    port = (base / "sshd_config").read_text().split()[1]
    argv = ["/usr/bin/ssh", "-F", "none", "-p", port, "-i", str(base / "id"), "-T",
            "-o", f"UserKnownHostsFile={base}/known_hosts", "-o", "BatchMode=yes", "127.0.0.1"]  # fmt: skip
    first = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: is_locked(target))
        yield
    finally:
        assert first.stdin is not None
        first.stdin.close()
        first.wait(60)
        wait_for(lambda: not is_locked(target))


def is_locked(target: LaunchedTarget) -> bool:
    """Without a try, which a reader that begins just now would take for another one."""
    inode = os.stat(f"{target.places.cache}/reader-job-repo").st_ino
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(words[1] == "FLOCK" and words[5].endswith(f":{inode}") for words in held)


def test_of_two_logins_at_once_one_is_turned_away_as_at_a_door(
    pulled: tuple[House, LaunchedTarget],
) -> None:
    server, target = pulled
    plan = server.plan
    jobs = (j._replace(resources=j.resources._replace(lock_wait_seconds=0)) for j in plan.jobs)
    server.apply(plan._replace(jobs=tuple(jobs)))
    try:
        with logged_in(server, target):
            end, _ = run(server)
            assert (end["failure"], end["text"]) == ("locked", "reader-job-repo is busy")
            in_use = probe(target.plan, {})
            assert (in_use.busy, in_use.findings) == (("reader-job-repo",), ())
        wait_for(lambda: run(server)[0]["outcome"] == "complete")
    finally:
        server.apply(plan)


def test_the_server_hears_that_the_launcher_has_lost_its_mark(
    pulled: tuple[House, LaunchedTarget],
) -> None:
    server, target = pulled
    os.removexattr(target.launcher, ATTRIBUTE)
    try:
        end, proofs = run(server)
        assert end["outcome"] == "failed"
        assert "has lost CAP_DAC_READ_SEARCH" in str(end["text"]), end
        assert not [m for m in proofs if "target" in str(m["process"])]
    finally:
        target.apply(target.plan)


def test_a_launcher_that_its_login_may_not_run_is_told(
    pulled: tuple[House, LaunchedTarget],
) -> None:
    server, target = pulled
    os.chown(target.launcher, 0, 0)
    try:
        assert "launcher cannot be run: Permission denied" in str(run(server)[0]["text"])
    finally:
        target.apply(target.plan)
