"""One run of a job at a time, and everybody can see which; nobody can keep it from running."""

import fcntl
import os
import stat
from pathlib import Path

import pytest

from capkeep.errors import RefusedError
from capkeep.records.life import is_alive
from capkeep.records.locks import Holder, JobLock, copies_of, holder, work_on
from capkeep.records.model import Run

ALICE = Holder("system", "run-1", 1000, "alice", 1_795_000_000.0, 42)


def test_who_runs_it_is_known_while_it_runs(tmp_path: Path) -> None:
    places = str(tmp_path)
    assert holder(places, "system") is None
    with JobLock(places, "system") as lock:
        lock.acquire(ALICE)
        assert holder(places, "system") == ALICE
        assert holder(places, "home") is None
    assert holder(places, "system") is None


def test_a_second_run_is_refused_with_who_runs_it_since_when(tmp_path: Path) -> None:
    with JobLock(str(tmp_path), "system") as lock, JobLock(str(tmp_path), "system") as second:
        lock.acquire(ALICE)
        with pytest.raises(RefusedError, match=r"by alice since 2026-11-\d\d .* \(run run-1\)"):
            second.acquire(ALICE._replace(run="run-2"))
        assert holder(str(tmp_path), "system") == ALICE
        with JobLock(str(tmp_path), "home") as other:
            other.acquire(ALICE._replace(job="home"))
        lock.release()
        second.acquire(ALICE._replace(run="run-2"))


def test_work_on_two_repositories_goes_on_at_once_and_on_one_does_not(tmp_path: Path) -> None:
    places = str(tmp_path)
    here, there = work_on("here"), work_on("there")
    run = Run("run-1", "", 1.0, "check")
    with JobLock(places, here) as first, JobLock(places, there) as second:
        first.acquire(ALICE._replace(job=here))
        second.acquire(ALICE._replace(job=there, run="run-2"))
        assert is_alive(places, run)
        assert is_alive(places, run._replace(id="run-2"))
        assert not is_alive(places, run._replace(id="run-3"))
        with pytest.raises(RefusedError, match=r"work on repository here is .* by alice since"):
            JobLock(places, here).acquire(ALICE)
        first.release()
        assert not is_alive(places, run)


def test_a_backup_goes_on_beside_copies_of_its_job(tmp_path: Path) -> None:
    places = str(tmp_path)
    backup, copy = Run("run-1", "system", 1.0, "backup"), Run("run-2", "system", 2.0, "copy")
    with JobLock(places, "system") as first, JobLock(places, copies_of("system")) as second:
        first.acquire(ALICE)
        assert not is_alive(places, copy)
        second.acquire(ALICE._replace(job=copies_of("system"), run="run-2"))
        assert is_alive(places, backup)
        assert is_alive(places, copy)
        with pytest.raises(RefusedError, match="copying of job system is being run already"):
            JobLock(places, copies_of("system")).acquire(ALICE)


def test_a_shorter_content_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    for user in ("a-very-long-name-indeed", "b"):
        with JobLock(str(tmp_path), "system") as lock:
            lock.acquire(ALICE._replace(user=user))
            assert holder(str(tmp_path), "system") == ALICE._replace(user=user)


def test_content_that_is_being_written_is_somebody(tmp_path: Path) -> None:
    with JobLock(str(tmp_path), "system") as lock, JobLock(str(tmp_path), "system") as second:
        lock.acquire(ALICE)
        Path(tmp_path, "system.run").write_bytes(b'{"run":"r')
        assert holder(str(tmp_path), "system") == Holder("system")
        with pytest.raises(RefusedError, match="is being run already"):
            second.acquire(ALICE)


def test_no_reader_can_keep_a_job_from_running(tmp_path: Path) -> None:
    """Whoever reads a file may hold a shared lock on it, with flock and with fcntl, for ever."""
    with JobLock(str(tmp_path), "system") as lock:
        lock.acquire(ALICE)
    for name, mode in (("system.lock", 0o600), ("system.run", 0o640)):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == mode
    with open(tmp_path / "system.run", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_SH)
        with JobLock(str(tmp_path), "system") as lock:
            lock.acquire(ALICE)


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "system.lock").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        JobLock(str(tmp_path), "system").acquire(ALICE)
