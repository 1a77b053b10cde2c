"""What only restic does, or says in its own way, with every version; beside the contract of all.

The engine is called without a room, on a local repository.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from capkeep.engines.base import Cause, Command, Diagnosis, Event, Key, LineReader, Seen, Unreadable
from capkeep.engines.retention import decide, held
from capkeep.errors import Failure
from capkeep.values import Keep
from tests.contract.conftest import RESTIC, UID, Done, Lab, finish, until
from tests.contract.differences import able

MIB = 1 << 20

TIMES = (
    "2024-12-30 10:00:00", "2024-12-31 23:59:59", "2025-01-01 00:00:00", "2026-02-27 06:00:00",
    "2026-02-28 06:00:00", "2026-02-28 18:00:00", "2026-03-01 06:10:00", "2026-03-01 06:50:00",
    "2026-03-01 07:00:00", "2026-03-02 12:00:00",
)  # fmt: skip
RULES = {
    "--keep-last=3": Keep(last=3),
    "--keep-hourly=4": Keep(hourly=4),
    "--keep-daily=3": Keep(daily=3),
    "--keep-weekly=2": Keep(weekly=2),
    "--keep-monthly=3": Keep(monthly=3),
    "--keep-yearly=2": Keep(yearly=2),
    "--keep-within=36h": Keep(within_seconds=36 * 3600),
    "--keep-last=1 --keep-daily=2 --keep-yearly=3": Keep(last=1, daily=2, yearly=3),
}


def read(done: Done, *watch: Path) -> list[Event]:
    return done.feed(RESTIC.read_backup(tuple(map(str, watch))))


def unreadable(events: Sequence[Event]) -> dict[str, Cause]:
    return {e.path: e.cause for e in events if isinstance(e, Unreadable)}


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


def is_stopped(pid: int) -> bool:
    """Whether every thread stands still (proc_pid_status(5))."""
    states = [s.read_text() for s in Path(f"/proc/{pid}/task").glob("*/status")]
    return all("State:\tT" in state or "State:\tZ" in state for state in states)


@contextmanager
def halted_with_lock(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """A prune that stands still while it holds its lock; one that was too quick is tried again."""

    def locked() -> bool:  # a lock has the hash of its content as its name; a draft of one has not
        return any(len(entry.name) == 64 for entry in (lab.repo / "locks").iterdir())

    for _ in range(20):
        with running(lab, RESTIC.prune(lab.call)) as process:
            until(lambda: locked() or process.poll() is not None)
            process.send_signal(signal.SIGSTOP)
            until(lambda: is_stopped(process.pid) or process.poll() is not None)
            if process.poll() is None and locked():
                yield process
                return
    pytest.fail("no prune was seen to hold a lock")


def test_the_canary_is_seen_again_and_whether_it_was_read(lab: Lab) -> None:
    canary = lab.source / "sub <&> grün" / "canary"
    canary.parent.mkdir()
    canary.write_text("1")
    assert Seen(str(canary), read=True) in read(lab.backup(), canary)
    assert Seen(str(canary), read=False) in read(lab.backup(), canary)
    canary.write_text("2")
    assert Seen(str(canary), read=True) in read(lab.backup(), canary)
    shutil.rmtree(canary.parent)
    events = read(lab.backup(), canary)
    assert not [e for e in events if isinstance(e, Seen)]


def test_a_missing_source_is_named(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    missing = f"{lab.base}/missing"
    job = lab.job(lab.source, missing)
    done = lab.backup(job)
    loud = able(lab.version, "fail when one of several sources is missing")
    assert done.code == (3 if loud else 0)
    assert unreadable(read(done)) == {missing: Cause.VANISHED}


def test_no_source_at_all_is_a_failure(lab: Lab) -> None:
    job = lab.job("/nowhere/at/all")
    done = lab.backup(job)
    reader = RESTIC.read_backup()
    done.feed(reader)
    found = RESTIC.diagnose(done.code, reader.tail, backup=True)
    assert found is not None
    assert found.failure is Failure.ENGINE
    assert "none of the job's sources exists" in found.sentence
    assert "do not exist" in found.words


def test_an_error_of_the_disk_is_told_apart(lab: Lab) -> None:
    """Nothing is mapped at the beginning of a process's memory: reading there is EIO."""
    sleeper = subprocess.Popen(["/usr/bin/sleep", "60"], user=UID, group=UID, extra_groups=[])
    try:
        path = f"/proc/{sleeper.pid}/mem"
        (lab.source / "a").write_text("a")
        done = lab.backup(lab.job(lab.source, path))
        assert unreadable(read(done)) == {path: Cause.IO}
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_parent_can_be_chosen(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    lab.backup()
    (first,) = lab.snapshots()
    other = lab.base / "other"
    shutil.copytree(lab.source, other)
    lab.run(RESTIC.backup(lab.call, lab.job(other), parent=first.id))
    assert lab.snapshots()[1].parent == first.id


def test_a_repository_that_may_not_be_read(lab: Lab) -> None:
    lab.repo.chmod(0o700)
    os.chown(lab.repo, 0, 0)
    for command in (
        RESTIC.backup(lab.call, lab.job()),
        RESTIC.check(lab.call),
        RESTIC.prune(lab.call),
    ):
        assert diagnose(lab.run(command)).failure is Failure.DENIED


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


def test_a_damaged_index(lab: Lab) -> None:
    filled(lab)
    for index in (lab.repo / "index").iterdir():
        damage(index)
    shutil.rmtree(lab.base / "cache")
    (lab.base / "cache").mkdir()
    lab.give(UID)
    done = lab.backup()
    assert diagnose(done).failure is Failure.DAMAGED


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


def test_a_directory_is_listed_alone(lab: Lab) -> None:
    (lab.source / "sub" / "deeper").mkdir(parents=True)
    (lab.source / "sub" / "a").write_text("a")
    (lab.source / "sub" / "deeper" / "b").write_text("b")
    lab.backup()
    done = lab.run(RESTIC.ls(lab.call, "latest", (f"{lab.source}/sub",)))
    paths = [e.path for e in map(RESTIC.parse_ls_line, done.out.split(b"\n")) if e]
    assert f"{lab.source}/sub/a" in paths
    assert f"{lab.source}/sub/deeper" in paths
    assert f"{lab.source}/sub/deeper/b" not in paths


def test_what_is_there_can_be_left_alone(lab: Lab) -> None:
    (lab.source / "a").write_text("from the snapshot")
    lab.backup()
    there = lab.target / (lab.source / "a").relative_to("/")
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    abilities = RESTIC.abilities(lab.run(RESTIC.version(lab.call)).out)
    assert abilities.version[:2] == tuple(map(int, lab.version.split(".")))
    command = RESTIC.restore(
        lab.call, "latest", str(lab.target), keep_existing=abilities.keep_existing
    )
    assert lab.as_root(command).code == 0
    assert (there.read_text() == "mine") is abilities.keep_existing


def test_excludes_and_one_file_system(lab: Lab, small_disk: Path) -> None:
    for name in ("keep", "skip.tmp", "cache"):
        (lab.source / name).write_text("x")
    (small_disk / "inner").write_text("x")
    job = lab.job(
        lab.source, small_disk.parent / "small",
        exclude=("*.tmp", f"{lab.source}/cache"), one_file_system=True,
    )  # fmt: skip
    lab.backup(job)
    done = lab.run(RESTIC.ls(lab.call, "latest"))
    names = {e.path for e in map(RESTIC.parse_ls_line, done.out.split(b"\n")) if e}
    assert f"{lab.source}/keep" in names
    assert not names & {f"{lab.source}/skip.tmp", f"{lab.source}/cache"}
    assert f"{small_disk}/inner" in names, "named sources are kept, whatever they are on"


def test_another_filesystem_below_a_source_can_be_left_out(lab: Lab, small_disk: Path) -> None:
    (small_disk / "inner").write_text("x")
    skip = ("cache", "repo", "source", "target", "tmp")
    exclude = tuple(f"{lab.base}/{name}" for name in skip)
    for one, there in ((True, False), (False, True)):
        lab.backup(lab.job(lab.base, exclude=exclude, one_file_system=one))
        done = lab.run(RESTIC.ls(lab.call, "latest"))
        names = {e.path for e in map(RESTIC.parse_ls_line, done.out.split(b"\n")) if e}
        assert str(small_disk) in names
        assert (f"{small_disk}/inner" in names) is there


def test_the_whole_machine_is_kept_without_the_rooms_own(lab: Lab) -> None:
    """In a room, /proc, /dev and /run are the room's own, and not the machine's."""
    room = [
        "/usr/bin/bwrap", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib",
        "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run",
        "--dir", "/run/inside", "--dir", "/etc/inside", "--dir", "/sys/inside",
        "--ro-bind", lab.call.program, "/engine", "--bind", str(lab.base), str(lab.base),
    ]  # fmt: skip
    command = RESTIC.backup(
        lab.call._replace(program="/engine"), lab.job("/", exclude=("/usr/*", str(lab.base)))
    )
    lab.give(0)
    done = lab.as_root(command._replace(argv=(*room, *command.argv)))
    assert done.code == 0, done.err
    listed = lab.as_root(RESTIC.ls(lab.call, "latest"))
    paths = {e.path for e in map(RESTIC.parse_ls_line, listed.out.split(b"\n")) if e}
    assert {"/etc/inside", "/proc", "/dev", "/run", "/sys", "/engine"} <= paths
    assert not [p for p in paths if p.startswith(("/proc/", "/dev/", "/run/", "/sys/"))]


def restic(lab: Lab, *words: str) -> bytes:
    """A call that capkeep does not make."""
    argv, env, _ = RESTIC.snapshots(lab.call)
    done = lab.run(Command((argv[0], *words), env))
    assert done.code == 0, done
    return done.out


@pytest.fixture
def old(lab: Lab) -> Lab:
    (lab.source / "file").write_text("kept")
    for when in TIMES:
        restic(lab, "backup", "--json", f"--time={when}", str(lab.source))
    return lab


def test_the_rules_are_restics_own(old: Lab) -> None:
    snapshots = old.snapshots()
    ours = held(snapshots, frozenset(s.id for s in snapshots))
    for words, rules in RULES.items():
        said = json.loads(restic(old, "forget", "--dry-run", "--json", *words.split()))
        theirs = {s["id"] for group in said for s in group["keep"]}
        assert {d.id for d in decide(ours, rules) if d.keep} == theirs, words


def test_all_parts_together_are_all_data(lab: Lab) -> None:
    for number in range(6):
        (lab.source / "file").write_bytes(os.urandom(1 << 16))
        assert lab.backup().code == 0, number
    for part in (1, 2, 3, 4):
        assert lab.run(RESTIC.check(lab.call, read_data=f"{part}/4")).code == 0
    pack = next(p for p in lab.repo.glob("data/*/*") if p.stat().st_size > 1 << 16)
    content = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(content[:1000] + b"rot" + content[1003:])
    holds = int(pack.name[:2], 16) % 4 + 1
    found = [part for part in (1, 2, 3, 4) if _errors(lab, f"{part}/4")]
    assert found == [holds]


def _errors(lab: Lab, part: str) -> int:
    reader = RESTIC.read_check()
    done = lab.run(RESTIC.check(lab.call, read_data=part))
    done.feed(reader)
    return reader.result().errors


def test_what_only_reads_needs_no_lock(lab: Lab) -> None:
    for number in range(2):
        (lab.source / "file").write_bytes(os.urandom(1 << 20))
        assert lab.backup().code == 0, number
    first, second = lab.snapshots()
    locks = lab.repo / "locks"
    with lab.start(RESTIC.check(lab.call, read_data="all", lock=False)) as process:
        done = finish(process)
    assert done.code == 0, done
    assert list(locks.iterdir()) == []
    assert lab.run(RESTIC.diff(lab.call, first.id, second.id, lock=False)).code == 0
    assert lab.run(RESTIC.snapshots(lab.call, lock=False)).code == 0


def keys(lab: Lab, password: str = "secret") -> tuple[Key, ...]:
    done = lab.run(RESTIC.keys(lab.call._replace(password=password)))
    assert done.code == 0, done
    return RESTIC.parse_keys(done.out)


def test_the_key_in_use_is_never_removed(lab: Lab) -> None:
    (first,) = keys(lab)
    refused = lab.run(RESTIC.remove_key(lab.call, first.id[:8]))
    assert RESTIC.diagnose(refused.code, tuple(refused.err.decode().splitlines()))
    assert keys(lab) == (first,)


def test_a_key_that_is_not_there_cannot_be_removed(lab: Lab) -> None:
    refused = lab.run(RESTIC.remove_key(lab.call, "0123456789abcdef"))
    assert RESTIC.diagnose(refused.code, tuple(refused.err.decode().splitlines())), refused


@pytest.mark.parametrize("text", [b"{}", b"[1]", b'[{"current": true}]'])
def test_what_is_no_list_of_keys_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="restic lists"):
        RESTIC.parse_keys(text)
