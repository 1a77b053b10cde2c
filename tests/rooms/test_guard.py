"""A guard: when it ends the helper that a room may be waiting for, and when not."""

import socket

import pytest

from capkeep.kernel.process import Child, spawn
from capkeep.rooms.guard import guarded


def sleeper() -> Child:
    return spawn(["/bin/sleep", "600"], env={}, stdin=-1)


def test_it_ends_it_when_its_time_is_over() -> None:
    near, far = socket.socketpair()
    child = sleeper()
    try:
        with near, far, guarded(child.fileno(), near.fileno(), 0.05):
            assert child.wait(20) == -9
    finally:
        child.kill()


@pytest.mark.parametrize("said", [b"", b"not heard yet\n"])
def test_it_ends_it_when_the_caller_leaves(said: bytes) -> None:
    near, far = socket.socketpair()
    child = sleeper()
    try:
        with near, guarded(child.fileno(), near.fileno(), 600):
            far.sendall(said)
            far.close()
            assert child.wait(20) == -9
    finally:
        child.kill()


def test_what_a_caller_says_is_not_for_it_and_it_goes_with_the_room() -> None:
    near, far = socket.socketpair()
    child = sleeper()
    try:
        with near, far:
            with guarded(child.fileno(), near.fileno(), 600):
                far.sendall(b"still here\n")
            assert near.recv(100) == b"still here\n"
            far.close()
            with pytest.raises(TimeoutError):
                child.wait(0.3)
    finally:
        child.kill()
