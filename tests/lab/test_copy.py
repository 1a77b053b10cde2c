"""Copies where systemd starts the rooms, and by their own timer."""

import json

from tests.lab.machine import Machine
from tests.lab.scenes import applied, messages

COPIES = """
[repositories.second]
engine = "restic"
location = "/srv/second"
password = { file = "/etc/capkeep/secrets/second" }

[jobs.system.copies]
into = ["second"]
schedule = ["Sun 06:00"]
"""


def test_a_copier_is_a_unit_with_two_vaults(machine: Machine) -> None:
    machine.ok("install", "-d", "-m", "700", "/etc/capkeep/secrets")
    machine.write("/etc/capkeep/secrets/second", "another one\n", 0o600)
    applied(machine, COPIES)
    machine.ok("capkeep", "run")
    assert "capkeep-copy-system.timer" in machine.ok("systemctl", "list-timers")
    machine.ok("systemctl", "start", "capkeep-copy-system.service")
    assert "copy of system: complete" in machine.journal("capkeep-copy-system.service")
    done = machine.run("capkeep", "--json", "copy", seconds=60)
    assert done.code == 0, done
    told = messages(done)
    assert all(m["weaker"] == [] for m in told if m["event"] == "proof")
    proven = {(m["room"], m["process"]) for m in told if m["event"] == "proof"}
    assert {("copier-system-second", "engine"), ("vault-local", "origin")} <= proven
    copied = next(m for m in told if m["event"] == "step-end")
    assert "0 snapshots were copied; 1 of the 1 in local" in str(copied["text"]), copied
    (found,) = json.loads(machine.ok("capkeep", "--json", "snapshots", "second"))
    assert len(found["snapshots"]) == 1
    assert machine.ok("find", "/srv/repo/locks", "/srv/second/locks", "-type", "f") == ""
    assert machine.ok("systemctl", "--failed", "--quiet") == ""
    audit = machine.run("capkeep", "audit", seconds=60)
    assert audit.code == 0, audit
