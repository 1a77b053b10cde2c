"""Keys and resources where systemd starts the rooms: what the kernel and the journal say."""

import json

from tests.lab.machine import Machine
from tests.lab.scenes import JOB, applied, configure

LIMITS = """\
nice = 7
io-class = "best-effort"
io-priority = 6
cpu-limit = "50%"
memory-limit = "1GiB"
"""
BIG = "dd if=/dev/urandom of=/srv/data/big bs=1M count=300 status=none"
# What the kernel says of the reader's control group and of the engine in it, while it works.
LOOK = """
for _ in $(seq 200); do
  for group in $(find /sys/fs/cgroup -type d -name '*reader-system-local@*.service'); do
    for pid in $(cat "$group/cgroup.procs"); do
      case "$(readlink /proc/$pid/exe)" in */restic)
        echo "$(cat "$group/cpu.max") / $(cat "$group/memory.max") / $(cut -d' ' -f19 /proc/$pid/stat) / $(ionice -p $pid)"
        exit 0;;
      esac
    done
  done
  sleep 0.05
done
exit 1
"""
SECRETS = ("an added one", "a chosen one", "a given one")


def test_resources_are_the_control_groups(machine: Machine) -> None:
    applied(machine, job=JOB + LIMITS)
    machine.ok("sh", "-c", BIG)
    machine.ok("sh", "-c", "capkeep run >/tmp/said 2>&1 &")
    quota, memory, nice, turn = machine.ok("sh", "-c", LOOK, seconds=60).strip("\n").split(" / ")
    assert (nice, turn) == ("7", "best-effort: prio 6")
    # A host whose own control groups are not unified has no quota to give: systemd asks for it.
    controllers = machine.read("/sys/fs/cgroup/cgroup.controllers").split()
    assert quota == ("50000 100000" if "cpu" in controllers else "")
    assert memory == ("1073741824" if "memory" in controllers else "")
    asked = machine.ok("sh", "-c", "systemctl show 'capkeep-reader-system-local@*' -p MemoryMax"
                       " -p CPUQuotaPerSecUSec")  # fmt: skip
    assert asked.split() == ["CPUQuotaPerSecUSec=500ms", "MemoryMax=1073741824"]


def test_keys_are_worked_on_and_leave_no_trace(machine: Machine) -> None:
    applied(machine)
    made = json.loads(machine.ok("sh", "-c", "cat /srv/repo/keys/*"))  # one, of a random password
    assert (made["N"], made["username"]) == (1 << 10, "capkeep")
    machine.ok("sh", "-c", "echo an added one | capkeep key add local")
    assert len(json.loads(machine.ok("capkeep", "--json", "key", "list", "local"))) == 2
    machine.ok("sh", "-c", "echo a chosen one | capkeep key rotate local --password-file -")
    assert machine.read("/etc/capkeep/secrets/local") == "a chosen one\n"
    machine.ok("capkeep", "run")
    machine.ok("capkeep", "key", "export", "local", "--output", "/root/sheet")
    assert machine.run("capkeep", "status").out.count("exported") == 0
    machine.ok("capkeep", "audit", seconds=120)
    _no_trace(machine)


def test_a_containers_secret_reaches_its_room_alone(machine: Machine) -> None:
    configure(machine)
    machine.ok("mkdir", "-p", "/run/secrets")
    machine.write("/run/secrets/offsite", "a given one\n", 0o400)
    text = machine.read("/etc/capkeep/capkeep.toml")
    text = text.replace('{ file = "/etc/capkeep/secrets/local" }', '{ credential = "offsite" }')
    machine.write("/etc/capkeep/capkeep.toml", text)
    machine.ok("capkeep", "apply")
    machine.ok("capkeep", "init")
    machine.ok("capkeep", "run")
    assert machine.run("capkeep", "key", "rotate", "local").code == 4
    _no_trace(machine)


def _no_trace(machine: Machine) -> None:
    """In units, the journal, the plan, records, logs, caches, or what systemd tells everybody."""
    words = [word for secret in SECRETS for word in ("-e", secret)]
    units = machine.ok("systemctl", "show", "capkeep-*")
    journal = machine.journal()
    for secret in SECRETS:
        assert secret not in units
        assert secret not in journal
    places = ("/etc/systemd", "/var/lib/capkeep", "/var/lib/systemd", "/var/cache", "/var/log", "/run/systemd", "/run/capkeep",
              "/tmp", "/var/tmp", "/srv/repo")  # fmt: skip
    found = machine.run("grep", "-rlaF", *words, "--", *places)
    assert found.out == "", found
