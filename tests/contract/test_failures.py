"""What goes wrong with a repository has a name, one sentence, and the engine's own words."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capkeep.engines.base import Command, Diagnosis, LineReader, Unreadable
from capkeep.errors import Failure
from tests.contract.conftest import RESTIC, UID, Done, Lab, finish, until
from tests.contract.differences import able

MIB = 1 << 20


def diagnose(done: Done, reader: LineReader | None = None, *, backup: bool = True) -> Diagnosis:
    reader = reader or RESTIC.read_backup()
    done.feed(reader)
    found = RESTIC.diagnose(done.code, reader.tail, backup=backup)
    assert found is not None, done
    assert found.words
    return found


def damage(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xde\xad\xbe\xef" * 4)


def packs(lab: Lab) -> list[Path]:
    """Largest first; files that are still being written are not among them."""
    names = [p for p in (lab.repo / "data").glob("*/*") if len(p.name) == 64]
    return sorted(names, key=lambda p: -p.stat().st_size)


def filled(lab: Lab) -> Lab:
    (lab.source / "data").write_bytes(os.urandom(2 * MIB))
    assert lab.backup().code == 0
    return lab


@contextmanager
def running(lab: Lab, command: Command) -> Iterator[subprocess.Popen[bytes]]:
    """A call under way; over at the end, whatever happens."""
    process = lab.start(command)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


@contextmanager
def halted_with_lock(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """A prune that stands still while it holds its lock; one that was too quick is tried again."""
    locks = lab.repo / "locks"
    for _ in range(20):
        with running(lab, RESTIC.prune(lab.call)) as process:
            until(lambda: any(locks.iterdir()) or process.poll() is not None)
            process.send_signal(signal.SIGSTOP)
            if process.poll() is None and any(locks.iterdir()):
                yield process
                return
    pytest.fail("no prune was seen to hold a lock")


def every_command(lab: Lab) -> dict[str, Command]:
    return {
        "backup": RESTIC.backup(lab.call, lab.job()),
        "snapshots": RESTIC.snapshots(lab.call),
        "check": RESTIC.check(lab.call),
        "restore": RESTIC.restore(lab.call, "latest", str(lab.target)),
        "ls": RESTIC.ls(lab.call, "latest"),
        "prune": RESTIC.prune(lab.call),
    }


def test_a_wrong_password(lab: Lab) -> None:
    lab.call = lab.call._replace(password="other")
    for command in every_command(lab).values():
        done = lab.run(command)
        assert (done.code == 12) is able(lab.version, "tell failures apart by exit code")
        assert diagnose(done).failure is Failure.WRONG_PASSWORD


def test_no_repository(lab: Lab) -> None:
    shutil.rmtree(lab.repo)
    for command in every_command(lab).values():
        done = lab.run(command)
        assert (done.code == 10) is able(lab.version, "tell failures apart by exit code")
        assert diagnose(done).failure is Failure.NO_REPOSITORY


def test_a_repository_that_may_not_be_read(lab: Lab) -> None:
    lab.repo.chmod(0o700)
    os.chown(lab.repo, 0, 0)
    for command in every_command(lab).values():
        assert diagnose(lab.run(command)).failure is Failure.DENIED


def test_a_repository_is_made_once(lab: Lab) -> None:
    again = lab.run(RESTIC.init(lab.call))
    assert again.code != 0
    assert "already" in diagnose(again).words


def test_a_locked_repository(lab: Lab) -> None:
    """A prune that is stopped in its middle keeps everybody else out."""
    filled(lab)
    (snapshot,) = lab.snapshots()
    lab.run(RESTIC.forget(lab.call, (snapshot.id,)))
    with halted_with_lock(lab) as holder:
        done = lab.backup()
        found = diagnose(done)
        assert (done.code == 11) is able(lab.version, "tell failures apart by exit code")
        assert found.failure is Failure.LOCKED
        assert str(holder.pid) in found.words


def test_locks_of_the_dead_are_removed(lab: Lab) -> None:
    filled(lab)
    with halted_with_lock(lab):
        pass  # and then it is killed
    assert diagnose(lab.backup()).failure is Failure.LOCKED
    assert lab.run(RESTIC.unlock(lab.call)).code == 0
    assert lab.backup().code == 0


def test_unlocking_leaves_the_living_alone(lab: Lab) -> None:
    filled(lab)
    with halted_with_lock(lab):
        assert lab.run(RESTIC.unlock(lab.call)).code == 0
        assert any((lab.repo / "locks").iterdir())


@pytest.mark.parametrize("read_data", ["all", "1G"])
def test_a_sound_repository_passes_every_check(lab: Lab, read_data: str) -> None:
    filled(lab)
    done = lab.run(RESTIC.check(lab.call, read_data=read_data))
    reader = RESTIC.read_check()
    done.feed(reader)
    assert done.code == 0
    assert reader.result() == (0, (), ())


def test_a_damaged_pack_is_found_when_its_content_is_read(lab: Lab) -> None:
    filled(lab)
    pack = packs(lab)[0]
    damage(pack)
    assert lab.run(RESTIC.check(lab.call)).code == 0, "its structure is sound"
    done = lab.run(RESTIC.check(lab.call, read_data="all"))
    reader = RESTIC.read_check()
    assert diagnose(done, reader, backup=False).failure is Failure.DAMAGED
    assert reader.result().errors == 1
    assert reader.result().broken_packs == (pack.name,)
    assert pack.name in reader.result().words[0]


def test_a_missing_pack_is_found_by_a_plain_check(lab: Lab) -> None:
    filled(lab)
    pack = packs(lab)[0]
    pack.unlink()
    done = lab.run(RESTIC.check(lab.call))
    reader = RESTIC.read_check()
    assert diagnose(done, reader, backup=False).failure is Failure.DAMAGED
    assert reader.result().broken_packs == (pack.name,)


def test_a_damaged_pack_fails_a_restore(lab: Lab) -> None:
    filled(lab)
    damage(packs(lab)[0])
    done = lab.as_root(RESTIC.restore(lab.call, "latest", str(lab.target)))
    reader = RESTIC.read_restore()
    events = done.feed(reader)
    found = RESTIC.diagnose(done.code, reader.tail)
    assert found is not None
    assert found.failure is Failure.DAMAGED
    named = {e.path for e in events if isinstance(e, Unreadable)}
    assert any(path.endswith("/data") for path in named)


def test_a_damaged_index(lab: Lab) -> None:
    filled(lab)
    for index in (lab.repo / "index").iterdir():
        damage(index)
    shutil.rmtree(lab.base / "cache")
    (lab.base / "cache").mkdir()
    lab.give(UID)
    done = lab.backup()
    assert diagnose(done).failure is Failure.DAMAGED


def test_a_full_disk(lab: Lab, small_disk: Path) -> None:
    shutil.move(lab.repo, small_disk / "repo")
    lab.call = lab.call._replace(repository=f"{small_disk}/repo")
    lab.repo = small_disk / "repo"
    lab.give(UID)
    (lab.source / "data").write_bytes(os.urandom(40 * MIB))
    started = time.monotonic()
    done = lab.backup()
    assert diagnose(done).failure is Failure.NO_SPACE
    assert time.monotonic() - started < 30


def test_a_full_cache(lab: Lab, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(6 * MIB - 16384))
    for number in range(200):
        (lab.source / f"{number:0200}").mkdir()
    full = RESTIC.backup(lab.call._replace(cache_dir=str(small_disk)), lab.job())
    done = lab.run(full)
    if able(lab.version, "go on when its cache is full"):
        assert done.code == 0
    else:
        assert diagnose(done).failure is Failure.NO_SPACE
    assert len(lab.snapshots()) == 1, "it is made even where the engine says that it failed"


def test_an_unreachable_repository(lab: Lab) -> None:
    """restic goes on trying for a quarter of an hour; its words say why long before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab.call = lab.call._replace(repository=f"rest:http://127.0.0.1:{port}/")
    with running(lab, RESTIC.snapshots(lab.call)) as process:
        time.sleep(3)
        process.terminate()
        done = finish(process)._replace(code=1)
    assert diagnose(done).failure is Failure.UNREACHABLE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_backup(lab: Lab, number: signal.Signals) -> None:
    (lab.source / "data").write_bytes(os.urandom(40 * MIB))
    with running(lab, RESTIC.backup(lab.call, lab.job())) as process:
        until(lambda: bool(packs(lab)))
        process.send_signal(number)
        done = finish(process)
    reader = RESTIC.read_backup()
    done.feed(reader)
    found = RESTIC.diagnose(done.code, reader.tail, backup=True)
    assert found is not None
    killed = number is signal.SIGKILL
    handled = killed or number is signal.SIGINT or able(lab.version, "clean up when terminated")
    if killed:
        assert found.failure is Failure.INTERRUPTED
    assert any((lab.repo / "locks").iterdir()) is (killed or not handled)
    assert lab.snapshots() == ()
    assert lab.backup().code == 0, "a shared lock that is left keeps no backup out"


def test_a_snapshot_that_is_not_there(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    lab.backup()
    listed = lab.run(RESTIC.ls(lab.call, "deadbeef"))
    loud = able(lab.version, "fail when a snapshot to list does not exist")
    assert (listed.code != 0) is loud
    for done in (listed, lab.run(RESTIC.restore(lab.call, "deadbeef", str(lab.target)))):
        assert "no such snapshot" in diagnose(done, backup=False).sentence


def test_forgetting_and_pruning(lab: Lab) -> None:
    filled(lab)
    (lab.source / "data").write_bytes(b"small")
    lab.backup()
    old, new = lab.snapshots()
    assert lab.run(RESTIC.forget(lab.call, (old.id,))).code == 0
    assert [s.id for s in lab.snapshots()] == [new.id]
    assert lab.run(RESTIC.prune(lab.call)).code == 0
    assert sum(p.stat().st_size for p in packs(lab)) < MIB


def test_what_is_in_the_way_of_a_restore(lab: Lab) -> None:
    """An unprivileged restore cannot give files away: versions differ, the exit code is no proof."""
    (lab.source / "a").write_text("a")
    lab.backup()
    lab.target.chmod(0o777)
    done = lab.run(RESTIC.restore(lab.call, "latest", str(lab.target)))
    reader = RESTIC.read_restore()
    events = done.feed(reader)
    restored = lab.target / (lab.source / "a").relative_to("/")
    assert restored.read_text() == "a"
    assert restored.stat().st_uid != 0
    assert bool(done.code) is any(isinstance(e, Unreadable) for e in events)
