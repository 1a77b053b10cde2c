"""Pairs of pipes in, threads out: a bounded number of each, all ended when the wire closes."""

import threading
import time
from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure
from capkeep.rooms.handover import Ends
from capkeep.rooms.rest.ends import Times
from capkeep.rooms.rest.front import Front
from capkeep.rooms.rest.http2 import Pair
from capkeep.rooms.service import StoreError

MAX_OPEN: Final = (
    8  # at a time: calls of an engine follow each other, and of some there are hundreds
)
STACK: Final = 512 << 10  # bytes of a thread's stack
END_SECONDS: Final = 20


class Server:
    """Serves a front on pairs of pipes. Close it to end them all."""

    def __init__(
        self, front: Front, failed: Callable[[StoreError], None], times: Times | None = None
    ) -> None:
        """`failed` is told why somebody is not served."""
        self._front = front
        self._failed = failed
        self._times = times or Times()
        self._lock = threading.Lock()
        self._open: dict[Pair, threading.Thread] = {}
        threading.stack_size(STACK)

    def serve(self, ends: Ends) -> None:
        """Talk to an engine; one too many is not listened to, and told of."""
        with self._lock:
            if len(self._open) >= MAX_OPEN:
                self._refuse(ends, f"{MAX_OPEN} are at work already")
                return
            try:
                pair = Pair(ends.incoming, ends.outgoing, self._front, self._times)
            except OSError as error:  # too many descriptors are open
                self._refuse(ends, str(error.strerror))
                return
            thread = threading.Thread(target=self._run, args=(pair,), daemon=True)
            self._open[pair] = thread
        try:
            thread.start()
        except RuntimeError:  # the room's limit
            with self._lock:
                del self._open[pair]
            self._refuse(ends, "no more threads may be started")
            pair.forget()

    def _refuse(self, ends: Ends, why: str) -> None:
        ends.close()
        text = f"the vault did not serve a call of the engine: {why}"
        self._failed(StoreError(Failure.REFUSED, text))

    def close(self) -> None:
        """End all pairs and wait for their threads, for a limited time."""
        with self._lock:
            threads = list(self._open.values())
            for pair in self._open:
                pair.end()
        deadline = time.monotonic() + END_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, pair: Pair) -> None:
        try:
            pair.run()
        finally:
            with self._lock:
                del self._open[pair]
            pair.forget()
