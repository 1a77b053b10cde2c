"""What a job may take: priorities, rates, patience and further tries, as the kernel and clock see it."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import restic_programs
from tests.rooms.house import House, house, wait_for
from tests.rooms.test_vault_engines import RestServer, running
from tests.system.conftest import Product
from tests.system.scenes import locks, processes, random_file, start
from tests.system.test_places import into, rest_place, steps
from tests.system.test_trouble import engines, slow_run

JOB = "[jobs.job]"
IOPRIO_GET = {"x86_64": 252, "aarch64": 31}
IDLE, BEST_EFFORT = 3 << 13, 2 << 13


def set_for_job(product: Product, *lines: str) -> None:
    product.configure(JOB, "\n".join([JOB, *lines]))


def io_priority(pid: int) -> int:
    call = ctypes.CDLL(None, use_errno=True).syscall
    return int(call(IOPRIO_GET[os.uname().machine], 1, pid))


def test_priorities_are_what_the_kernel_says(product: Product) -> None:
    set_for_job(product, "nice = 7", 'io-class = "best-effort"', "io-priority = 6",
                'cpu-limit = "50%"', 'memory-limit = "1GiB"')  # fmt: skip
    run = slow_run(product)
    readers = {p for p, words in processes(product, "reader").items() if b"restic" in words}
    engine = next(pid for pid in engines(product) if pid in readers)
    try:
        assert os.getpriority(os.PRIO_PROCESS, engine) == 7
        assert io_priority(engine) == BEST_EFFORT | 6
        assert len(os.sched_getaffinity(engine)) == 1
        limits = Path(f"/proc/{engine}/limits").read_text()
        assert str(1 << 30) in next(x for x in limits.splitlines() if x.startswith("Max data"))
        for pid in processes(product, "vault"):
            assert os.getpriority(os.PRIO_PROCESS, pid) == 0, "the job's reader alone steps back"
    finally:
        os.kill(engine, signal.SIGCONT)
        run.communicate(timeout=60)
    assert run.returncode == 0


def test_idle_at_the_disk(product: Product) -> None:
    set_for_job(product, 'io-class = "idle"')
    run = slow_run(product)
    try:
        assert io_priority(engines(product)[0]) & ~7 == IDLE
    finally:
        os.kill(engines(product)[0], signal.SIGCONT)
        run.communicate(timeout=60)


def test_an_upload_limit_holds(product: Product) -> None:
    random_file(product.source / "big", 6)
    set_for_job(product, 'upload-limit = "2MiB/s"')
    began = time.monotonic()
    done = product("run", "--json")
    took = time.monotonic() - began
    assert done.code == 0, done
    stored = steps(done)[0]["stored"]
    assert isinstance(stored, int)
    assert stored > 6 << 20
    assert took > stored / (2 << 20) - 0.5
    assert took < stored / (2 << 20) + 20


def test_a_download_limit_holds_and_nothing_is_slow_without(product: Product) -> None:
    random_file(product.source / "big", 6)
    began = time.monotonic()
    assert product("run").code == 0
    assert time.monotonic() - began < 60, (
        "at that rate what it sends would take a minute and a half"
    )
    set_for_job(product, 'download-limit = "64KiB/s"')
    assert product("run").code == 0, "what a backup reads is little"


def test_a_run_waits_for_the_one_before(product: Product) -> None:
    set_for_job(product, 'lock-wait = "1m"')
    first = slow_run(product)
    second = start(product, "run", "--json")
    try:
        assert second.stdout is not None
        said = json.loads(second.stdout.readline())
        assert said["event"] == "message"
        assert "waits for" in said["text"]
    finally:
        os.kill(engines(product)[0], signal.SIGCONT)
        first.communicate(timeout=60)
    out, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), out


def test_the_wait_for_a_run_ends(product: Product) -> None:
    set_for_job(product, 'lock-wait = "2s"')
    first = slow_run(product)
    try:
        began = time.monotonic()
        second = product("run")
        assert second.code == 4, second
        assert 2 <= time.monotonic() - began < 20
    finally:
        os.kill(engines(product)[0], signal.SIGCONT)
        first.communicate(timeout=60)


def test_a_wait_can_be_given_up(product: Product) -> None:
    set_for_job(product, 'lock-wait = "1m"')
    first = slow_run(product)
    try:
        second = start(product, "run", "--json")
        assert second.stdout is not None
        second.stdout.readline()
        second.send_signal(signal.SIGINT)
        out, _ = second.communicate(timeout=20)
        assert second.returncode == 4, out
    finally:
        os.kill(engines(product)[0], signal.SIGCONT)
        first.communicate(timeout=60)


@pytest.mark.parametrize("engine", ["0.14", "0.19"])
def test_a_run_waits_for_a_locked_repository(product: Product, engine: str) -> None:
    """Locked for itself by a check outside of capkeep, with the same engine."""
    if engine != "0.14":
        programs = restic_programs()
        product.configure(str(programs["0.14"]), str(programs[engine]))
    with exclusively_locked(product, engine):
        refused = product("run")
        assert refused.code == 11, refused
        set_for_job(product, 'lock-wait = "1m"')
        waiting = start(product, "run", "--json")
        assert waiting.stdout is not None
        for line in waiting.stdout:
            if b"waits for" in line:
                break
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, out
    assert len([1 for line in out.splitlines() if b'"step-end"' in line]) == 1


@contextlib.contextmanager
def exclusively_locked(product: Product, engine: str) -> Iterator[None]:
    """A prune of somebody else's that stands still, with the lock that it takes."""
    before = locks(product)
    argv = [str(restic_programs()[engine]), "-r", str(product.repository), "--no-cache", "prune"]
    environment = {"RESTIC_PASSWORD": "a password", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as child:
        try:
            wait_for(lambda: locks(product) > before)
            child.send_signal(signal.SIGSTOP)
            own, theirs = product.repository.stat(), locks(product) - before
            assert theirs, "it ended before it could be stopped"
            for lock in theirs:
                os.chown(lock, own.st_uid, own.st_gid)
            yield
        finally:
            child.kill()
    for lock in theirs:
        lock.unlink()


@pytest.fixture
def home() -> Iterator[House]:
    with house() as home, home.doors():
        yield home


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_repository_out_of_reach_is_tried_again_and_each_try_recorded(
    home: House, tmp_path: Path
) -> None:
    server = RestServer(tmp_path)
    product = rest_place(home, server, "secret")
    with running(server.argv, server.port):
        assert product("init").code == 0
    set_for_job(product, "retries = 3", 'retry-wait = "4s"')
    run = start(product, "run", "--json")
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(json.loads(line))
        if lines[-1]["event"] == "step-end":
            break
    assert lines[-1]["failure"] == "unreachable"
    assert "to be tried again in 4 s" in lines[-1]["text"]
    with running(server.argv, server.port):
        out, _ = run.communicate(timeout=90)
    assert run.returncode == 0, out
    newest = json.loads(product("history", "--json", "--limit", "1").out)[0]
    assert [s["outcome"] for s in newest["steps"]] == ["failed", "complete"]
    assert newest["outcome"] == "complete"
    assert newest["reasons"] == []


def test_the_last_try_counts_and_comes_no_sooner(home: House) -> None:
    product = into(home, f"rest:http://127.0.0.1:{free_port()}/r/")
    set_for_job(product, "retries = 2", 'retry-wait = "1s"')
    began = time.monotonic()
    done = product("run", "--json")
    assert done.code == 15, done
    assert [s["failure"] for s in steps(done)] == ["unreachable"] * 3
    assert time.monotonic() - began > 3  # 1 s, then 2 s


def test_what_does_not_get_better_is_not_tried_again(product: Product) -> None:
    set_for_job(product, "retries = 3", 'retry-wait = "1s"')
    Path(product.home.base, "etc/secrets/repo").write_text("another\n")
    done = product("run", "--json")
    assert done.code == 12, done
    assert len(steps(done)) == 1
