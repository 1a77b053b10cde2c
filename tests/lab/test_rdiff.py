"""rdiff-backup where systemd starts the rooms, as each Debian has it."""

import json
from pathlib import Path

import pytest

from tests.lab.machine import Machine
from tests.lab.scenes import JOB, last

HOSTILE = Path(__file__).parents[1] / "attack" / "rdiff_owner.py"
REPOSITORY = """\
[repositories.local]
engine = "rdiff-backup"
location = "/srv/repo"
"""


@pytest.mark.timeout(300)
def test_a_mirror_of_a_system(machine: Machine) -> None:
    machine.write("/etc/capkeep/capkeep.toml", REPOSITORY + JOB + "drill = {}\n")
    machine.write("/srv/data/word", "kept\n", 0o600)
    machine.ok("install", "-d", "-o", "1000", "-g", "1000", "-m", "700", "/home/hers")
    machine.ok("setfattr", "-n", "user.note", "-v", "kept", "/srv/data/word")
    machine.ok("setfacl", "-m", "u:1234:r", "/srv/data/word")
    machine.ok("capkeep", "apply")
    machine.ok("capkeep", "init")
    machine.ok("capkeep", "run")
    assert last(machine)["state"] == "fresh"
    assert machine.read("/srv/repo/srv/data/word") == "kept\n"
    machine.write("/srv/data/word", "changed\n", 0o600)
    machine.ok("capkeep", "run")
    found = json.loads(machine.ok("capkeep", "snapshots", "--json"))[0]["snapshots"]
    first, second = (s["id"] for s in found)
    assert "/srv/data/word" in machine.ok("capkeep", "diff", first, second)
    machine.ok("capkeep", "check", "--read-data", "all", seconds=100)
    machine.ok("capkeep", "restore", first, "/srv/data", "/etc", "/home", "--to", "/root/back")
    assert machine.read("/root/back/srv/data/word") == "kept\n"
    shown = machine.ok("getfacl", "--absolute-names", "--numeric", "/root/back/srv/data/word")
    assert "user:1234:r--" in shown
    assert "user.note" in machine.ok("getfattr", "--absolute-names", "/root/back/srv/data/word")
    assert machine.ok("stat", "-c", "%u %g %a", "/root/back/home/hers") == "1000 1000 700\n"
    different = machine.run("diff", "-r", "--no-dereference", "/etc", "/root/back/etc").out
    assert different == "Only in /etc/capkeep: secrets\n"  # never in a reader
    drilled = machine.ok("capkeep", "drill", seconds=110)
    assert "as in the snapshot" in drilled, drilled
    audit = machine.run("capkeep", "audit")
    assert audit.code == 0, audit
    _with_owners(machine)


def _with_owners(machine: Machine) -> None:
    """The same repository, whose files belong to their owners from now on, and a hostile vault of it."""
    owned = REPOSITORY + 'owners = "names"\n'
    machine.write("/etc/capkeep/capkeep.toml", owned + JOB)
    machine.ok("chown", "1234:1234", "/srv/data/word")
    machine.ok("capkeep", "apply")
    machine.ok("capkeep", "run")
    shown = machine.ok("stat", "-c", "%u %g %a", "/srv/repo/home/hers", "/srv/repo/srv/data/word")
    assert shown == "1000 1000 700\n1234 1234 600\n"
    acl = machine.ok("getfacl", "--absolute-names", "--numeric", "/srv/repo/srv/data/word")
    assert "user:1234:r--" in acl
    machine.ok("capkeep", "restore", "latest", "/srv/data", "--to", "/root/owned")
    audit = machine.run("capkeep", "audit")
    assert audit.code == 0, audit
    assert "to their owners with CHOWN DAC_OVERRIDE FOWNER" in audit.out

    program = "/opt/hostile"
    machine.write(program, f"#!/usr/bin/python3 {program}\n{HOSTILE.read_text()}", 0o755)
    machine.write("/srv/repo/port", "9")
    machine.write(
        "/etc/capkeep/capkeep.toml", f'{owned}[engines.rdiff-backup]\nprogram = "{program}"\n{JOB}'
    )
    machine.ok("capkeep", "apply")
    machine.run("script", "-qc", "capkeep check", "/dev/null")  # so that there is a terminal
    said = json.loads(machine.read("/srv/repo/results"))
    done = {name for name, what in said.items() if what == "done"}
    assert done <= {"change /proc"}, "which is a file system of the room's own"
    assert len(said) > 35
    assert machine.ok("stat", "-c", "%u %g %a", "/srv/repo/anybodys") == "12345 23456 400\n"
    assert machine.ok("stat", "-c", "%u %a", "/proc", "/dev/null") == "0 555\n0 666\n"
    assert machine.ok("find", "/srv/repo", "-perm", "/6000", "-o", "-type", "b") == ""
    assert "capable" not in machine.ok("getcap", "-r", "/srv/repo")
