"""borg in rooms that systemd starts."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.lab import trees
from tests.lab.machine import Machine
from tests.lab.scenes import configure
from tools.engines import BORGS

JOB = """
[jobs.system]
repositories = ["borg"]
include = ["/srv/data"]
check = {}
drill = { depth = "all" }
retention = { keep-last = 1, trust-clock = true }

[repositories.borg]
engine = "borg"
location = "/srv/borg"
password = { file = "/etc/capkeep/secrets/local" }
"""
LIBRARIES = ("libxxhash", "libzstd", "liblz4", "libacl")


def install(machine: Machine) -> None:
    """What installing borgbackup brings, from packages of the machine's own release."""
    package = next(b for b in BORGS if b.suite == machine.suite).path.parent
    for folder in ("usr/lib/python3/dist-packages", "usr/lib/x86_64-linux-gnu"):
        kept = [p for p in (package / folder).iterdir()
                if not p.name.startswith("lib") or p.name.startswith(LIBRARIES)]  # fmt: skip
        command = ["cp", "-an", *kept, machine.tree / folder]
        subprocess.run(command, check=True, timeout=60)
    subprocess.run(["cp", package / "usr/bin/borg", machine.tree / "usr/bin/borg"], check=True,
                   timeout=20)  # fmt: skip


RELEASE = Path("/etc/os-release").read_text().split()
# The programs of ssh are this host's, so the machine is of the same release.
HERE = [suite for suite in trees.SUITES if f"VERSION_CODENAME={suite}" in RELEASE]
SSH = ("/usr/bin/ssh", "/usr/bin/ssh-add", "/usr/bin/ssh-agent", "/usr/bin/ssh-keygen",
       "/usr/bin/ssh-keyscan", "/usr/sbin/sshd")  # fmt: skip
FAR = """
[jobs.far]
repositories = ["far"]
include = ["/srv/data"]
check = {}
retention = { keep-last = 1, trust-clock = true }

[repositories.far]
engine = "borg"
location = "ssh://root@127.0.0.1/srv/far"
password = { file = "/etc/capkeep/secrets/local" }
options.identity = { file = "/etc/capkeep/secrets/id" }
options.known-hosts = "/etc/capkeep/known_hosts"
"""
SERVER = """
set -e
mkdir -p /run/sshd /etc/ssh /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /etc/capkeep/secrets/id
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host
cp /etc/capkeep/secrets/id.pub /root/.ssh/authorized_keys
printf 'HostKey /etc/ssh/host\\nUsePAM no\\nStrictModes no\\n' >/etc/ssh/sshd_config
grep -q ^sshd: /etc/passwd || echo 'sshd:x:74:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
systemd-run -q --unit=far-sshd /usr/sbin/sshd -D
until ssh-keyscan -t ed25519 127.0.0.1 >/etc/capkeep/known_hosts 2>/dev/null; do sleep 0.1; done
until [ -s /etc/capkeep/known_hosts ]; do
    sleep 0.1; ssh-keyscan -t ed25519 127.0.0.1 >/etc/capkeep/known_hosts 2>/dev/null
done
"""


def install_ssh(machine: Machine) -> None:
    """This host's own, with the libraries that the machine has not."""
    for program in SSH:
        found = subprocess.run(["ldd", program], capture_output=True, text=True, check=True,
                               timeout=20).stdout.split()  # fmt: skip
        for path in (program, *(word for word in found if word.startswith("/"))):
            there = machine.tree / path.lstrip("/")
            if not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-L", path, there], check=True, timeout=20)


@pytest.mark.parametrize("machine", HERE, indirect=True)
def test_another_machine_in_units(machine: Machine) -> None:
    """Over ssh; the machine is the other one too."""
    install(machine)
    install_ssh(machine)
    configure(machine, job=FAR)
    machine.ok("sh", "-c", SERVER)
    machine.ok("capkeep", "apply")
    machine.ok("capkeep", "init", "far")
    for number in range(2):
        machine.ok("sh", "-c", f"echo {number} >/srv/data/number")
        machine.ok("capkeep", "run", "far", seconds=110)
    listed = json.loads(machine.ok("capkeep", "snapshots", "far", "--json"))
    assert len(listed[0]["snapshots"]) == 1
    machine.ok("capkeep", "restore", "latest", "/srv/data", "--repository", "far", "--to", "/mnt/x")
    assert machine.ok("cat", "/mnt/x/srv/data/number") == "1\n"
    audit = machine.run("capkeep", "audit")
    assert audit.code == 0, audit


def test_the_whole_way_in_units(machine: Machine) -> None:
    if machine.suite not in {b.suite for b in BORGS}:
        pytest.skip("this release's borg is not fetched")
    install(machine)
    configure(machine, job=JOB)
    machine.ok("capkeep", "apply")
    machine.ok("capkeep", "init", "borg")
    for number in range(2):
        machine.ok("sh", "-c", f"echo {number} >/srv/data/number")
        machine.ok("capkeep", "run")
    listed = json.loads(machine.ok("capkeep", "snapshots", "borg", "--json"))
    assert len(listed[0]["snapshots"]) == 1
    assert "/srv/data" in listed[0]["snapshots"][0]["paths"]
    machine.ok(
        "capkeep", "restore", "latest", "/srv/data", "--repository", "borg", "--to", "/mnt/x"
    )
    assert machine.ok("cat", "/mnt/x/srv/data/number") == "1\n"
    drilled = machine.ok("capkeep", "drill", "system", seconds=110)
    assert "as in the snapshot" in drilled, drilled
    audit = machine.run("capkeep", "audit")
    assert audit.code == 0, audit
    assert machine.ok("systemctl", "--failed", "--quiet") == ""
