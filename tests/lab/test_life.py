"""An installation's life on a host that systemd runs: apply, nights, accidents, remove."""

import json
import time

import pytest

from tests.lab import inventory, trees
from tests.lab.machine import Machine
from tests.lab.scenes import applied, configure, last, messages

# What making and removing users leaves beside the files themselves: their former versions.
USERS_OWN = ("/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/var/log/*")
BIG = "dd if=/dev/urandom of=/srv/data/big bs=1M count=600 status=none"
# Looks into a snapshot as root does, from another terminal, and unmounts it.
LOOK = """
capkeep mount latest /mnt/then 2>/run/said & looks=$!
for _ in $(seq 600); do grep -q umount /run/said && break; sleep 0.2; done
cat /run/said >&2; cat /mnt/then/srv/data/word; umount /mnt/then || kill $looks; wait $looks
"""
MOST = {"bookworm": 0.6, "trixie": 0.4, "sid": 0.4}  # systemd-analyze's exposure of a reader


def test_a_timer_takes_the_backup(machine: Machine) -> None:
    applied(machine, 'schedule = ["*:*:0/2"]\n')
    machine.wait(lambda: last(machine)["state"] == "fresh", 30)
    newest = last(machine)["last"]
    assert isinstance(newest, dict)
    assert newest["trigger_user"] == "capkeep"
    said = machine.journal("capkeep-run-system.service")
    assert "complete" in said
    assert machine.ok("systemctl", "--failed", "--quiet") == ""


def test_a_second_apply_changes_nothing_and_remove_leaves_nothing(machine: Machine) -> None:
    configure(machine, 'schedule = ["03:00"]\n')
    machine.ok("install", "-d", "-m", "700", "/srv/repo")
    before = machine.inventory()
    machine.ok("capkeep", "apply")
    made = machine.inventory()
    assert machine.ok("capkeep", "apply").splitlines()[0] == "nothing to change"
    own = (*inventory.SYSTEMD_OWN, "/etc/capkeep/canary")  # new at every apply, on purpose
    assert inventory.differences(made, machine.inventory(), own) == []
    machine.ok("capkeep", "init")
    machine.ok("capkeep", "run")
    machine.ok("capkeep", "remove", "--delete-data")
    own = (*inventory.SYSTEMD_OWN, *USERS_OWN, "/srv/repo")
    assert inventory.differences(before, machine.inventory(), own) == []
    assert "capkeep" not in machine.ok(
        "systemctl", "list-units", "--all", "--type=socket,timer,service"
    )


def test_remove_keeps_repositories_and_records(machine: Machine) -> None:
    applied(machine)
    machine.ok("capkeep", "run")
    machine.ok("capkeep", "remove")
    assert machine.ok("ls", "/srv/repo").split() == [
        "config", "data", "index", "keys", "locks", "snapshots",
    ]  # fmt: skip
    machine.ok("capkeep", "apply")
    machine.ok("chown", "-R", "capkeep-vault:", "/srv/repo")
    assert last(machine)["state"] == "fresh"
    machine.ok("capkeep", "run")


def test_what_the_plan_no_longer_has_is_taken_away(machine: Machine) -> None:
    more = '\n[jobs.other]\nrepositories = ["local"]\ninclude = ["/etc"]\nschedule = ["04:00"]\n'
    configure(machine, more)
    machine.ok("capkeep", "apply")
    with_both = machine.ok("systemctl", "list-units", "--all", "--quiet", "capkeep-*")
    assert "capkeep-reader-other-local.socket" in with_both
    configure(machine)
    assert "removal of unit capkeep-run-other.timer" in machine.ok("capkeep", "plan")
    machine.ok("capkeep", "apply")
    assert "other" not in machine.ok("systemctl", "list-units", "--all", "--quiet", "capkeep-*")
    assert "other" not in machine.ok("ls", "/etc/systemd/system", "/var/lib/capkeep/rooms")
    assert "capkeep-reader-system-local.socket" in machine.ok("systemctl", "list-sockets")
    assert machine.ok("capkeep", "apply").splitlines()[0] == "nothing to change"


def test_members_of_the_group_may_ask_and_others_may_not(machine: Machine) -> None:
    applied(machine)
    machine.ok("useradd", "-m", "-G", "capkeep", "member")
    machine.ok("useradd", "-m", "stranger")
    done = machine.run("capkeep", "--json", "run", user="member")
    assert done.code == 0, done
    told = messages(done)
    assert {m["event"] for m in told} >= {"proof", "done"}
    assert {m["process"] for m in told if m["event"] == "proof"} == {"room", "vault", "engine"}
    assert all(m["weaker"] == [] for m in told if m["event"] == "proof")
    refused = machine.run("capkeep", "run", user="stranger")
    assert refused.code == 4
    assert "you may not ask for a run" in refused.err


def test_after_a_power_failure_in_mid_backup_the_next_run_heals(machine: Machine) -> None:
    applied(machine)
    machine.ok("sh", "-c", BIG)
    machine.ok("systemd-run", "--unit=first", "capkeep", "run")
    machine.wait(lambda: machine.run("pgrep", "-x", "restic").code == 0, 20)
    time.sleep(0.5)
    machine.kill()
    machine.boot()
    state = last(machine)
    newest = state["last"]
    assert isinstance(newest, dict)
    assert (newest["outcome"], newest["failure"]) == ("failed", "interrupted")
    done = machine.run("capkeep", "run", seconds=120)
    assert done.code == 0, done
    assert machine.ok("ls", "/srv/repo/locks") == ""
    assert last(machine)["state"] == "fresh"


def test_an_upgrade_of_the_engine_loses_nothing(machine: Machine) -> None:
    """Beside test_setcap_recipe.py, where the same upgrade loses every private file."""
    applied(machine)
    machine.ok("capkeep", "run")
    machine.ok("sh", "-c", f"dpkg -i {trees.PACKAGED}/restic_*.deb 2>&1")
    machine.write("/srv/data/word", "written after the upgrade\n", 0o600)
    done = machine.run("capkeep", "run")
    assert done.code == 0, done
    machine.ok("capkeep", "restore", "latest", "/srv/data/word", "--to", "/srv/back")
    assert machine.read("/srv/back/srv/data/word") == "written after the upgrade\n"
    assert machine.ok("sh", "-c", LOOK) == "written after the upgrade\n"
    assert machine.ok("getcap", "-r", "/usr/bin", "/opt/capkeep").strip().find("dac_") == -1
    machine.ok("capkeep", "audit")


def test_a_plan_of_a_newer_capkeep_is_not_taken_over_silently(machine: Machine) -> None:
    applied(machine)
    plan = json.loads(machine.read("/var/lib/capkeep/plan.json"))
    plan |= {"version": plan["version"] + 1, "capkeep_version": "99.0", "a-new-key": 1}
    machine.write("/var/lib/capkeep/plan.json", json.dumps(plan), 0o640)
    machine.ok("chgrp", "capkeep", "/var/lib/capkeep/plan.json")
    refused = machine.run("capkeep", "run")
    assert refused.code != 0
    machine.ok("capkeep", "apply")
    machine.ok("capkeep", "run")
    machine.ok("capkeep", "remove")
    assert "capkeep" not in machine.read("/etc/passwd")


def test_exposure_is_what_is_promised(machine: Machine) -> None:
    applied(machine, 'schedule = ["03:00"]\n')
    names = machine.ok("sh", "-c", "cd /etc/systemd/system; ls -d capkeep-*@.service").split()
    exposures = {name: exposure(machine, name) for name in names}
    readers = [value for name, value in exposures.items() if "-reader-" in name]
    assert readers
    assert max(readers) <= MOST[machine.suite]
    assert max(exposures.values()) <= 1.0, exposures


def exposure(machine: Machine, name: str) -> float:
    """`systemd-analyze security` of a unit file: 0 for what can do nothing, 10 for root."""
    said = machine.ok(
        "systemd-analyze", "security", "--offline=true", "--no-pager",
        f"/etc/systemd/system/{name}",
    )  # fmt: skip
    (line,) = [line for line in said.splitlines() if "Overall exposure level" in line]
    return float(line.rpartition(": ")[2].split()[0])


@pytest.mark.parametrize("step", ["capkeep-runner.socket", "capkeep-keeper-local.socket"])
def test_an_apply_that_systemd_fails_takes_everything_back(machine: Machine, step: str) -> None:
    configure(machine)
    before = machine.inventory()
    # Something else listens there: the socket unit cannot start.
    path = "/run/capkeep/run.sock" if "runner" in step else "/run/capkeep/keeper-local.sock"
    machine.ok(
        "systemd-run",
        "--unit=squatter",
        "python3",
        "-c",
        f"""
import os, socket, time
os.makedirs("/run/capkeep", exist_ok=True)
os.mkdir("{path}")
open("{path}/in-the-way", "w").close()
time.sleep(1000)
""",
    )
    machine.wait(lambda: machine.run("test", "-e", path).code == 0, 10)
    refused = machine.run("capkeep", "apply")
    assert refused.code != 0
    assert step in refused.err
    own = (*inventory.SYSTEMD_OWN, *USERS_OWN)
    assert inventory.differences(before, machine.inventory(), own) == []
    assert machine.ok("systemctl", "list-units", "--all", "--quiet", "capkeep-*.socket") == ""
