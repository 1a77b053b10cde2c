"""The record when its writer is killed at any moment, and when its readers may not write."""

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capkeep.errors import Failure
from capkeep.records.locks import Holder, JobLock
from capkeep.records.model import Finding, FindingKind, Outcome, Proof, Run, Totals
from capkeep.records.reader import RecordReader
from capkeep.records.store import Recorder

SOURCE = Path(__file__).parents[2] / "src"
WRITER, GROUP, READER, OUTSIDER = 64_101, 64_102, 64_103, 64_104
KILLING_SECONDS = 12.0

READ = """
import sys, time
sys.path.append(sys.argv[1])
from capkeep.records.reader import RecordReader
end = time.monotonic() + float(sys.argv[3])
reads = 0
while True:
    with RecordReader(sys.argv[2]) as records:
        runs = records.last_runs(limit=3)
        records.statuses()
        for run in runs:
            for step in records.steps(run.id):
                assert len(records.proofs(step)) <= 3
                assert run.outcome != "complete" or step.outcome == "complete"
    reads += 1
    if time.monotonic() >= end:
        break
print(reads, *(f"{run.id}={run.failure or run.outcome}" for run in runs))
"""


@pytest.fixture
def places() -> Iterator[Path]:
    """The runner's own directory, as `apply` makes it."""
    top = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="capkeep-records-"))
    top.chmod(0o755)
    directory = top / "records"
    directory.mkdir()
    os.chown(directory, WRITER, GROUP)
    directory.chmod(0o750)
    yield directory
    shutil.rmtree(top)


def one_run(recorder: Recorder, run_id: str, *, job: str = "system") -> None:
    run = recorder.begin_run(Run(run_id, job, time.time()))
    for repository in ("near", "far"):
        step = recorder.begin_step(run, "backup", repository)
        for process in ("room", "engine", "vault"):
            recorder.add_proof(step, Proof("reader", process, '{"pid": 1}' * 50))
        recorder.add_findings(step, [Finding(FindingKind.WARNING, f"/{n}") for n in range(20)])
        recorder.end_step(step._replace(outcome=Outcome.COMPLETE, totals=Totals(1, 2, 3)))
    recorder.end_run(run._replace(outcome=Outcome.COMPLETE))


@contextmanager
def child(work: Callable[[int], None], uid: int = WRITER) -> Iterator[tuple[int, int]]:
    """A forked process of that uid that does the work; gives its pid and what it reports to.

    Killed at the end, however that is reached.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.setgroups([])
            os.setresgid(GROUP, GROUP, GROUP)
            os.setresuid(uid, uid, uid)
            work(writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    try:
        yield pid, reader
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def reported(fd: int, count: int, seconds: float = 20) -> list[str]:
    """The first lines that the child reported; fewer if it ended."""
    text = b""
    deadline = time.monotonic() + seconds
    while text.count(b"\n") < count:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], "timed out"
        part = os.read(fd, 65536)
        if not part:
            break
        text += part
    return text.decode().split("\n")[:-1]


def read_as(
    uid: int, gid: int, places: Path, seconds: float = 0
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-I", "-c", READ, str(SOURCE), str(places), str(seconds)],
        user=uid, group=gid, extra_groups=[], capture_output=True, text=True,
        timeout=60 + seconds, check=False,
    )  # fmt: skip


def write_one_and_wait(places: Path) -> Callable[[int], None]:
    def work(report: int) -> None:
        with Recorder(str(places)) as recorder:
            one_run(recorder, "done")
            recorder.begin_run(Run("open", "system", 1.0))
            os.write(report, b"ready\n")
            time.sleep(60)

    return work


def test_a_member_reads_while_it_is_written_after_and_when_the_writer_was_killed(
    places: Path,
) -> None:
    with child(write_one_and_wait(places)) as (_, fd):
        assert reported(fd, 1) == ["ready"]
        while_written = read_as(READER, GROUP, places)
        assert (places / "records.db-wal").exists()
    assert while_written.stdout == "1 open=interrupted done=complete\n", while_written.stderr

    assert (places / "records.db-wal").exists(), "killed: the log is left behind"
    killed = read_as(READER, GROUP, places)
    assert killed.stdout == "1 open=interrupted done=complete\n", killed.stderr

    with child(lambda _: Recorder(str(places)).close()) as (pid, fd):
        reported(fd, 1)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not (places / "records.db-wal").exists(), "ended: the file is whole by itself"
    ended = read_as(READER, GROUP, places)
    assert ended.stdout == "1 open=interrupted done=complete\n", ended.stderr
    assert read_as(0, 0, places).stdout == ended.stdout


def test_a_reader_leaves_nothing_behind_that_would_keep_the_writer_out(places: Path) -> None:
    with child(write_one_and_wait(places)) as (_, fd):
        reported(fd, 1)
    for uid, gid in ((0, 0), (READER, GROUP)):
        assert read_as(uid, gid, places).returncode == 0
    assert {(places / name).stat().st_uid for name in os.listdir(places)} == {WRITER}


def test_others_cannot_read(places: Path) -> None:
    with child(lambda _: Recorder(str(places)).close()) as (_, fd):
        reported(fd, 1)
    outside = read_as(OUTSIDER, OUTSIDER, places)
    assert outside.returncode != 0
    assert "cannot be used" in outside.stderr


def test_members_read_without_an_error_while_writers_come_and_go(places: Path) -> None:
    """Every run opens the record, and closing it takes the write-ahead log away."""

    def work(_: int) -> None:
        for number in range(100_000):
            with Recorder(str(places)) as recorder:
                one_run(recorder, f"r{number:06d}")

    with child(work):
        found = read_as(READER, GROUP, places, seconds=4)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.split()[0]) > 20


def test_killed_at_random_moments_no_finished_run_is_lost(places: Path) -> None:
    chance = random.Random(20261121)
    deadline = time.monotonic() + KILLING_SECONDS
    finished: list[str] = []
    kills = interrupted = 0
    while time.monotonic() < deadline:
        generation = kills

        def work(report: int, generation: int = generation) -> None:
            for number in range(100_000):
                run_id = f"{generation:05d}-{number:05d}"
                with JobLock(str(places), "system") as lock:
                    lock.acquire(Holder("system", run_id, WRITER, "capkeep", 1.0, os.getpid()))
                    with Recorder(str(places)) as recorder:
                        assert recorder.unended() == (), "its predecessor closes what is open"
                        one_run(recorder, run_id)
                        os.write(report, f"{run_id}\n".encode())

        with child(work) as (pid, fd):
            time.sleep(chance.uniform(0.001, 0.06))
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            known = reported(fd, 100_000)
        finished += known
        kills += 1
        with RecordReader(str(places)) as records:
            mine = {r.id: r for r in records.last_runs(limit=len(known) + 2)}
            for run_id in known:
                assert mine[run_id].outcome is Outcome.COMPLETE
                assert len(records.steps(run_id)) == 2
            assert all(run.outcome is not None for run in mine.values()), "nothing runs any more"
            interrupted += len(records.unended())
        if kills % 25 == 1:
            member = read_as(READER, GROUP, places)
            assert member.returncode == 0, member.stderr
    with RecordReader(str(places)) as records:
        everything = {run.id: run for run in records.last_runs(limit=1_000_000)}
    assert set(finished) <= set(everything)
    for run in everything.values():
        if run.id not in finished:  # killed before the end, or after it and before its report
            assert run.outcome is Outcome.COMPLETE or run.failure is Failure.INTERRUPTED
    print(f"{kills} kills, {len(finished)} runs finished, {interrupted} interrupted")
    assert kills > 20 and interrupted > 3, "killed too seldom to say anything"


def test_a_killed_runner_frees_its_job_and_a_living_one_does_not(places: Path) -> None:
    def work(report: int) -> None:
        lock = JobLock(str(places), "system")
        lock.acquire(Holder("system", "open", WRITER, "capkeep", 1.0, os.getpid()))
        with Recorder(str(places)) as recorder:
            recorder.begin_run(Run("open", "system", 1.0))
            os.write(report, b"ready\n")
            time.sleep(60)

    with child(work) as (pid, fd):
        assert reported(fd, 1) == ["ready"]
        assert read_as(READER, GROUP, places).stdout == "1 open=None\n"
        with (
            pytest.raises(Exception, match="by capkeep since"),
            JobLock(str(places), "system") as lock,
        ):
            lock.acquire(Holder("system", "second"))
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert read_as(READER, GROUP, places).stdout == "1 open=interrupted\n"
        with JobLock(str(places), "system") as lock:
            lock.acquire(Holder("system", "second"))


def test_a_member_cannot_take_the_lock_of_a_job(places: Path) -> None:
    with child(lambda _: JobLock(str(places), "system").acquire(Holder("system"))) as (_, fd):
        reported(fd, 1)
    attempt = subprocess.run(
        ["flock", "--nonblock", "--shared", str(places / "system.lock"), "true"],
        user=READER, group=GROUP, extra_groups=[], capture_output=True, text=True, timeout=20,
        check=False,
    )  # fmt: skip
    assert attempt.returncode != 0
    assert "denied" in attempt.stderr
