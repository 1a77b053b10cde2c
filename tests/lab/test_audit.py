"""`capkeep audit` on hosts that systemd runs: what is wrong is named, and what it says mends it."""

import json

from tests.lab.machine import Machine
from tests.lab.scenes import applied

FINDINGS = 7
WEAKENED = 18
UNITS = "/etc/systemd/system"
READER = "capkeep-reader-system-local@.service"
ADMIN = "capkeep-vault-local-admin@.service"
KEEPER = "capkeep-keeper-local@.service"
TIMER = "capkeep-run-system.timer"
SCHEDULE = 'schedule = ["03:00"]\n'

# systemd as it is in some containers, where making a network namespace is refused: unshare(2) with
# CLONE_NEWNET fails. As a filter of its own it is handed on to everything on the machine.
SYSTEMD = "/usr/lib/systemd/systemd"
REFUSING = f"""\
#!/usr/bin/python3
import ctypes, os, platform, struct, sys
unshare = {{"x86_64": 272, "aarch64": 97}}[platform.machine()]
code = b"".join(struct.pack("HBBI", *line) for line in (
    (0x20, 0, 0, 0), (0x15, 0, 3, unshare),  # the number of the system call
    (0x20, 0, 0, 16), (0x45, 0, 1, 0x40000000),  # its flags
    (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000),  # EPERM, or go on
))
held = ctypes.create_string_buffer(code, len(code))
head = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
ctypes.CDLL(None).prctl(22, 2, ctypes.create_string_buffer(head, len(head)), 0, 0)
os.execv("{SYSTEMD}.real", sys.argv)
"""


def audit(machine: Machine) -> dict[str, list[dict[str, object]]]:
    done = machine.run("capkeep", "--json", "audit")
    assert done.code in (0, FINDINGS), done
    said = json.loads(done.out)
    assert isinstance(said, dict)
    assert (done.code == FINDINGS) == bool(said["findings"])
    return said


def named(said: dict[str, list[dict[str, object]]]) -> set[tuple[str, str]]:
    return {(str(f["kind"]), str(f["what"])) for f in said["findings"]}


def test_what_is_wrong_is_named_and_mended_by_what_the_audit_says(machine: Machine) -> None:
    applied(machine, SCHEDULE)
    machine.ok("capkeep", "run")
    said = audit(machine)
    assert said["findings"] == []
    proven = {(r["room"], r["process"]) for r in said["rooms"]}
    assert {("runner", "room"), ("reader-system-local", "engine"), ("keeper-local", "engine"),
            ("vault-local for reader-system-local", "vault")} <= proven  # fmt: skip

    machine.write(f"{UNITS}/{READER}.d/weak.conf", "[Service]\nPrivateNetwork=no\n")
    machine.write(f"{UNITS}/{KEEPER}.d/nice.conf", "[Service]\nCPUWeight=20\n")
    machine.ok("systemctl", "disable", "--now", TIMER)
    machine.ok("systemctl", "stop", "capkeep-vault-local-admin.socket")
    machine.ok("setcap", "cap_dac_read_search=ep", "/usr/bin/restic")
    machine.ok("chmod", "o+w", "/usr/bin/restic")
    machine.ok("chmod", "644", "/etc/capkeep/secrets/local")
    machine.ok("chmod", "755", "/var/cache/capkeep/keeper-local")
    machine.ok("rm", f"{UNITS}/{ADMIN}")
    machine.ok("userdel", "capkeep-viewer")
    machine.ok("systemctl", "daemon-reload")
    machine.ok("sh", "-c", f"echo '# edited' >>{UNITS}/capkeep-keeper-local.socket")

    said = audit(machine)
    expected = {
        ("drop-in", READER), ("weaker", "reader-system-local (room)"), ("unit", TIMER),
        ("unit", "capkeep-vault-local-admin.socket"), ("program", "/usr/bin/restic"),
("secret", "/etc/capkeep/secrets/local"),
        ("drift", "/var/cache/capkeep/keeper-local"), ("drift", f"{UNITS}/{ADMIN}"),
        ("unit", ADMIN), ("drift", "user capkeep-viewer"),
        ("drift", f"{UNITS}/capkeep-keeper-local.socket"),
        ("reload", "capkeep-keeper-local.socket"),
        ("probe", "keeper-local"),
    }  # fmt: skip
    assert named(said) >= expected
    weak = [str(f["text"]) for f in said["findings"] if f["kind"] == "weaker"]
    assert weak and all("(PrivateNetwork= was not applied)" in text for text in weak)
    assert all(
        f["mend"] == f"systemctl revert {READER}" for f in said["findings"] if f["kind"] == "weaker"
    )
    assert [text for text in said["exceptions"] if "nice.conf, which sets CPUWeight" in str(text)]

    commands = dict.fromkeys(str(f["mend"]) for f in said["findings"] if f["kind"] != "probe")
    for command in sorted(commands, key="capkeep apply".__eq__):  # that one last
        machine.ok("sh", "-c", command)
    assert audit(machine)["findings"] == []
    machine.ok("capkeep", "run")


def test_a_masked_unit_and_one_that_has_failed(machine: Machine) -> None:
    applied(machine, SCHEDULE)
    machine.ok("systemctl", "stop", "capkeep-runner.socket")
    machine.ok("ln", "-sf", "/dev/null", f"{UNITS}/capkeep-runner.socket")
    # A path that cannot be listened on: systemd gives the socket up.
    machine.ok("systemctl", "stop", "capkeep-keeper-local.socket")
    machine.ok("rm", "-f", "/run/capkeep/keeper-local.sock")
    machine.ok("mkdir", "-p", "/run/capkeep/keeper-local.sock/in-the-way")
    machine.ok("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "capkeep-keeper-local.socket")
    said = audit(machine)
    texts = {str(f["what"]): str(f["text"]) for f in said["findings"] if f["kind"] == "unit"}
    assert texts["capkeep-runner.socket"] == "is masked"
    assert "has failed" in texts["capkeep-keeper-local.socket"]
    machine.ok("rm", "-r", "/run/capkeep/keeper-local.sock")
    for finding in said["findings"]:
        if finding["kind"] == "unit":
            machine.ok("sh", "-c", str(finding["mend"]))
    assert audit(machine)["findings"] == []


def test_a_backup_under_way_is_not_disturbed(machine: Machine) -> None:
    applied(machine)
    machine.ok("sh", "-c", "dd if=/dev/urandom of=/srv/data/big bs=1M count=400 status=none")
    machine.ok("systemd-run", "--unit=first", "-r", "capkeep", "run")
    machine.wait(lambda: machine.run("pgrep", "-x", "restic").code == 0, 20)
    said = audit(machine)
    assert said["findings"] == []
    assert "reader-system-local is in use, and was not looked at" in said["exceptions"]
    machine.wait(
        lambda: (
            machine.run("systemctl", "is-active", "first").out.strip() == "active"
            and "exited" in machine.ok("systemctl", "show", "-P", "SubState", "first")
        ),
        60,
    )
    assert machine.ok("systemctl", "show", "-P", "ExecMainStatus", "first").strip() == "0"


def test_what_systemd_leaves_out_in_silence_ends_the_run_by_name(machine: Machine) -> None:
    applied(machine)
    machine.ok("cp", "-p", SYSTEMD, f"{SYSTEMD}.real")
    machine.shutdown()
    (machine.tree / SYSTEMD[1:]).unlink()
    machine.write(SYSTEMD, REFUSING, 0o755)
    machine.boot()

    done = machine.run("capkeep", "run")
    assert done.code == WEAKENED, done
    assert "the net namespace is the host's (PrivateNetwork= was not applied)" in done.err
    assert "proven" not in done.out
    said = audit(machine)
    weak = {str(f["what"]) for f in said["findings"]}
    assert weak == {"runner (room)", "reader-system-local (room)", "keeper-local (room)"}
    done = machine.run("capkeep", "doctor")
    assert done.code == 1, done
    assert "systemd: does not work  (used here)" in done.out
    assert "systemd said of a unit when rooms last started: PrivateNetwork=yes" in done.out
    assert not [
        r for r in said["rooms"] if r["process"] == "engine" and r["room"] == "keeper-local"
    ]

    config = machine.read("/etc/capkeep/capkeep.toml")
    accept = '\n[host]\naccept-missing = ["PrivateNetwork"]\n'
    machine.write("/etc/capkeep/capkeep.toml", config + accept)
    assert named(audit(machine)) >= {("plan", "/var/lib/capkeep/plan.json")}
    machine.ok("capkeep", "apply")
    done = machine.run("capkeep", "run")
    assert done.code == 0, done
    told = machine.ok("capkeep", "log")
    for room in ("runner", "reader-system-local", "vault-local"):
        assert f"{room}: the net namespace is the host's; accept-missing allows it" in told
    said = audit(machine)
    assert said["findings"] == []
    assert "[host] accept-missing allows rooms without PrivateNetwork" in said["exceptions"]
    assert "systemd: works  (used here)" in machine.ok("capkeep", "doctor")
    assert any(r["accepted"] for r in said["rooms"])


def test_a_wrong_directive_alone_is_accepted(machine: Machine) -> None:
    """What is accepted by one name does not excuse what another one gives."""
    accept = '\n[host]\naccept-missing = ["PrivateNetwork"]\n'
    applied(machine, accept)
    drop_in = "[Service]\nPrivateNetwork=no\nPrivateIPC=no\nProcSubset=all\n"
    machine.write(f"{UNITS}/{READER}.d/weak.conf", drop_in)
    machine.ok("systemctl", "daemon-reload")
    done = machine.run("capkeep", "run")
    assert done.code == WEAKENED, done
    assert "PrivateIPC= was not applied" in done.out + done.err
    assert "ProcSubset= was not applied" in done.out + done.err
    assert "PrivateNetwork= was not applied" not in done.out + done.err
