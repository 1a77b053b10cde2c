"""A day's schedule in a minute: each run happens once, and one that does not happen is told of once."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.lab import metered
from tests.lab.machine import Machine
from tests.lab.scenes import applied, configure, last
from tests.lab.test_notified import asked, receiver

SMALL: Final = """
[jobs.system]
repositories = ["local"]
include = ["/srv/data"]
schedule = {schedule}
{more}
"""
PATIENCE: Final = '\n[watch]\nevery = "3s"\ngrace = "{}s"\n'
BREAK: Final = "[Unit]\nConditionPathExists=/nowhere\n"
TIMER: Final = "capkeep-run-system.timer"


def scheduled(machine: Machine, *times: str, more: str = "", grace: int = 8) -> None:
    """A host whose job runs by itself, and on which nobody waits long for it."""
    applied(machine, job=SMALL.format(schedule=[], more=more))
    give(machine, *times, more=more, grace=grace)


def give(machine: Machine, *times: str, more: str = "", grace: int = 8) -> None:
    """Another schedule."""
    configure(
        machine, PATIENCE.format(grace), job=SMALL.format(schedule=json.dumps(times), more=more)
    )
    machine.ok("capkeep", "apply")


def runs(machine: Machine) -> list[dict[str, object]]:
    """The backups of the record, the first one first."""
    found = json.loads(machine.ok("capkeep", "--json", "history", "--limit", "500"))
    return [r for r in reversed(found) if r["action"] == "backup"]


def due_times(found: list[dict[str, object]], step: int) -> list[int]:
    """The times of a schedule at which these runs began, or should have begun."""
    return [int(float(str(r["started"])) // step * step) for r in found]


def test_a_days_runs_happen_once_each(machine: Machine) -> None:
    scheduled(machine, "*:*:0/10", "*:*:0/20", "*:*:30")  # the second and third add nothing
    time.sleep(65)
    machine.ok("systemctl", "stop", TIMER)
    stopped = time.time()
    machine.wait(lambda: last(machine)["running"] is None)
    # What is due from now on does not happen, and is told of.
    found = [r for r in runs(machine) if float(str(r["started"])) < stopped]
    begun = due_times(found, 10)
    assert begun == list(range(begun[0], begun[-1] + 10, 10))
    assert len(begun) >= 6
    assert {r["outcome"] for r in found} == {"complete"}
    assert {r["trigger_user"] for r in found} == {"capkeep"}
    for run, due in zip(found, begun, strict=True):
        assert float(str(run["started"])) - due < 5


def test_a_run_that_cannot_begin_is_missed_once(machine: Machine) -> None:
    grace = 8
    scheduled(machine, "*:*:0/20", grace=grace)
    machine.wait(lambda: runs(machine), 60)
    path = "/run/systemd/system/capkeep-runner.socket.d/broken.conf"
    breaking = time.time()
    machine.write(path, BREAK)
    machine.ok("systemctl", "daemon-reload")
    machine.ok("systemctl", "stop", "capkeep-runner.socket")
    broken = time.time()
    machine.wait(lambda: last(machine)["state"] == "missed", 90)
    assert machine.run("capkeep", "status").code == 1
    assert "it was due at" in machine.run("capkeep", "status").out
    time.sleep(12)  # several more looks
    mending = time.time()
    machine.ok("rm", path)
    machine.ok("systemctl", "daemon-reload")
    machine.ok("systemctl", "start", "capkeep-runner.socket")
    mended = time.time()
    machine.wait(lambda: last(machine)["state"] == "fresh", 90)
    time.sleep(8)
    found = runs(machine)
    missed = [r for r in found if r["outcome"] == "missed"]
    # What is due while it breaks may still happen, and what was given up last may be made up for.
    assert set(dues(broken, mending - grace)) <= set(due_times(missed, 20))
    assert set(due_times(missed, 20)) <= set(dues(breaking, mended))
    assert len(missed) >= 1
    assert machine.journal("capkeep-watch.service").count("did not begin") == len(missed)
    times = due_times(found, 20)
    assert len(times) == len(set(times)), "no time has two runs, or a run and a missed one"
    assert machine.run("capkeep", "status").code == 0


def dues(since: float, until: float, step: int = 20) -> range:
    """The times of a schedule after one time and up to another."""
    return range(int(since) // step * step + step, int(until) + 1, step)


def test_what_was_due_while_the_machine_was_off_is_made_up_for_once(machine: Machine) -> None:
    scheduled(machine)
    due = int(time.time()) + 30
    at = datetime.fromtimestamp(due, UTC)
    give(machine, f"{at:%H:%M:%S} UTC", grace=30)
    assert runs(machine) == []
    machine.shutdown()
    assert time.time() < due, "this host is too slow for this test"
    time.sleep(max(0, due + 3 - time.time()))
    machine.boot()
    booted = time.time()
    machine.wait(lambda: any(r["ended"] for r in runs(machine)), 40)
    time.sleep(8)
    (run,) = runs(machine)
    assert run["outcome"] == "complete"
    assert abs(float(str(run["started"])) - booted) < 20
    assert "did not begin" not in machine.journal("capkeep-watch.service")
    machine.shutdown()
    machine.boot()
    time.sleep(6)
    assert len(runs(machine)) == 1


def test_on_battery_a_run_is_left_out_and_not_missed(machine: Machine) -> None:
    supply = "/sys/class/power_supply"
    machine.ok("mount", "-t", "tmpfs", "supplies", supply)
    for name, text in (("type", "Battery"), ("status", "Discharging")):
        machine.write(f"{supply}/BAT0/{name}", f"{text}\n")
    scheduled(machine, "*:*:0/10")
    machine.wait(lambda: "skip-backup" in machine.ok("capkeep", "history"), 30)
    time.sleep(15)
    assert runs(machine) == []
    skipped = json.loads(machine.ok("capkeep", "--json", "history"))
    assert {(r["outcome"], r["text"]) for r in skipped if r["action"] != "init"} == {
        ("skipped", "on battery")
    }
    machine.write(f"{supply}/BAT0/status", "Charging\n")
    machine.wait(lambda: any(r["ended"] for r in runs(machine)), 40)
    assert runs(machine)[0]["outcome"] == "complete"


def test_over_a_metered_network_only_remote_repositories_wait(machine: Machine) -> None:
    far = """
[repositories.far]
engine = "restic"
location = "rest:http://127.0.0.1:1/"
password = { file = "/etc/capkeep/secrets/local" }
[jobs.far]
repositories = ["far"]
include = ["/srv/data"]
schedule = ["03:00"]
"""
    scheduled(machine, "03:00")
    configure(machine, far, job=SMALL.format(schedule=["03:00"], more=""))
    machine.ok("capkeep", "apply")
    machine.write("/etc/dbus-1/system.d/metered.conf", metered.POLICY)
    machine.write("/opt/metered.py", Path(metered.__file__).read_text())
    machine.ok("systemctl", "reload", "dbus")
    for number, is_metered in ((1, True), (2, False), (3, True)):
        machine.ok("systemd-run", "--unit=nm", "python3", "/opt/metered.py", str(number))
        machine.wait(lambda: metered.NAME in machine.ok("busctl", "list", "--acquired"), 20)
        # As the timer does it: as the runner's user, who has no privilege and no network.
        machine.run("systemctl", "start", "capkeep-run-far.service")
        machine.ok("systemctl", "start", "capkeep-run-system.service")
        machine.ok("systemctl", "stop", "nm")
        newest = json.loads(machine.ok("capkeep", "--json", "history", "far", "--limit", "1"))[0]
        assert (newest["outcome"] == "skipped") is is_metered, newest
        assert (newest["text"] == "over a metered network") is is_metered
    assert [r["outcome"] for r in runs(machine) if r["job"] == "system"] == ["complete"] * 3


def test_a_host_whose_watch_is_gone_says_so(machine: Machine) -> None:
    scheduled(machine, "*:*:0/20")
    machine.wait(lambda: runs(machine), 30)
    machine.ok("systemctl", "disable", "--now", "capkeep-watch.timer", TIMER)
    machine.wait(lambda: last(machine)["state"] == "missed", 60)
    said = machine.run("capkeep", "status")
    assert said.code == 1
    assert "nobody looks for missed runs" in said.out
    assert all(r["outcome"] == "complete" for r in runs(machine))


def test_a_spread_is_the_same_after_every_start(machine: Machine) -> None:
    scheduled(machine, "*-*-* 03:00:00", more='spread = "5h"')
    before = next_elapse(machine)
    machine.shutdown()
    machine.boot()
    assert next_elapse(machine) == before
    assert machine.ok("capkeep", "apply").splitlines()[0] == "nothing to change"
    machine.ok("systemctl", "restart", TIMER)
    assert next_elapse(machine) == before
    assert not before.endswith("03:00:00 UTC")
    said = machine.ok("capkeep", "plan")
    assert "backup of system (*-*-* 03:00:00), up to 5h later:" in said
    assert said.count("03:00:00 UTC") == 5


def next_elapse(machine: Machine) -> str:
    said = machine.ok("systemctl", "show", "--value", "--property=NextElapseUSecRealtime", TIMER)
    return said.strip()


def test_the_next_times_are_those_that_systemd_says(machine: Machine) -> None:
    expression = "Mon..Fri *-*~1,7 22:15/20"
    scheduled(machine, expression)
    plain = json.loads(machine.ok("capkeep", "--json", "plan"))["schedules"][0]["next"]
    said = machine.ok("systemd-analyze", "calendar", "--iterations=5", expression)
    lines = [x for x in said.splitlines() if "Next elapse" in x or "Iter" in x]
    theirs = [" ".join(line.split(": ", 1)[1].split()[1:3]) for line in lines]
    assert [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S}" for t in plain] == theirs
    assert "next backup" in machine.run("capkeep", "status").out
    assert last(machine)["schedules"][0]["next"] == plain[:1]  # type: ignore[index]


def test_the_watch_has_no_privilege(machine: Machine) -> None:
    scheduled(machine, "03:00")
    said = machine.ok("systemd-analyze", "security", "--no-pager", "capkeep-watch.service")
    (line,) = [x for x in said.splitlines() if "Overall exposure level" in x]
    assert float(line.rpartition(": ")[2].split()[0]) <= 1.0
    machine.ok("systemctl", "start", "capkeep-watch.service")
    machine.ok("capkeep", "audit")
    assert machine.ok("systemctl", "--failed", "--quiet") == ""


def test_whoever_wants_to_know_is_told_of_a_missed_run(machine: Machine) -> None:
    receiver(machine)
    channel = '\n[notify.hook]\nkind = "webhook"\nurl = "http://localhost:8000/hook"\n'
    applied(machine, channel, job=SMALL.format(schedule=[], more=""))
    path = "/run/systemd/system/capkeep-runner.socket.d/broken.conf"
    machine.write(path, BREAK)
    machine.ok("systemctl", "daemon-reload")
    machine.ok("systemctl", "stop", "capkeep-runner.socket")
    give(machine, "*:*:0/20", more=channel)
    machine.wait(lambda: asked(machine), 60)
    told = json.loads(asked(machine)[0]["body"])["run"]
    assert (told["job"], told["action"], told["outcome"]) == ("system", "backup", "missed")
