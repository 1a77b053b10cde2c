"""borg on another machine: the vault logs in, and lets nobody remove who may only add."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from capkeep.engines.base import Command
from capkeep.engines.borg import ENGINE
from capkeep.plan.model import Access
from capkeep.rooms import remote as there
from capkeep.rooms.remote import SshLine, SshPlace
from capkeep.rooms.rest.ssh import Login
from capkeep.rooms.scripts import TOOLS
from capkeep.rooms.service import StoreError
from tests.engines import borg_programs
from tests.rooms import test_vault_borg as here
from tests.rooms.borgkit import Borg
from tests.rooms.house import wait_for
from tests.rooms.test_vault_engines import Sshd, running
from tests.rooms.test_vault_making import HOSTILE
from tests.rooms.vaultkit import Pairs, Vault, failures, free_port

pytestmark = pytest.mark.timeout(300)  # several programs start for each call of the engine

# What answers the greeting as borg 1.1 does, and one that is greeted by a shell's start-up files.
OLD = r"printf '\202\241i\000\241r\201\256server_version\224\001\001\022\377'; cat"
TALKATIVE = "echo 'Welcome to the machine.'; cat"


class Remote(Borg):
    """The same, with its repository behind a real sshd."""

    def __init__(self, base: Path, program: Path, sshd: Sshd, there: Path) -> None:
        super().__init__(base, program)
        self.sshd = sshd
        self.there = str(there)
        self.hosts = sshd.hosts
        self.key = sshd.key()
        self.port = sshd.port
        self.kept = False  # the password by the target, which makes the repository
        place = f"ssh://root@127.0.0.1:{sshd.port}{self.repository}"
        self.call = self.call._replace(repository=place)

    def vault(self, access: Access = Access.APPEND) -> Vault:
        options: Pairs = [*self.hosts, ("remote-path", self.there)]
        place = f"ssh://root@127.0.0.1:{self.port}{self.repository}"
        return Vault(
            place, self.base / "state", access, secrets=self.key, options=options,
            engine=("borg", self.program), kept=self.kept, make=self.kept and access is Access.APPEND,
        )  # fmt: skip

    def run(
        self, command: Command, access: Access = Access.APPEND, *, uid: int = 0, stdin: bytes = b"",
    ) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        with self.vault(access) as vault:
            done = self.on(vault, command.argv, dict(command.env), command.cwd, stdin=stdin)
            self.said = vault.finish()
        return done

    def refusal(self) -> tuple[str, str]:
        """Why a vault does not serve it: what it says before any engine."""
        with self.vault() as vault:
            found = [e for e in vault.events() if e["event"] == "failure"]
        assert len(found) == 1, found
        return str(found[0]["failure"]), str(found[0]["text"])

    def failure(self) -> tuple[str, str]:
        """Why a call of the engine failed, by the vault."""
        done = self.run(ENGINE.snapshots(self.call))
        assert done.returncode != 0, done
        found = [e for e in self.said if e["event"] == "failure"]
        assert len(found) == 1, (found, done)
        return str(found[0]["failure"]), str(found[0]["text"])


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(server.base / "sshd_config")]
    with running(argv, server.port):
        yield server


def remote(sshd: Sshd, base: Path, near: str, far: str) -> Remote:
    """With two archives."""
    programs = borg_programs()
    found = Remote(base, programs[near], sshd, programs[far])
    found.init()
    (found.source / "random").write_bytes(os.urandom(100_000))
    for number in range(2):
        (found.source / "file").write_text(f"version {number}")
        found.back_up()
    return found


def attack_while_making(borg: Remote) -> dict[str, str]:
    command = ENGINE.snapshots(borg.call)
    argv = (*borg.call.interpreter, HOSTILE, TOOLS)
    done = borg.run(command._replace(argv=argv))
    ends: dict[str, str] = json.loads(done.stdout)
    return ends


@pytest.mark.parametrize("near, far", [("1.2", "1.4"), ("1.4", "1.2")])
def test_a_hostile_reader_costs_no_archive_there_either(
    sshd: Sshd, tmp_path: Path, near: str, far: str
) -> None:
    """Whichever of the two is older."""
    borg = remote(sshd, tmp_path, near, far)
    oldest, newest = borg.snapshots()
    ids = borg.base / "ids"
    ids.write_text(f"{oldest.id}\n{newest.id}\n")
    ends = here.attack(borg, "everything")
    refused = {"InvalidRPCMethod", "PathNotAllowed"}
    assert {name for name, end in ends.items() if end not in refused} == {"remove", "replace"}, ends
    rescue = ENGINE.bring_back(borg.call, str(ids))
    assert rescue is not None
    assert sorted(json.loads(borg.admin(rescue))["found"]) == sorted((oldest.id, newest.id))
    ends = here.attack(borg, "pipelined")
    assert all(end.startswith("done") for end in ends.values()), ends
    assert not here.attack(borg, "huge")["huge"].startswith("done")
    assert (borg.restored(oldest) / "random").read_bytes() == (borg.source / "random").read_bytes()
    segments = {p for p in (borg.repository / "data").rglob("*") if p.is_file()}
    borg.admin(ENGINE.forget(borg.call, (oldest.word,)))
    borg.admin(ENGINE.prune(borg.call))
    assert not segments <= {p for p in (borg.repository / "data").rglob("*") if p.is_file()}
    assert borg.snapshots() == (newest,)


def test_a_target_that_keeps_its_key_makes_one_repository_there(sshd: Sshd, tmp_path: Path) -> None:
    programs = borg_programs()
    borg = Remote(tmp_path, programs["1.4"], sshd, programs["1.2"])
    borg.kept = True
    assert attack_while_making(borg) == {
        "make": "done", "again": "PathNotAllowed", "key": "done", "second key": "InvalidRPCMethod",
        "empty key": "InvalidRPCMethod", "destroy": "InvalidRPCMethod", "put": "done", "commit": "done",
        "key of one that is there": "InvalidRPCMethod", "has": "the first key",
    }  # fmt: skip
    assert "append_only = 0" in (borg.repository / "config").read_text()
    borg.repository = borg.base / "another"
    borg.repository.mkdir()
    borg.call = borg.call._replace(repository=f"ssh://root@127.0.0.1:{sshd.port}{borg.repository}")
    made = borg.run(ENGINE.init(borg.call))
    assert made.returncode == 0, made.stderr.decode()


def test_what_goes_wrong_there_is_said(sshd: Sshd, tmp_path: Path) -> None:
    borg = remote(sshd, tmp_path, "1.2", "1.4")
    borg.key = sshd.key("stranger")
    kind, text = borg.refusal()
    assert (kind, "authorized_keys" in text) == ("denied", True), text
    borg.key, known = sshd.key(), tmp_path / "known_hosts"
    stranger = " ".join((sshd.base / "stranger.pub").read_text().split()[:2])
    for hosts, word in ((f"[127.0.0.1]:{sshd.port} {stranger}\n", "another host key"),
                        ("elsewhere.example.org ssh-ed25519 AAAA\n", "has no key of")):  # fmt: skip
        known.write_text(hosts)
        borg.hosts = [("known-hosts", str(known))]
        kind, text = borg.refusal()
        assert (kind, word in text) == ("denied", True), text
    borg.hosts, borg.port = sshd.hosts, free_port()
    borg.hosts = [("known-hosts", str(known))]
    assert borg.refusal()[0] == "unreachable"
    borg.hosts, borg.port = sshd.hosts, sshd.port
    right, borg.there = borg.there, "borg-of-no-version"
    kind, text = borg.refusal()
    assert (kind, "options.remote-path" in text) == ("refused", True), text
    for script, kind, word in ((OLD, "refused", "borg is 1.1.18"),
                               (TALKATIVE, "unreachable", "Welcome to")):  # fmt: skip
        other = tmp_path / "other"
        other.write_text(f"#!/bin/sh\n{script}\n")
        other.chmod(0o755)
        borg.there = str(other)
        found, text = borg.failure()
        assert (found, word in text) == (kind, True), text
    borg.there = right
    moved = borg.repository.rename(tmp_path / "moved")
    done = borg.run(ENGINE.snapshots(borg.call))
    said = ENGINE.diagnose(done.returncode, tuple(done.stderr.decode().splitlines()))
    assert said is not None
    assert said.failure == "no-repository", done
    moved.rename(borg.repository)
    (borg.repository / "lock.exclusive").mkdir()
    (borg.repository / "lock.exclusive/elsewhere@1.1-0").touch()
    done = borg.run(ENGINE.snapshots(borg.call), Access.ADMIN)
    said = ENGINE.diagnose(done.returncode, tuple(done.stderr.decode().splitlines()))
    assert said is not None
    assert said.failure == "locked", done
    shutil.rmtree(borg.repository / "lock.exclusive")
    _is_lost_in_the_middle(borg)


def test_a_login_may_take_its_time_and_that_is_told(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SshPlace.patience(cast(SshPlace, None)) > there.HELLO_SECONDS >= 60
    (_, known), (_, identity) = sshd.hosts[0], sshd.key()[0]
    login = Login("127.0.0.1", sshd.port, "root", known, identity)
    monkeypatch.setattr(there, "HELLO_SECONDS", 1)
    line = SshLine(login, str(tmp_path), ("sleep", "20"), b"hello")
    with pytest.raises(StoreError, match="look how long a login takes there"):
        line.await_answer()
    line.end(0)


def _is_lost_in_the_middle(borg: Remote) -> None:
    """The server's borg is killed while it is written to; what was there stays, and nothing is locked."""
    before = borg.snapshots()
    for number in range(8):
        (borg.source / f"more {number}").write_bytes(os.urandom(4 << 20))
    command = ENGINE.backup(borg.call, borg.job())
    with borg.vault() as vault:
        handover = vault.handover.fileno()
        child = subprocess.Popen(
            command.argv, env=dict(command.env), cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(3, handover),
            preexec_fn=lambda: os.dup2(handover, 3),  # noqa: PLW1509
        )  # fmt: skip
        wait_for((borg.repository / "lock.exclusive").exists)
        child.send_signal(signal.SIGSTOP)
        for pid in _serving(borg):
            os.kill(pid, signal.SIGKILL)
        child.send_signal(signal.SIGCONT)
        child.wait(60)
        assert failures(vault.finish()) == ["unreachable"]
    borg.back_up()
    assert borg.snapshots()[:2] == before
    assert len(borg.snapshots()) == 3


def _serving(borg: Remote) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if borg.there.encode() in words and b"serve" in words and entry.name.isdigit():
            found.append(int(entry.name))
    assert found
    return found
