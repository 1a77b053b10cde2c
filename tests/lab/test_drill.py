"""Drills where systemd starts the rooms, and by their own timer."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.attack import hostile_dump
from tests.lab import inventory
from tests.lab.machine import Machine
from tests.lab.scenes import applied, messages
from tests.lab.test_life import USERS_OWN

DRILL = """
[jobs.system.drill]
schedule = []
sample = 50
always = ["/etc/shadow", "/etc/passwd"]
"""


def test_a_timer_proves_a_whole_system_and_nothing_of_it_stays(machine: Machine) -> None:
    before = machine.inventory()
    applied(machine, DRILL)
    machine.ok("sh", "-c", "echo x >/srv/data/owned; chown 1000:33 /srv/data/owned;"
               " chmod 6750 /srv/data/owned")  # fmt: skip
    machine.ok("capkeep", "run")
    done = machine.run("capkeep", "--json", "drill", "--all", seconds=200)
    assert done.code == 0, done
    told = messages(done)
    assert all(m["weaker"] == [] for m in told if m["event"] == "proof")
    (part,) = [m["facts"] for m in told if m["event"] == "part"]
    assert isinstance(part, dict)
    # Everything, directories too, has come back with its owner; nothing is left out but sockets.
    assert part["apart"] == {}, part
    assert part["entries"] == part["held"]["entries"]
    assert part["live"]["same"] > 500, part
    config = machine.ok("cat", "/etc/capkeep/capkeep.toml")
    machine.write(
        "/etc/capkeep/capkeep.toml", config.replace("schedule = []", 'schedule = ["*:*:0/5"]')
    )
    machine.ok("capkeep", "apply")

    def proven() -> int:
        found = json.loads(machine.run("capkeep", "--json", "status").out)["drills"]
        assert found[0]["passed"], found
        return int(found[0]["days_30"]["drills"])

    machine.wait(lambda: proven() >= 2, 40)
    assert "complete" in machine.journal("capkeep-drill-system.service")
    assert (
        machine.ok("sh", "-c", "ls /var/cache/capkeep/prover-local | grep restored || true") == ""
    )
    assert machine.ok("systemctl", "--failed", "--quiet") == ""
    assert machine.run("capkeep", "audit").code == 0
    machine.ok("capkeep", "remove", "--delete-data")
    own = (
        *inventory.SYSTEMD_OWN,
        *USERS_OWN,
        "/srv",
        "/etc/capkeep",
        "/etc/subuid-",
        "/etc/subgid-",
    )
    left = inventory.differences(before, machine.inventory(), own)
    assert not [line for line in left if "subuid" in line or "subgid" in line], left


PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
DUMPED = """
[jobs.system]
repositories = ["local"]
include = ["/etc", "/srv/data"]
dumps = ["postgresql"]
[jobs.system.drill]
schedule = []
"""
SHOP = """
CREATE ROLE clerk;
CREATE TABLE goods (id int PRIMARY KEY, name text);
INSERT INTO goods SELECT n, 'thing ' || n FROM generate_series(1, 5000) AS n;
"""


def install_postgresql(machine: Machine) -> bool:
    """This host's own PostgreSQL, with the libraries that it needs; whether it runs there.

    Programs of a newer Debian than the machine's do not. No room sees what is beside /usr.
    """
    machine.ok("useradd", "--system", "--home-dir=/nonexistent", "postgres")
    root = machine.tree
    version = PROGRAMS.parent.name
    kinds = shutil.ignore_patterns("bitcode", "llvmjit*", "man")
    for path in (
        PROGRAMS.parent,
        Path("/usr/share/postgresql", version),
        Path("/usr/share/zoneinfo"),
    ):
        if not Path(f"{root}{path}").exists():
            shutil.copytree(path, f"{root}{path}", ignore=kinds, symlinks=True)
    listed = [
        PROGRAMS / n for n in ("postgres", "initdb", "psql", "pg_dump", "pg_dumpall", "pg_restore")
    ]
    said = subprocess.run(["ldd", *listed], capture_output=True, text=True, timeout=30, check=True)
    for library in set(re.findall(r"=> (/\S+)", said.stdout)):
        place = Path(f"{root}/usr/lib/{Path(library).parent.name}/{Path(library).name}")
        if not place.exists():
            shutil.copy(library, place)
    return machine.run(str(PROGRAMS / "postgres"), "--version").code == 0


def test_systemd_s_prover_loads_a_dump_and_holds_a_hostile_one(machine: Machine) -> None:
    if not install_postgresql(machine):
        pytest.skip(f"this host's PostgreSQL is too new for {machine.suite}")
    as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
    machine.ok("install", "-d", "-o", "postgres", "-m", "700", "/srv/pg")
    machine.ok("install", "-d", "-o", "postgres", "/run/postgresql")
    machine.ok(*as_postgres, str(PROGRAMS / "initdb"), "-D", "/srv/pg", "--auth=peer", "--no-sync")
    machine.ok("systemd-run", "--unit=server", *as_postgres, str(PROGRAMS / "postgres"),
               "-D", "/srv/pg", "-k", "/run/postgresql", "-c", "listen_addresses=", "-c", "fsync=off")  # fmt: skip

    def ask(question: str) -> None:
        machine.ok(*as_postgres, str(PROGRAMS / "psql"), "-h", "/run/postgresql", "-qX",
                   "-v", "ON_ERROR_STOP=1", "postgres", input=question)  # fmt: skip

    machine.wait(lambda: machine.run("test", "-S", "/run/postgresql/.s.PGSQL.5432").code == 0)
    machine.wait(lambda: machine.run(*as_postgres, str(PROGRAMS / "pg_isready"), "-h",
                                     "/run/postgresql").code == 0)  # fmt: skip
    ask(SHOP)
    machine.ok("install", "-d", "/etc/capkeep/conf.d")
    machine.write("/etc/capkeep/conf.d/dumps.toml", "[dumps.postgresql]\n")
    applied(machine, job=DUMPED)
    machine.ok("capkeep", "run", seconds=120)
    done = machine.run("capkeep", "--json", "drill", seconds=200)
    assert done.code == 0, done
    told = messages(done)
    assert all(m["weaker"] == [] for m in told if m["event"] == "proof")
    assert "server" in {m["process"] for m in told if m["event"] == "proof"}
    (part,) = [m["facts"] for m in told if m["event"] == "part"]
    assert isinstance(part, dict)
    assert (part["dumps"]["databases"], part["dumps"]["rows"]) == (1, 5000), part
    assert machine.run("capkeep", "audit", seconds=120).code == 0
    ask(hostile_dump.postgresql())
    machine.ok("capkeep", "run", seconds=120)
    done = machine.run("capkeep", "--json", "drill", seconds=200)
    assert done.code == 19, done
    (part,) = [m["facts"] for m in messages(done) if m["event"] == "part"]
    assert isinstance(part, dict)
    (text,) = [text for _, text in part["differences"]]
    assert text.endswith(hostile_dump.HELD), text
    assert machine.ok("systemctl", "--failed", "--quiet") == ""
    cache = machine.ok("stat", "-c", "%a %G", "/var/cache/capkeep/prover-local").split()
    assert cache == ["700", "capkeep-prover"]
    assert "hostile" not in machine.ok(
        "sh",
        "-c",
        "ps -e -o args= | grep -c '[s]leep(3600)' || true; ls /var/cache/capkeep/prover-local",
    )
