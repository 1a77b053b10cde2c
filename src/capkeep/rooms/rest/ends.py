"""The two ends that a vault has of a pair of pipes with an engine: one to read, one to write.

Neither ever blocks for longer than it should: what comes in is taken in by one thread, which never
waits for room to write; what goes out is written by whoever has something to say.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from capkeep.rooms.rest.frames import Code, Mistake

WAITING_LIMIT: Final = 1000  # short frames that a peer may let wait; each at most 4 KiB: PIPE_BUF
DISCARD: Final = 64 << 10


class Times(NamedTuple):
    """How long an engine may take, in seconds. An idle pair is kept: restic cannot open another."""

    hello: float = 30  # from the handover to the first frame
    head: float = 30  # from a header's first byte to its last
    stall: float = 120  # for each 256 KiB of a body: a minimum rate of about 2 KiB/s


class Gone(Exception):
    """The engine left or took too long; there is nobody to answer."""


def watch(*watched: tuple[int, int]) -> select.poll:
    """For `wait`: descriptors, each with what is waited for."""
    poll = select.poll()
    for fd, what in watched:
        poll.register(fd, what)
    return poll


def wait(poll: select.poll, end: int, deadline: float | None) -> None:
    """Until something is ready. Raises Gone after the deadline, and when `end` is."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    ready = poll.poll(left)
    if not ready:
        raise Gone("it took too long")
    if any(fd == end for fd, _ in ready):
        raise Gone("the end")


class Outlet:
    """Where answers go. Owns its descriptor; `end` is readable once all is to end."""

    def __init__(self, fd: int, end: int, stall: float) -> None:
        self._fd = fd
        self._end = end
        self._stall = stall
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._room = watch((fd, select.POLLOUT), (end, select.POLLIN))
        os.set_blocking(fd, False)

    @property
    def waiting(self) -> bool:
        """Whether something is to be written as soon as there is room."""
        return bool(self._waiting)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._fd

    def post(self, frame: bytes) -> None:
        """A short frame, now or later; never waits. Raises Mistake if too many do, Gone."""
        if len(self._waiting) >= WAITING_LIMIT:
            raise Mistake(Code.ENHANCE_YOUR_CALM, "answers are not read")
        self._waiting.append(frame)
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as there is room. Raises Gone."""
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                self._write_waiting(patient=False)
            except BlockingIOError:
                return
            finally:
                self._lock.release()

    def put(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Whole frames, behind those that wait. Raises Gone, also if nobody reads for too long."""
        with self._lock:
            self._write_waiting(patient=True)
            left = list(pieces)
            while left:
                left = _rest(left, self._write(left))
        while self._waiting and self._lock.acquire(blocking=False):
            try:  # whoever came meanwhile left it to us
                self._write_waiting(patient=True)
            finally:
                self._lock.release()

    def close(self) -> None:
        """Nothing goes out any more; safe to call again. `end` must be readable."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _write_waiting(self, *, patient: bool) -> None:
        """Frames that are written whole or not at all (pipe(7), PIPE_BUF)."""
        while self._waiting:
            frame = self._waiting[0]
            if patient:
                self._write([frame])
            else:
                self._try([frame])
            self._waiting.popleft()

    def _try(self, pieces: Sequence[bytes | memoryview]) -> int:
        if self._fd < 0:
            raise Gone("closed")
        try:
            return os.writev(self._fd, pieces)
        except BlockingIOError:
            raise
        except OSError as error:
            raise Gone("nobody listens") from error

    def _write(self, pieces: Sequence[bytes | memoryview]) -> int:
        deadline = time.monotonic() + self._stall
        while True:
            try:
                return self._try(pieces)
            except BlockingIOError:
                wait(self._room, self._end, deadline)


def _rest(pieces: list[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """What is left of some pieces, so many bytes of which are written."""
    for n, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[n + 1 :]]
        written -= len(piece)
    return []


class Inlet:
    """Where requests come from; used by one thread, which also writes what waits in the outlet."""

    def __init__(self, fd: int, end: int, outlet: Outlet, stall: float) -> None:
        self._fd = fd
        self._end = end
        self._outlet = outlet
        self._stall = stall
        self._quiet = watch((fd, select.POLLIN), (end, select.POLLIN))
        self._busy = watch(
            (fd, select.POLLIN), (end, select.POLLIN), (outlet.fileno(), select.POLLOUT)
        )
        os.set_blocking(fd, False)

    def close(self) -> None:
        """Nothing comes in any more."""
        os.close(self._fd)

    def read(self, count: int, *, idle: float | None, whole: float) -> bytes:
        """Exactly so many bytes: the first within `idle` seconds, or whenever; then the rest.

        Raises Gone, also when the engine has left.
        """
        data = b""
        deadline = None if idle is None else time.monotonic() + idle
        while True:
            try:
                part = os.read(self._fd, count - len(data))
            except BlockingIOError:
                self._await(deadline)
                continue
            if not part:
                raise Gone("it left")
            if len(part) == count:
                return part
            if not data:
                deadline = time.monotonic() + whole
            data += part
            if len(data) == count:
                return data

    def move(self, into: int, count: int) -> None:
        """So many bytes into another pipe, unread (splice(2)); what that will not have is dropped.

        Raises Gone.
        """
        deadline = time.monotonic() + self._stall
        looked = False
        while count:
            try:
                got = os.splice(self._fd, into, count, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                # Either there is nothing in ours, or no room in the other.
                if looked:
                    full = watch((into, select.POLLOUT), (self._end, select.POLLIN))
                    wait(full, self._end, deadline)
                else:
                    self._await(deadline)
                looked = not looked
                continue
            except BrokenPipeError:
                self.drop(count)
                return
            if not got:
                raise Gone("it left")
            count -= got
            looked = False

    def drop(self, count: int) -> None:
        """Read so many bytes for nothing. Raises Gone."""
        while count:
            count -= len(self.read(min(count, DISCARD), idle=self._stall, whole=self._stall))

    def _await(self, deadline: float | None) -> None:
        """Until there is something to read; writing what waits meanwhile. Raises Gone."""
        while self._outlet.waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = dict(self._busy.poll(left))
            if not ready or self._end in ready:
                raise Gone("it took too long")
            self._outlet.flush()
            if self._fd in ready:
                return
        wait(self._quiet, self._end, deadline)
