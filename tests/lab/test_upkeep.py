"""Comparison, check and retention where systemd starts the rooms."""

import json

from tests.lab.machine import Machine
from tests.lab.scenes import applied, messages

TABLES = """
[jobs.system.check]
read-data = "all"

[jobs.system.retention]
keep-last = 2
trust-clock = true
"""


def test_a_run_is_followed_by_what_the_configuration_asks(machine: Machine) -> None:
    applied(machine, TABLES)
    for number in range(3):
        machine.write("/srv/data/word", f"{number}\n", 0o600)
        done = machine.run("capkeep", "--json", "run", seconds=120)
        assert done.code == 0, done
    told = messages(done)
    ended = {m["kind"]: m["outcome"] for m in told if m["event"] == "step-end"}
    kinds = ("backup", "diff", "check", "retention")
    assert ended == dict.fromkeys(kinds, "complete")
    assert all(m["weaker"] == [] for m in told if m["event"] == "proof")
    (listed,) = json.loads(machine.ok("capkeep", "--json", "snapshots"))
    assert len(listed["snapshots"]) == 2
    assert "2 snapshots stay, 1 were removed" in machine.ok("capkeep", "status")
    assert machine.ok("ls", "/srv/repo/locks") == ""
    machine.ok("capkeep", "check", "--job", "system")
