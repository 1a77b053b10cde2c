"""One host takes the files of another, over ssh, and nobody is root on either side."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.lab import pulled
from tests.lab.pulled import Pair
from tests.lab.scenes import messages

pytestmark = pytest.mark.timeout(300)
# Which processes show themselves in a pull's record.
PROVEN = {"room", "vault", "target", "target engine"}
DAC = "CAP_DAC_READ_SEARCH"
# Where anything of a running machine could be written: packages are elsewhere.
WRITTEN = ("/etc", "/var", "/root", "/home", "/srv", "/mnt", "/tmp", "/run", "/dev/shm")
# How many processes have in their environment what is given on standard input.
ENVIRONMENTS = """
import pathlib, sys
word = sys.stdin.buffer.read()
print(sum(word in path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/environ")))
"""
# Looks, while a pull goes on, at what everybody on the target may see of processes.
WATCH = """
import os, pathlib, sys, time
end, seen = time.monotonic() + 60, set()
while time.monotonic() < end and not os.path.exists("/run/enough"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = pathlib.Path("/proc", pid, "cmdline").read_bytes()
            seen.add(line.replace(b"\\0", b" "))
        except OSError:
            pass
    time.sleep(0.01)
sys.stdout.buffer.write(b"\\n".join(sorted(seen)))
"""

# A service that one hook may start, and what starts it when all is pulled.
SERVICE = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
AFTER = """
[hooks.start]
command = ["/usr/bin/busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
  "org.freedesktop.systemd1.Manager", "StartUnit", "ss", "after.service", "replace"]
user = "games"
sockets = ["/run/dbus/system_bus_socket"]
polkit = "org.freedesktop.systemd1.manage-units unit=after.service verb=start"

[pull]
parallel = 2
after = ["start"]
"""
# A pull whose runner is killed as soon as the target is asked for something.
KILLED = """
capkeep run hosts.web1 & client=$!
for turn in $(seq 300); do
  sleep 0.05
  pgrep -x ssh && break
done
systemctl kill --signal=KILL 'capkeep-runner@*.service'
! wait "$client"
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Pair]:
    """Set up, and pulled once."""
    with pulled.pair() as made:
        pulled.set_up(made)
        made.server.write("/etc/systemd/system/after.service", SERVICE)
        made.server.ok("systemctl", "daemon-reload")
        yield made


def test_every_target_of_a_job_is_pulled(hosts: Pair) -> None:
    done = hosts.pull("hosts")
    assert done.code == 0, done
    for target in ("web1", "web2"):
        run = hosts.last(f"hosts.{target}")
        assert run["outcome"] == "complete", run
        (snapshot,) = hosts.snapshots(f"pulled.{target}")
        assert set(pulled.INCLUDE) <= set(snapshot["paths"])  # type: ignore[call-overload]
    again = hosts.pull("hosts.web1")
    assert again.code == 0, again
    (step,) = hosts.last("hosts.web1")["steps"]  # type: ignore[misc]
    assert step["totals"]["files_new"] == 0, step  # type: ignore[has-type]
    assert len(hosts.snapshots("pulled.web1")) == 2
    assert len(hosts.snapshots("pulled.web2")) == 1


def test_with_borg(hosts: Pair) -> None:
    for _ in range(2):
        done = hosts.pull("other")
        assert done.code == 0, done
        assert hosts.last("other.chunks")["outcome"] == "complete"


@pytest.mark.parametrize("repository", ["pulled.web1", "chunked.chunks"])
def test_what_comes_back_is_what_was_there(hosts: Pair, repository: str) -> None:
    there = f"/mnt/{repository}"
    hosts.server.ok("capkeep", "restore", "latest", "/srv/data", "--repository", repository,
                    "--to", there)  # fmt: skip
    back = pulled.tree(hosts.server, f"{there}/srv/data").splitlines()
    assert sorted(set(back) ^ set(pulled.tree(hosts.target, "/srv/data").splitlines())) == []
    assert "./high f 640 70000 70000 5 " in back


def test_every_process_shows_its_privileges(hosts: Pair) -> None:
    done = hosts.pull("hosts.web1")
    proofs = {str(m["process"]): m for m in messages(done) if m["event"] == "proof"}
    assert proofs.keys() == PROVEN
    assert all(m["weaker"] == [] for m in proofs.values()), proofs
    facts = {name: dict(m["facts"]) for name, m in proofs.items()}  # type: ignore[call-overload]
    for name in ("room", "vault"):
        assert facts[name]["effective"] == [], facts[name]
        assert 0 not in facts[name]["uids"]
    for name in ("target", "target engine"):
        assert facts[name]["effective"] == [DAC], facts[name]


def test_the_password_stays_nowhere_on_the_target(hosts: Pair) -> None:
    hosts.target.ok("rm", "-f", "/run/enough")
    hosts.target.write("/run/watch.py", WATCH)
    hosts.target.ok("systemd-run", "-q", "--unit=watch", "-p", "StandardOutput=file:/run/seen",
                    "python3", "/run/watch.py")  # fmt: skip
    assert hosts.pull().code == 0
    hosts.target.write("/run/enough", "")
    hosts.target.wait(lambda: hosts.target.run("systemctl", "is-active", "-q", "watch").code)
    lines = hosts.target.read("/run/seen")
    assert "restic" in lines and "borg" in lines  # it has seen the engines
    assert pulled.PASSWORD not in lines
    assert pulled.PASSWORD not in hosts.target.journal()
    for machine, expected in ((hosts.target, ""), (hosts.server, "/etc/capkeep/secrets/pulled\n")):
        found = machine.run("grep", "-rlsaF", "-D", "skip", "-e", pulled.PASSWORD, *WRITTEN).out
        assert found == expected
        assert machine.ok("python3", "-c", ENVIRONMENTS, input=pulled.PASSWORD) == "0\n"


def test_status_and_history_are_each_targets(hosts: Pair) -> None:
    jobs = json.loads(hosts.server.ok("capkeep", "--json", "status"))["jobs"]
    assert {j["job"]: j["state"] for j in jobs} == {
        "hosts.web1": "fresh", "hosts.web2": "fresh", "other.chunks": "fresh",
    }  # fmt: skip
    assert hosts.server.run("capkeep", "history", "hosts.web2").out.count("hosts.web2") >= 2


def test_what_comes_after_the_last_pull_comes_once(hosts: Pair) -> None:
    text = hosts.server.read("/etc/capkeep/capkeep.toml")
    after = text.replace("[pull]\n", AFTER)
    hosts.server.write("/etc/capkeep/capkeep.toml", after)
    hosts.server.ok("capkeep", "apply", seconds=120)
    try:
        done = hosts.pull("hosts")
        assert done.code == 0, done
        # The command asks systemd for it, and does not wait until it is there.
        hosts.server.wait(
            lambda: not hosts.server.run("systemctl", "is-active", "after.service").code
        )
        runs = json.loads(hosts.server.ok("capkeep", "--json", "history", "--limit", "10"))
        assert [r["action"] for r in runs][:3] == ["after-pulls", "backup", "backup"]
        assert [r["outcome"] for r in runs[:3]] == ["complete"] * 3
        _comes_where_the_runner_was_killed(hosts)
    finally:
        hosts.server.write("/etc/capkeep/capkeep.toml", text)
        hosts.server.ok("capkeep", "apply", seconds=120)
    assert hosts.pull("hosts.web1").code == 0
    runs = json.loads(hosts.server.ok("capkeep", "--json", "history", "--limit", "1"))
    assert runs[0]["action"] == "backup"


def _comes_where_the_runner_was_killed(hosts: Pair) -> None:
    """By the next look for what should have happened, and not again by the one after that."""
    server = hosts.server
    server.ok("systemctl", "stop", "after.service", "capkeep-watch.timer")
    server.ok("sh", "-c", KILLED, seconds=60)
    assert server.run("systemctl", "is-active", "after.service").code

    def look() -> bool:
        time.sleep(5)  # systemd starts nothing more often than five times in ten seconds
        server.ok("systemctl", "start", "capkeep-watch.service")
        return not server.run("systemctl", "is-active", "after.service").code

    server.wait(look, 90)  # not before there was no pull for a while
    look()
    runs = json.loads(server.ok("capkeep", "--json", "history", "--limit", "10"))
    assert [r["action"] for r in runs][:3] == ["after-pulls", "backup", "after-pulls"]
    assert [r["outcome"] for r in runs[:2]] == ["complete", "failed"]


def test_nothing_is_left_to_run_or_mounted(hosts: Pair) -> None:
    before = hosts.mounts()
    assert hosts.pull().code == 0
    hosts.await_rest()
    assert hosts.mounts() == before
    for machine in (hosts.server, hosts.target):
        assert machine.ok("systemctl", "--failed", "--quiet") == ""
    assert hosts.server.ok("find", "/srv/pulled", "-path", "*/locks/*") == ""


def test_both_sides_pass_the_audit(hosts: Pair) -> None:
    for machine in (hosts.server, hosts.target):
        audit = machine.run("capkeep", "audit", seconds=120)
        assert audit.code == 0, audit


def test_a_server_whose_systemd_opens_no_sockets_for_rooms() -> None:
    """Debian 12's: each room connects to its vault by itself."""
    one = (pulled.PULLS[0],)
    with pulled.pair("bookworm", "trixie") as hosts:
        pulled.set_up(hosts, one)
        assert hosts.pull().code == 0
        assert hosts.last("hosts.web1")["outcome"] == "complete"
        audit = hosts.server.run("capkeep", "audit", seconds=120)
        assert audit.code == 0, audit
