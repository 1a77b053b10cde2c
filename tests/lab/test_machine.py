"""The lab itself: a machine boots, fails, comes back, and nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import inventory, trees
from tests.lab.host import MACHINES, PREFIX, control_groups
from tests.lab.machine import Machine

VERSIONS = {"bookworm": 252, "trixie": 257}
QUICK = 15  # seconds in which a machine is up
FSYNC = "import os; f = open('/srv/kept', 'w'); f.write('kept'); f.flush(); os.fsync(f.fileno())"
UNIT = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo a word from %n; id -un'\nUser=daemon\n"


def test_a_machine_boots_and_says_that_nothing_failed(machine: Machine) -> None:
    assert machine.ok("systemctl", "is-system-running") == "running\n", machine.ok(
        "systemctl", "--failed"
    )
    assert machine.ok("ps", "-p", "1", "-o", "comm=") == "systemd\n"
    version = int(machine.ok("systemctl", "--version").split()[1])
    assert version == VERSIONS.get(machine.suite, version)
    assert machine.boot_seconds < QUICK
    assert machine.ok("stat", "-f", "-c", "%T", "/sys/fs/cgroup") == "cgroup2fs\n"
    seccomp = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "Seccomp:" in line
    ]
    assert (
        machine.ok("grep", "Seccomp:", "/proc/1/status").splitlines() == seccomp
    )  # none of nspawn's
    assert machine.ok("capkeep", "--version").startswith("capkeep ")
    assert machine.ok("restic", "version").startswith("restic ")


def test_a_command_runs_as_a_user_who_has_logged_in(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "must not get in")
    machine.ok("groupadd", "club")
    machine.ok("useradd", "-m", "-G", "club", "alice")
    said = machine.ok(
        "sh", "-c", "id -un; id -nG; pwd; umask; grep ^CapEff /proc/self/status", user="alice"
    )
    assert said.split() == ["alice", "alice", "club", "/home/alice", "0022", "CapEff:", "0" * 16]
    names = {line.partition("=")[0] for line in machine.ok("env", user="alice").splitlines()}
    assert names == {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG"}
    assert machine.run("cat", "/etc/shadow", user="alice").code == 1
    assert machine.ok("cat", input="zażółć\udcff") == "zażółć\udcff"
    with pytest.raises(LookupError):
        machine.run("id", user="nobody-of-this-name")
    with pytest.raises(TimeoutError):
        machine.run("sleep", "30", seconds=0.5)
    assert machine.run("pgrep", "sleep").code == 1


def test_the_power_fails_and_comes_back(machine: Machine) -> None:
    first = machine.boot_id()
    machine.ok("python3", "-c", FSYNC)
    machine.ok("touch", "/run/of-this-boot")
    machine.write("/etc/systemd/system/word.service", UNIT)
    machine.ok("systemctl", "start", "word")
    assert "a word from word.service" in machine.journal("word")  # and it is written down
    machine.kill()
    assert not machine.running
    assert machine.read("/srv/kept") == "kept"
    assert "a word from word.service" in machine.journal("word")
    machine.boot()
    assert machine.read("/srv/kept") == "kept"
    assert machine.run("test", "-e", "/run/of-this-boot").code == 1
    assert machine.boot_id() != first
    assert machine.journal("word").splitlines()[0] in machine.journal()
    machine.shutdown()
    assert not machine.running
    assert "Reached target" in machine.journal()
    machine.boot()
    assert len(set(machine.ok("journalctl", "--list-boots", "-q").splitlines())) >= 3


def test_files_are_written_and_read_in_either_state(machine: Machine) -> None:
    for _ in range(2):
        machine.write("/srv/deep/er/file", "text\n", 0o640)
        machine.write("/var/run/../tmp/file", "text\n")  # through an absolute link
        assert machine.read("/srv/deep/er/file") == "text\n"
        look = (machine.tree / "srv/deep/er/file").stat()
        assert (look.st_mode & 0o7777, look.st_uid, look.st_gid) == (0o640, 0, 0)
        with pytest.raises(FileNotFoundError):
            machine.read("/srv/absent")
        if machine.running:
            machine.kill()


def test_two_looks_at_an_idle_machine_are_equal_and_a_change_is_seen(machine: Machine) -> None:
    before = machine.inventory()
    assert len(before) > 5000
    assert inventory.differences(before, machine.inventory()) == []
    machine.kill()
    machine.boot()
    assert inventory.differences(before, machine.inventory()) == []
    machine.ok("setcap", "cap_dac_read_search=+ep", "/usr/bin/restic")
    machine.ok("setfacl", "-m", "u:daemon:r", "/etc/shadow")
    machine.ok("sh", "-c", "echo >>/etc/hosts; ln -s a /srv/link; rm /etc/issue; mkfifo /srv/f")
    machine.ok("chown", "70000:80000", "/etc/motd")
    found = inventory.differences(before, machine.inventory())
    assert [" ".join(line.split()[:2]) for line in found] == [
        "changed: /etc/hosts", "gone: /etc/issue", "changed: /etc/motd", "changed: /etc/shadow",
        "new: /srv/f", "new: /srv/link", "changed: /usr/bin/restic",
    ]  # fmt: skip


def test_timers_fire_and_sandboxes_are_real(machine: Machine) -> None:
    """What services of capkeep rely on is not silently left out in a container."""
    strict = [
        "PrivateNetwork", "PrivateDevices", "ProtectKernelTunables", "ProtectKernelModules",
        "ProtectControlGroups", "PrivateTmp", "RestrictNamespaces", "MemoryDenyWriteExecute",
    ]  # fmt: skip
    settings = [f"--property={name}=yes" for name in strict] + ["--property=ProtectSystem=strict"]
    script = "readlink /proc/self/ns/net; ls /dev | wc -l; touch /usr/x; grep ^Seccomp: /proc/self/status"
    said = machine.run("systemd-run", "--wait", "--pipe", "-q", *settings, "sh", "-c", script)
    network, devices, seccomp = said.out.strip().splitlines()
    assert network != machine.ok("readlink", "/proc/1/ns/net").strip()
    assert int(devices) < 20
    assert seccomp.split() == ["Seccomp:", "2"]
    assert "Read-only file system" in said.err
    assert "proceeding without" not in machine.journal()
    machine.write("/etc/systemd/system/word.service", UNIT)
    machine.write("/etc/systemd/system/word.timer", "[Timer]\nOnActiveSec=1s\nAccuracySec=100ms\n")
    machine.ok("systemctl", "start", "word.timer")
    machine.wait(lambda: "daemon" in machine.journal("word"))


def test_a_user_mounts_something_with_fuse(machine: Machine) -> None:
    machine.ok("useradd", "-m", "alice")
    machine.ok("mkdir", "a", "b", user="alice")
    machine.ok("touch", "a/file", user="alice")
    machine.ok("bindfs", "--no-allow-other", "a", "b", user="alice")
    assert machine.ok("ls", "b", user="alice") == "file\n"
    assert machine.run("ls", "/home/alice/b").code != 0  # root is refused, as on every machine


def test_an_ordinary_disk_can_be_had(request: pytest.FixtureRequest) -> None:
    with Machine(trees.SUITES[-1], plain=True, installed=False, hostname="plain") as machine:
        assert machine.ok("stat", "-f", "-c", "%T", "/") != "overlayfs\n"
        assert machine.run("capkeep", "--version").code == 127
        assert machine.ok("uname", "-n") == "plain\n"


def test_two_machines_at_a_time_know_nothing_of_each_other() -> None:
    with Machine(trees.SUITES[0]) as one, Machine(trees.SUITES[-1], hostname="two") as two:
        one.ok("touch", "/srv/one")
        assert two.run("test", "-e", "/srv/one").code == 1
        listen = (
            "import socket; s = socket.create_server(('127.0.0.1', 8000)); "
            "socket.create_connection(s.getsockname()); print('open')"
        )
        for machine in (one, two):  # the same port on both
            assert machine.ok("python3", "-c", listen) == "open\n"
        one.kill()
        assert two.ok("systemctl", "is-system-running") == "running\n"
        folders = one.tree.parent, two.tree.parent
    assert not any(f.exists() for f in folders)


LEFT = """
import sys
from tests.lab.machine import Machine
with Machine(sys.argv[1]) as machine:
    print(machine.name, flush=True)
    machine.run("sleep", "1000", seconds=1000)
"""


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_run_ends_its_machines_end_too(by: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEFT, trees.SUITES[-1]], cwd=trees.CHECKOUT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": f"{trees.CHECKOUT}"},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        assert name
        group = control_groups() / f"{PREFIX}{name}"
        assert "populated 1" in (group / "cgroup.events").read_text()
        time.sleep(0.3)
        run.send_signal(by)
        run.wait(30)
    limit = time.monotonic() + 20
    while group.exists() and "populated 1" in (group / "cgroup.events").read_text():
        assert time.monotonic() < limit
        time.sleep(0.1)
    if by is signal.SIGINT:
        assert not (MACHINES / name).exists()
    else:
        with Machine(trees.SUITES[-1]):  # the next run clears what is left
            assert not (MACHINES / name).exists()
    assert not group.exists()
    assert name not in Path("/proc/self/mounts").read_text()
