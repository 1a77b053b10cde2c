"""Starting programs: what a child inherits, holding it, ending it."""

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capkeep.kernel import process
from capkeep.kernel.process import Child, spawn


def output_of(argv: list[str], **more: object) -> tuple[int, str]:
    receiving, sending = os.pipe()
    child = spawn(argv, env={"PATH": "/usr/bin:/bin"}, stdout=sending, **more)  # type: ignore[arg-type]
    os.close(sending)
    with open(receiving) as file:
        text = file.read()
    return child.wait(10), text


def test_a_child_has_exactly_the_environment_it_is_given() -> None:
    code, text = output_of(["/usr/bin/env"])
    assert (code, text) == (0, "PATH=/usr/bin:/bin\n")


def test_a_child_inherits_no_descriptor_by_accident() -> None:
    stray = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        code, text = output_of(["/bin/ls", "-l", "/proc/self/fd"])
    finally:
        os.close(stray)
    assert code == 0
    assert "/etc/passwd" not in text
    assert len(text.splitlines()) == 1 + 3 + 1, "the three standard ones, and what ls opened"


def test_kept_descriptors_arrive_under_their_new_numbers_even_if_they_cross() -> None:
    one, two = os.memfd_create("one"), os.memfd_create("two")
    os.write(one, b"1")
    os.write(two, b"2")
    for fd in (one, two):
        os.lseek(fd, 0, os.SEEK_SET)
    code, text = output_of(
        ["/bin/cat", f"/proc/self/fd/{one}", f"/proc/self/fd/{two}"], keep={one: two, two: one}
    )
    os.close(one)
    os.close(two)
    assert (code, text) == (0, "21")


def test_a_program_that_cannot_be_run_is_an_error_here() -> None:
    with pytest.raises(FileNotFoundError):
        spawn(["/nonexistent/program"], env={})


def test_a_held_child_becomes_its_program_only_on_release() -> None:
    child = spawn(["/bin/sleep", "60"], env={}, hold=True)
    try:
        before = Path(f"/proc/{child.pid}/comm").read_text()
        child.release()
        assert Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n" != before
    finally:
        assert child.kill() == -9


def test_what_fails_in_preparation_is_reported_and_nothing_is_started() -> None:
    def fail() -> None:
        raise PermissionError(13, "no")

    with pytest.raises(PermissionError):
        spawn(["/bin/true"], env={}, prepare=fail)


def test_waiting_has_a_limit() -> None:
    child = spawn(["/bin/sleep", "60"], env={})
    try:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            child.wait(0.2)
        assert time.monotonic() - start < 5
    finally:
        child.kill()


def test_a_child_dies_with_its_parent() -> None:
    receiving, sending = os.pipe()

    def middle(run: Callable[[], Child]) -> None:
        os.write(sending, str(run().pid).encode())

    pid = os.fork()
    if pid == 0:
        middle(lambda: spawn(["/bin/sleep", "60"], env={}))
        os._exit(0)
    os.waitpid(pid, 0)
    orphan = int(os.read(receiving, 20))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(orphan):
        time.sleep(0.01)
    assert not _alive(orphan)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_failed_fork_leaves_no_descriptor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn(["/bin/true"], env={}).wait(10)
    before = _descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(8):  # running out at every place in turn
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare - 1, hard))
        try:
            with contextlib.suppress(OSError):  # "Too many open files"
                spawn(["/bin/true"], env={}).wait(10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(os, "fork", _no_fork)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            spawn(["/bin/true"], env={})
    assert _descriptors() == before


def _no_fork() -> int:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_reason_with_any_name_in_it_is_reported() -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "gone", os.fsdecode(b"/srv/\xff"))

    with pytest.raises(FileNotFoundError):
        spawn(["/bin/true"], env={}, prepare=fail)


def test_a_preparation_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0.3)
    start = time.monotonic()
    for hold in (False, True):
        with pytest.raises(TimeoutError):
            spawn(["/bin/true"], env={}, prepare=lambda: time.sleep(60), hold=hold)
    assert time.monotonic() - start < 10


def test_a_child_has_a_known_umask() -> None:
    before = os.umask(0)
    try:
        assert output_of(["/bin/sh", "-c", "umask"]) == (0, "0022\n")
    finally:
        os.umask(before)


def test_children_are_watched_whatever_number_their_descriptor_has() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert spawn(["/bin/sleep", "0.1"], env={}).wait(10) == 0
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
