"""A vault that serves borg keeps every archive, whoever writes to it, and no dead one's lock."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from capkeep.engines.borg import ENGINE
from capkeep.plan.model import Access
from capkeep.rooms.scripts import TOOLS
from tests.engines import borg_programs
from tests.rooms.borgkit import Borg
from tests.rooms.house import wait_for
from tests.rooms.vaultkit import Vault

NOTHING = {"found": [], "lost": [], "unreadable": [], "wrong": 0}
HOSTILE = str(Path(__file__).with_name("borg_hostile.py"))


@pytest.fixture(params=["1.2", "1.4"])
def borg(request: pytest.FixtureRequest, tmp_path: Path) -> Borg:
    """With two archives."""
    found = Borg(tmp_path, borg_programs()[request.param])
    found.init()
    (found.source / "random").write_bytes(os.urandom(100_000))
    for number in range(2):
        (found.source / "file").write_text(f"version {number}")
        found.back_up()
    return found


def attack(borg: Borg, what: str) -> dict[str, str]:
    command = ENGINE.snapshots(borg.call)
    argv = (*borg.call.interpreter, HOSTILE, TOOLS, what)
    done = borg.run(command._replace(argv=argv))
    assert done.returncode == 0, done
    ends: dict[str, str] = json.loads(done.stdout)
    return ends


def test_nothing_that_a_hostile_reader_does_costs_an_archive(borg: Borg) -> None:
    before = borg.snapshots()
    assert len(before) == 2
    ids = borg.base / "ids"
    ids.write_text("".join(f"{s.id}\n" for s in before))
    ends = attack(borg, "everything")
    refused = {"InvalidRPCMethod", "PathNotAllowed"}
    allowed = {"remove", "replace"}  # answered, and not carried out
    assert {name for name, end in ends.items() if end not in refused} == allowed, ends
    assert borg.snapshots() == ()
    rescue = ENGINE.bring_back(borg.call, str(ids))
    assert rescue is not None
    said = json.loads(borg.admin(rescue))
    assert (sorted(said["found"]), said["lost"]) == (sorted(s.id for s in before), [])
    attack(borg, "nonsense")
    broken = borg.run(ENGINE.snapshots(borg.call), Access.ADMIN)
    found = ENGINE.diagnose(broken.returncode, tuple(broken.stderr.decode().splitlines()))
    assert found is not None
    assert found.failure == "damaged", found
    assert sorted(json.loads(borg.admin(rescue))["found"]) == sorted(s.id for s in before)
    assert borg.snapshots() == before
    borg.admin(ENGINE.check(borg.call, read_data="all"))
    for number, snapshot in enumerate(before):
        back = borg.restored(snapshot)
        assert (back / "file").read_text() == f"version {number}"
        assert (back / "random").read_bytes() == (borg.source / "random").read_bytes()


def test_who_has_no_lock_keeps_nobody_waiting_and_writes_nothing(borg: Borg) -> None:
    before, ends = borg.snapshots(), attack(borg, "unlocked")
    assert ends.pop("read") == "done: True", ends
    assert (ends.pop("locks"), ends.pop("rollback")) == ("", "done: None")
    assert set(ends.values()) <= {"PathNotAllowed", "InvalidRPCMethod"}, ends
    assert len(ends) == 5
    borg.back_up()
    assert borg.snapshots()[:2] == before


def test_a_name_that_a_hostile_reader_gives_an_archive_removes_that_one_alone(borg: Borg) -> None:
    """Whatever it would mean to borg: an option, or a placeholder."""
    kept = borg.snapshots()
    hostile = ("--glob-archives=*", "{pid}")
    for name in ("--glob-archives=*", "{{pid}}"):
        command = ENGINE.backup(borg.call, borg.job())
        argv = tuple(f"::{name}" if word.startswith("::") else word for word in command.argv)
        assert borg.run(command._replace(argv=argv)).returncode == 0
    borg.admin(ENGINE.ls(borg.call, "{pid}"))
    for name in hostile:
        borg.admin(ENGINE.forget(borg.call, (name,)))
    assert borg.snapshots() == kept


def test_what_the_list_says_of_an_archive_removes_no_other(borg: Borg) -> None:
    """Its time and its name there are the word of whoever wrote the list last."""
    oldest, newest = borg.snapshots()
    expected = borg.base / "expected"
    attack(borg, "aliases")
    known = borg.snapshots()  # both may be of the same second
    assert {(s.id, s.time) for s in known} == {(s.id, s.time) for s in (oldest, newest)}
    for removed in (oldest, newest):
        told = {"listed": [oldest.id, newest.id], "removed": {removed.id: "alias"}}
        expected.write_text(json.dumps(told))
        command = ENGINE.forget(borg.call, ("alias",), expected=str(expected))
        done = borg.run(command, Access.ADMIN)
        found = ENGINE.diagnose(done.returncode, tuple(done.stderr.decode().splitlines()))
        assert found is not None
        assert found.failure == "damaged", found
    assert borg.snapshots() == known


def test_a_list_of_the_end_of_time_is_written_anew(borg: Borg) -> None:
    """The time of a list follows that of the one before, and none follows that."""
    before = borg.snapshots()
    ids = borg.base / "ids"
    ids.write_text("".join(f"{s.id}\n" for s in before))
    attack(borg, "future")
    rescue = ENGINE.bring_back(borg.call, str(ids))
    assert rescue is not None
    assert len(json.loads(borg.admin(rescue))["found"]) == 2
    borg.back_up()
    assert borg.snapshots()[:2] == before


def test_a_list_of_nonsense_is_put_in_order(borg: Borg) -> None:
    """Archives have their own names and times again, and what is none is not listed."""
    before = borg.snapshots()
    ids = borg.base / "ids"
    ids.write_text("".join(f"{s.id}\n" for s in before))
    attack(borg, "list")
    broken = borg.run(ENGINE.snapshots(borg.call), Access.ADMIN)
    found = ENGINE.diagnose(broken.returncode, tuple(broken.stderr.decode().splitlines()))
    assert found is not None
    assert found.failure in ("engine", "damaged"), found
    rescue = ENGINE.bring_back(borg.call, str(ids))
    assert rescue is not None
    assert json.loads(borg.admin(rescue)) == {**NOTHING, "wrong": 6}
    assert borg.snapshots() == before
    borg.back_up()
    assert json.loads(borg.admin(rescue)) == NOTHING


def rescued(borg: Borg, *wanted: str) -> dict[str, object]:
    ids = borg.base / "ids"
    ids.write_text("".join(f"{one}\n" for one in wanted))
    command = ENGINE.bring_back(borg.call, str(ids))
    assert command is not None
    said: dict[str, object] = json.loads(borg.admin(command))
    return said


def test_what_somebody_has_removed_is_told_to_be_gone(borg: Borg) -> None:
    """Also where nothing is left whose key could be told by what was looked for."""
    oldest, newest = borg.snapshots()
    borg.admin(ENGINE.forget(borg.call, (oldest.word,)))
    assert rescued(borg, oldest.id) == {**NOTHING, "lost": [oldest.id]}
    assert borg.snapshots() == (newest,)
    borg.admin(ENGINE.forget(borg.call, (newest.word,)))
    assert rescued(borg, oldest.id, newest.id) == {**NOTHING, "lost": [oldest.id, newest.id]}
    assert borg.snapshots() == ()


def test_an_archive_that_cannot_be_verified_stays_listed_and_so_does_every_other(
    borg: Borg,
) -> None:
    oldest, newest = borg.snapshots()
    made = attack(borg, "older")
    before = attack(borg, "names")
    strange = {made[name] for name in ("junk", "plain", "file")}
    said = rescued(borg, *sorted(strange), made["none"], oldest.id, newest.id, made["twin"])
    unreadable = set(map(str, said.pop("unreadable")))  # type: ignore[call-overload]
    stale = {made["stale"]} if borg.program == str(borg_programs()["1.4"]) else set()
    assert unreadable == strange | stale
    assert said == {"found": [made["twin"]], "lost": [made["none"]], "wrong": 0}
    free = f"{oldest.word}.{made['twin'][:8]}.2"
    assert attack(borg, "names") == {**before, free: made["twin"]}


def test_a_message_without_end_ends_its_sender_alone(borg: Borg) -> None:
    ends = attack(borg, "huge")
    assert not ends["huge"].startswith("done"), ends
    assert len(borg.snapshots()) == 2
    borg.back_up()


def test_locks_of_the_dead_block_nobody_and_those_of_the_living_do(borg: Borg) -> None:
    for number in range(8):
        (borg.source / f"more {number}").write_bytes(os.urandom(4 << 20))
    command = ENGINE.backup(borg.call, borg.job())
    lock = borg.repository / "lock.exclusive"
    with Vault(str(borg.repository), borg.base / "state", engine=("borg", borg.program)) as vault:
        handover = vault.handover.fileno()
        child = subprocess.Popen(
            command.argv, env=dict(command.env), cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(3, handover),
            preexec_fn=lambda: os.dup2(handover, 3),  # noqa: PLW1509
        )  # fmt: skip
        wait_for(lock.exists)
        child.send_signal(signal.SIGSTOP)
        locked = borg.run(ENGINE.snapshots(borg.call), Access.ADMIN)
        found = ENGINE.diagnose(locked.returncode, tuple(locked.stderr.decode().splitlines()))
        assert found is not None
        assert found.failure == "locked", found
        served = (
            Path(f"/proc/{vault.child.pid}/task/{vault.child.pid}/children").read_text().split()
        )
        for pid in served:  # so that it can remove nothing
            os.kill(int(pid), signal.SIGKILL)
        child.kill()
        child.wait(20)
    assert lock.exists()
    borg.back_up()
    assert not lock.exists()
    assert len(borg.snapshots()) == 3


def test_a_borg_that_cannot_be_guarded_is_refused(borg: Borg, tmp_path: Path) -> None:
    """Another major version, by what its Python calls itself."""
    tools = tmp_path / "later"
    (tools / "borg").mkdir(parents=True)
    (tools / "borg/__init__.py").write_text('__version__ = "2.0.0b14"\n')
    (tools / "borg/remote.py").write_text("class PathNotAllowed(Exception): ...\n"
                                          "class RepositoryServer: rpc_methods = ()\n")  # fmt: skip
    (tools / "borg/archiver.py").write_text("")
    later = tmp_path / "borg2"
    later.write_text(f"#!/usr/bin/env -S PYTHONPATH={tools} /usr/bin/python3\n")
    later.chmod(0o755)
    borg.program = str(later)
    call = borg.call._replace(program=str(later))
    borg.run(ENGINE.snapshots(borg.call))
    assert {"failure": "refused", "event": "failure",
            "text": "borg 2.0.0b14 is not supported: install borg 1.2 or 1.4"} in borg.said  # fmt: skip
    own = call._replace(interpreter=("/usr/bin/env", f"PYTHONPATH={tools}", "/usr/bin/python3"))
    done = borg.run(ENGINE.snapshots(own))
    found = ENGINE.diagnose(done.returncode, tuple(done.stderr.decode().splitlines()))
    assert found is not None
    assert found.failure == "refused", done
    assert "not supported" in found.sentence
