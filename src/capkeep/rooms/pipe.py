"""A pipe between two rooms, whose ends their common caller hands to each; and how such is taken."""

import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.rooms.base import EngineRoom, Stopped
from capkeep.rooms.protocol import Message

SECONDS: Final = 60
LEFT_SECONDS: Final = 120  # in which a reader that is left has ended its engine
TICK_SECONDS: Final = 1.0
TAIL_BYTES: Final = 512
PART_BYTES: Final = 1 << 20


def take_pipe(room: EngineRoom) -> int:
    """Say that we are ready, and take an end. Raises StepError for anything else, Stopped."""
    return take(room, {}, lambda fd: stat.S_ISFIFO(os.fstat(fd).st_mode), "a pipe")


def take(room: EngineRoom, ready: Message, fits: Callable[[int], bool], what: str) -> int:
    """Say that we are ready, and take one descriptor that fits.

    Raises StepError for anything else, Stopped.
    """
    room.tell({"event": "ready", **ready})
    sock = room.caller.sock
    sock.settimeout(SECONDS)
    said, fds, _, _ = socket.recv_fds(sock, 64, 2)
    sock.settimeout(room.patience)
    if not said:
        raise Stopped("the caller is gone")
    if len(fds) != 1 or not fits(fds[0]):
        for fd in fds:
            os.close(fd)
        raise StepError(Failure.REFUSED, f"the caller handed over something else than {what}")
    return fds[0]


def await_unread(end: int, seconds: float = LEFT_SECONDS) -> None:
    """Wait until nobody holds the other end of a pipe that we write to (POLLERR, poll(2)).

    Whoever closes before takes what came for all that there is.
    """
    poll = select.poll()
    poll.register(end, 0)
    poll.poll(seconds * 1000)


class Pump:
    """Carries what a program writes into a pipe, and knows how it ended. Use as a context.

    `begin` it when the program runs: no process may be forked beside a thread.
    """

    def __init__(self, target: int) -> None:
        self.bytes = 0
        self.tail = b""
        self.head = b""
        self.broken = False  # nobody takes it any more
        self._target = target
        self._source, self.inlet = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def begin(self) -> None:
        """From now on the program alone holds the inlet."""
        os.close(self.inlet)
        self.inlet = -1
        self._thread.start()

    def end(self, on_tick: Callable[[], None], deadline: float) -> None:
        """When the program has ended: wait until all has been taken, and tick once a second.

        Raises StepError when the time is over (`deadline`, of time.monotonic()), and what the tick
        raises.
        """
        while self._thread.is_alive():
            self._thread.join(TICK_SECONDS)
            on_tick()
            if time.monotonic() > deadline and self._thread.is_alive():
                raise StepError(Failure.TIMEOUT, "its end was not taken in time")

    def close(self) -> None:
        """What is left of it; a thread that still waits for somebody ends with this program."""
        if self.inlet >= 0:
            os.close(self.inlet)
            os.close(self._source)

    def _carry(self) -> None:
        try:
            while part := os.read(self._source, PART_BYTES):
                self.head = self.head or part[:TAIL_BYTES]
                self.tail = (self.tail + part)[-TAIL_BYTES:]
                self.bytes += len(part)
                view = memoryview(part)
                while view:
                    view = view[os.write(self._target, view) :]
        except OSError:
            self.broken = True
        finally:
            os.close(self._source)
