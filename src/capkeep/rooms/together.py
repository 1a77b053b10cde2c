"""Several engine calls at a time, in one room.

Each call derives its key anew, half a second of one processor; two at a time take as long as one.
"""

import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, NamedTuple

from capkeep.engines.base import Command
from capkeep.errors import Failure, StepError
from capkeep.rooms.calls import Caller, OnLine
from capkeep.rooms.engine import GATHER_SECONDS, TICK_SECONDS, RunningEngine

WEEK: Final = 7 * 24 * 3600


class _Running(NamedTuple):
    engine: RunningEngine
    on_line: OnLine
    on_end: Callable[[int], None]
    stack: ExitStack  # ends the engine


class Together:
    """Engines side by side, or one after the other. A context: none outlives it."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._running: list[_Running] = []
        self._waiting: list[tuple[Command, OnLine, Callable[[int], None]]] = []
        self._at_once = 8 if caller.engine.traits.side_by_side else 1
        self._deadline = time.monotonic() + WEEK

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._running:
            one.stack.close()

    @property
    def running(self) -> bool:
        """Whether any engine is at work."""
        return bool(self._running)

    def start(self, command: Command, on_line: OnLine, on_end: Callable[[int], None]) -> None:
        """Start a call; `on_end` gets its exit code and may start others. Raises StepError.

        Where only one can work at a time the others wait for it.
        """
        if len(self._running) >= self._at_once:
            self._waiting.append((command, on_line, on_end))
            return
        with ExitStack() as stack:
            engine = stack.enter_context(self._caller.started(command))
            self._running.append(_Running(engine, on_line, on_end, stack.pop_all()))

    def run(self) -> None:
        """Until all have ended. Raises StepError, Stopped: what ends all of them."""
        room = self._caller.room
        others = room.heard()
        next_tick = time.monotonic() + TICK_SECONDS
        while self._running:
            found = {fd for fd, _ in self._poll(others).poll(TICK_SECONDS * 1000)}
            gathering = [self._feed(one, found) for one in self._running]
            for fd in found & others.keys():
                others[fd]()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                if now > self._deadline:
                    raise StepError(Failure.TIMEOUT, "the step took longer than its time limit")
                room.alive()
            self._end_ended(quiet=not found)
            if any(gathering):
                time.sleep(GATHER_SECONDS)

    def _poll(self, others: dict[int, Callable[[], None]]) -> select.poll:
        poll = select.poll()
        for fd in (*others, *(fd for one in self._running for fd in one.engine.open_fds())):
            poll.register(fd, select.POLLIN)
        return poll

    def _feed(self, one: _Running, found: set[int]) -> bool:
        ready = [fd for fd in one.engine.open_fds() if fd in found]
        little = [one.engine.feed(fd, one.on_line) for fd in ready]  # each of them is to be fed
        return any(little)

    def _end_ended(self, *, quiet: bool) -> None:
        for one in list(self._running):
            if not one.engine.open_fds() or (quiet and one.engine.has_left()):
                code = one.engine.end()
                self._running.remove(one)
                one.stack.close()
                one.on_end(code)
                if self._waiting and not self._running:
                    self.start(*self._waiting.pop(0))
