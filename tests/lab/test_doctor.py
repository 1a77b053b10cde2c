"""`capkeep doctor` on hosts that systemd runs, before anything was configured and with what is lost."""

import json

from capkeep.kernel import landlock
from tests.lab import trees
from tests.lab.machine import Machine
from tests.lab.scenes import configure

RESTIC = "/usr/bin/restic"


def doctor(machine: Machine, code: int) -> dict[str, dict[str, object]]:
    """What is said of each way."""
    done = machine.run("capkeep", "doctor", "--json")
    assert done.code == code, done
    said = json.loads(done.out)
    assert said["used"] == "systemd"
    return {way["way"]: way for way in said["ways"]}


def notes(way: dict[str, object]) -> str:
    remarks = way["remarks"]
    assert isinstance(remarks, list)
    return "\n".join(r["text"] for r in remarks)


def test_what_a_debian_host_has_to_give(machine: Machine) -> None:
    found = doctor(machine, 0)
    states = {name: way["state"] for name, way in found.items()}
    launchers = "works" if landlock.abi() else "does not work"
    assert states == {
        "systemd": "works", "doors": "works", "launcher": launchers, "user": "works",
        "file capability": "works", "pam_cap": "does not work",
    }  # fmt: skip
    reasons = found["pam_cap"]["reasons"]
    assert isinstance(reasons, list)
    assert "apt-get install libpam-cap" in {r["mend"] for r in reasons}
    assert "restic" not in notes(found["file capability"])

    # What the note says of an upgrade is so.
    machine.ok("setcap", "cap_dac_read_search=ep", RESTIC)
    said = notes(doctor(machine, 0)["file capability"])
    assert f"{RESTIC} has CAP_DAC_READ_SEARCH now" in said
    assert "the next upgrade of restic takes it away" in said
    machine.ok("sh", "-c", f"dpkg -i {trees.PACKAGED}/restic_*.deb")
    assert RESTIC not in notes(doctor(machine, 0)["file capability"])

    configure(machine)
    machine.ok("capkeep", "apply")
    found = doctor(machine, 0)
    left_out = "left out: PrivateUsers" in notes(found["systemd"])
    assert left_out == (machine.suite == "bookworm")
    machine.ok("useradd", "-m", "alice")
    done = machine.run("capkeep", "doctor", user="alice")
    assert done.code == 0, done
    assert "systemd: works  (used here)" in done.out and "may not try it" in done.out
