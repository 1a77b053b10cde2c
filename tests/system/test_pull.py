"""A server comes for a target's files: from the configuration to a file that is back."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms.house import wait_for
from tests.rooms.test_vault_engines import running
from tests.rooms.vaultkit import free_port
from tests.system.test_enroll import LOGIN, Host, Target

PREFIX = f"ckpul{os.getpid()}"
SERVER = """
[host]
user-prefix = "{prefix}"
group = "{prefix}"
[pull]
identity = {{ file = "{base}/etc/secrets/pull" }}
[targets.web1]
host = "127.0.0.1"
port = {port}
user = "{login}"
host-key = "{host_key}"
groups = ["web"]
[targets.gone]
host = "127.0.0.1"
port = {closed}
host-key = "{host_key}"
[repositories.pulled]
engine = "restic"
location = "{base}/repositories/{{target}}"
password = {{ file = "{base}/etc/secrets/pulled" }}
[engines.restic]
program = "{base}/restic"
[jobs.hosts]
targets = ["@web", "gone"]
repositories = ["pulled"]
include = ["{source}"]
canary = false  # of the host's own capkeep, which is not below a prefix
"""


class Pulling:
    """Both hosts, with their doors open, and the sshd of the target."""

    def __init__(self, server: Host, target: Target, place: Path) -> None:
        self.server = server
        self.target = target
        self.config = Path(server.base, "etc/capkeep.toml")
        self.place = place

    def enroll(self) -> str:
        """By the script, which says something."""
        printed = self.server("enroll", "web1", "--print")
        assert printed.code == 0, printed
        # The target's places are not those of a whole host.
        script = printed.out.replace("/etc/capkeep/", f"{self.target.base}/etc/")
        script = script.replace("config=/etc/capkeep", f"config={self.target.base}/etc")
        script = script.replace("home=/opt/capkeep", f"home={self.target.base}/opt")
        done = subprocess.run(["/bin/sh"], input=script.encode(), capture_output=True, timeout=120,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done
        return done.stdout.decode()


@contextlib.contextmanager
def doors(host: Host) -> Iterator[None]:
    """`capkeep doors`, until all that came in has gone."""
    log = host.base / "doors-said"
    with log.open("wb") as said:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "capkeep", "--prefix", str(host.base), "doors"],
            env=host.environment, cwd="/", stdin=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
    try:
        wait_for(lambda: b"doors are open" in log.read_bytes() or child.poll() is not None, 60)
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


@pytest.fixture(scope="module")
def pulling() -> Iterator[Pulling]:
    place = Path(tempfile.mkdtemp(prefix="ck-", dir="/srv"))
    place.chmod(0o755)
    server, target = Host(place / "server", "pulled"), Target(place / "target")
    for path in (server.base / "etc/secrets/pull", place / "host"):
        argv = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(argv, check=True, timeout=20)
    shutil.copy(f"{server.base}/etc/secrets/pull.pub", place / "authorized")
    port = free_port()
    config = place / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nPidFile none\nUsePAM no\n"
        f"Match User root\nAuthorizedKeysFile {place}/authorized\n"  # the host on the way
    )
    host_key = " ".join((place / "host.pub").read_text().split()[:2])
    (target.base / "source/file").write_text("of the target\n")
    server.configure(
        SERVER.format(prefix=PREFIX, base=server.base, port=port, login=LOGIN, host_key=host_key,
                      closed=free_port(), source=target.base / "source")
    )  # fmt: skip
    Path("/run/sshd").mkdir(exist_ok=True)
    try:
        made = server("apply")
        assert made.code == 0, made
        Pulling(server, target, place).enroll()
        with (
            running(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], port),
            doors(target), doors(server),
        ):  # fmt: skip
            yield Pulling(server, target, place)
    finally:
        for host in (server, target):
            removed = host("remove", "--delete-data")
            assert removed.code == 0, removed
        assert not [u.pw_name for u in pwd.getpwall() if u.pw_name.startswith((PREFIX, LOGIN))]
        shutil.rmtree(place)


def test_a_targets_files_come_back(pulling: Pulling, tmp_path: Path) -> None:
    server = pulling.server
    made = server("init")
    assert made.code == 0, made
    done = server("run", "hosts.web1")
    assert done.code == 0, done
    back = server("restore", "latest", "-r", "pulled.web1", "--to", str(pulling.place / "back"))
    assert back.code == 0, back
    file = Path(f"{pulling.place}/back{pulling.target.base}/source/file")
    assert file.read_text() == "of the target\n"


def test_targets_are_listed_with_their_jobs(pulling: Pulling) -> None:
    listed = {t["target"]: t for t in json.loads(pulling.server("target", "list", "--json").out)}
    assert listed["web1"]["groups"] == ["web"]
    assert [job["job"] for job in listed["web1"]["jobs"]] == ["hosts.web1"]
    assert [job["state"] for job in listed["gone"]["jobs"]] == ["never"]
    shown = pulling.server("target", "list").out
    assert "hosts.web1" in shown


def test_targets_are_asked_whether_they_answer(pulling: Pulling) -> None:
    server = pulling.server
    good = server("target", "check", "web1", "--json")
    (found,) = json.loads(good.out)
    assert (good.code, found["failure"], found["target"]) == (0, "", "web1"), good
    assert found["engine"].startswith("restic")
    assert found["seconds"] > 0
    all_ = server("target", "check")
    assert (all_.code, "unreachable" in all_.out, "answers" in all_.out) == (15, True, True), all_
    assert server("target", "check", "nobody").code == 2


def test_a_host_on_the_way_leads_to_the_target(pulling: Pulling) -> None:
    text = pulling.config.read_text()
    host_key = " ".join((pulling.place / "host.pub").read_text().split()[:2])
    port = text.partition("port = ")[2].split()[0]
    way = f'jump = "root@127.0.0.1:{port}"\njump-host-key = "{host_key}"\ngroups'
    pulling.server.configure(text.replace("groups", way, 1))
    try:
        assert pulling.server("apply").code == 0
        found = pulling.server("target", "check", "web1")
        assert found.code == 0, found
    finally:
        pulling.server.configure(text)
        assert pulling.server("apply").code == 0


def test_neither_side_has_anything_to_be_mended(pulling: Pulling) -> None:
    target = json.loads(pulling.target("audit", "--json").out)
    assert target["findings"] == []
    assert any(LOGIN in text for text in target["exceptions"])
    server = json.loads(pulling.server("audit", "--json").out)
    assert {(f["kind"], f["mend"]) for f in server["findings"]} == {
        ("probe", "capkeep target check gone")
    }, server["findings"]


def test_a_target_keeps_its_own_key(pulling: Pulling) -> None:
    """From the configuration to the files that come back; the server has the password for one command."""
    server, text = pulling.server, pulling.config.read_text()
    line = next(row for row in text.splitlines() if row.startswith("password = "))
    sealed = text.replace(line, 'password-kept-by = "target"').replace("/repositories/", "/sealed/")
    server.configure(sealed)
    planned = server("plan")
    assert planned.code == 0, planned
    assert "the target alone has the password of pulled.web1" in planned.out
    assert server("apply").code == 0
    enrolled = pulling.enroll()
    assert "WHOEVER LOSES THE PASSWORD IN" in enrolled
    (secret,) = [p for p in (pulling.target.base / "etc/secrets").iterdir() if p.name != "own"]
    early = server("run", "hosts.web1")
    assert early.code not in (0, 1), early
    made = server("init", "pulled.web1")
    assert (made.code, "was never exported" in made.err) == (0, False), made
    done = server("run", "hosts.web1")
    assert done.code == 0, done
    for verb in (("status",), ("history",), ("log", "hosts.web1"), ("target", "list")):
        said = server(*verb)
        assert said.code in (0, 1), said  # the other target never answers
    refused = server("snapshots")
    assert (refused.code, "its target keeps the password" in refused.err) == (4, True), refused
    brought = ("-r", "pulled.web1", "--password-file", str(secret))
    back = server("restore", "latest", *brought, "--to", str(pulling.place / "unsealed"))
    assert back.code == 0, back
    file = Path(f"{pulling.place}/unsealed{pulling.target.base}/source/file")
    assert file.read_text() == "of the target\n"
    assert "with this host's own password" in pulling.target("plan").out
