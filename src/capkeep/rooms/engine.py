"""A running engine: what it prints, line by line, until it ends or must be ended."""

import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel.process import Child

END_SECONDS: Final = 60  # from the engine's last word to its end
TICK_SECONDS: Final = 1.0
READ_SIZE: Final = 1 << 18
LINE_LIMIT: Final = 16 << 20  # bytes of one line
# An engine names every file in a write of its own. Waking for each of them would cost as much of
# the processor as the vault does; so what it prints is left to gather, unless it prints much.
GATHER_SECONDS: Final = 0.02
GATHERED: Final = READ_SIZE // 4  # bytes


class RunningEngine:
    """An engine's process and the two pipes that it prints to; its owner ends all three.

    `others`: descriptors to be heard meanwhile, each with what to do when it has something to say.
    """

    def __init__(
        self, child: Child, stdout: int, stderr: int, others: Mapping[int, Callable[[], None]]
    ) -> None:
        self._child = child
        self._open = {stdout: "stdout", stderr: "stderr"}
        self._partial = {stdout: b"", stderr: b""}
        self._others = others
        self._raw = -1  # what is fed in parts as they come, not in lines
        self._buffer = bytearray(READ_SIZE)
        self._every, self._aside = select.poll(), select.poll()
        for fd in (*self._open, *others):
            self._every.register(fd, select.POLLIN)
        for fd in (child.fileno(), *others):
            self._aside.register(fd, select.POLLIN)

    def fileno(self) -> int:
        """Readable once its process has ended: a pidfd."""
        return self._child.fileno()

    def open_fds(self) -> tuple[int, ...]:
        """Where it still prints to; for whoever listens to several engines at a time."""
        return tuple(self._open)

    def feed(self, fd: int, on_line: Callable[[str, bytes], None]) -> bool:
        """Take in what there is to read; whether that is little, and more is worth waiting for."""
        return 0 < self._read(fd, on_line) < GATHERED

    def has_left(self) -> bool:
        """Whether its process has ended, though something may hold its pipes open."""
        return self._child.poll() is not None

    def take_parts(self) -> None:
        """From now on feed what comes on stdout as it comes: lines may have any length."""
        self._raw = next(fd for fd, stream in self._open.items() if stream == "stdout")

    def end(self) -> int:
        """The exit code, after its last word. Raises StepError."""
        try:
            return self._child.wait(END_SECONDS)
        except TimeoutError as error:
            raise StepError(
                Failure.ENGINE, "the engine closed its output and went on running"
            ) from error

    def run(
        self,
        on_line: Callable[[str, bytes], None],
        *,
        on_tick: Callable[[], None],
        deadline: float,
        may_be_quiet: bool = False,
    ) -> int:
        """The exit code; feeds every line to `on_line` (stream name, line), ticks once a second.

        One that `may_be_quiet` has all its time, though it has closed its output. Raises StepError
        if the time is over (`deadline`, of time.monotonic()) or a line has no end, and whatever
        `on_tick` and the others raise.
        """
        next_tick = time.monotonic() + TICK_SECONDS
        left = False
        while self._open:
            found = self._every.poll(TICK_SECONDS * 1000)
            if left and not any(fd in self._open for fd, _ in found):
                break  # whoever else talks must not keep us from seeing that
            gathering = self._take(found, on_line)
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                if now > deadline:
                    raise StepError(Failure.TIMEOUT, "the step took longer than its time limit")
                on_tick()
                left = self._child.poll() is not None
            if not found and self._child.poll() is not None:
                break  # it has ended, and what it left behind may hold its pipes open for ever
            if gathering:
                self._hear(self._aside.poll(GATHER_SECONDS * 1000))
        while may_be_quiet and self._child.poll() is None:
            self._hear(self._aside.poll(TICK_SECONDS * 1000))
            if time.monotonic() > deadline:
                raise StepError(Failure.TIMEOUT, "the step took longer than its time limit")
            on_tick()
        return self.end()

    def _take(self, found: list[tuple[int, int]], on_line: Callable[[str, bytes], None]) -> bool:
        """Read and hear whoever is ready; whether the engine prints, but little at a time."""
        gathering = False
        for fd in [fd for fd, _ in found if fd in self._open]:
            gathering = 0 < self._read(fd, on_line) < GATHERED
        self._hear(found)
        return gathering

    def _hear(self, found: list[tuple[int, int]]) -> None:
        for fd, events in found:
            if fd not in self._others:
                continue
            self._others[fd]()
            if not events & select.POLLIN:  # its end: poll(2) would tell of that again and again
                self._every.unregister(fd)
                self._aside.unregister(fd)

    def _read(self, fd: int, on_line: Callable[[str, bytes], None]) -> int:
        """Take in what there is; returns how much, 0 at the end."""
        # Into a buffer that stays: a new one of this size each time would be mapped and unmapped.
        got = os.readv(fd, [self._buffer])
        stream = self._open[fd]
        if not got:
            del self._open[fd]
            self._every.unregister(fd)
            if self._partial[fd]:
                on_line(stream, self._partial[fd])
            return 0
        if fd == self._raw:
            on_line(stream, bytes(self._buffer[:got]))
            return got
        *lines, rest = (self._partial[fd] + self._buffer[:got]).split(b"\n")
        for line in lines:
            on_line(stream, line)
        if len(rest) > LINE_LIMIT:
            raise StepError(Failure.ENGINE, f"the engine printed a line over {LINE_LIMIT} bytes")
        self._partial[fd] = rest
        return got
