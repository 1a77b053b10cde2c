"""A step as often as its job allows: waiting for a lock, and trying again to reach a repository.

Waiting for a lock is part of a step: nothing has been done yet. A try that failed for the network is
a step of its own in the record, and says that it was tried again.
"""

import select
import time
from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure, RefusedError
from capkeep.plan.model import Resources
from capkeep.records.locks import Holder, JobLock
from capkeep.rooms.protocol import Message
from capkeep.run.caller import Caller

# A network that is down may be up again. What else a step fails for stays as it is: a wrong
# password, refused credentials, damage, a full disk.
TRANSIENT: Final = frozenset((Failure.UNREACHABLE,))
LONGEST_WAIT: Final = 3600.0
LOCK_PAUSES: Final = (1.0, 2.0, 5.0, 10.0)  # the last one again and again


def pause(caller: Caller, seconds: float) -> bool:
    """Wait; False if the caller asks to stop meanwhile."""
    until = time.monotonic() + seconds
    while not caller.asked_to_stop:
        left = until - time.monotonic()
        if left <= 0:
            return True
        if select.select(caller.sockets(), [], [], min(left, 1.0))[0]:
            caller.hear()
    return False


class Retries:
    """The tries that one step has left. Its time limit is for all of them together."""

    def __init__(self, resources: Resources, seconds: float) -> None:
        self._resources = resources
        self._until = time.monotonic() + seconds
        self.tries = 1

    def next_pause(self, failure: Failure | None) -> float | None:
        """How long to wait before the next try; None if this one was the last."""
        if failure not in TRANSIENT or self.tries > self._resources.retries:
            return None
        wait = min(self._resources.retry_wait_seconds * 2.0 ** (self.tries - 1), LONGEST_WAIT)
        return wait if wait < self.seconds_left() else None

    def seconds_left(self) -> float:
        """Of the step's time limit."""
        return self._until - time.monotonic()


class LockPatience:
    """How long to wait for a lock, in growing pauses."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._tries = 0

    def wait(self, why: str, tell: Callable[[Message], None], caller: Caller) -> bool:
        """Wait a moment; False if it is over, or the caller has asked to stop.

        The first time, tell what is waited for.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            return False
        if not self._tries:
            text = f"{why}: waits for {int(left) + 1} s at most"
            tell({"event": "message", "text": text})
        step = LOCK_PAUSES[min(self._tries, len(LOCK_PAUSES) - 1)]
        self._tries += 1
        return pause(caller, min(step, left))


def acquire(lock: JobLock, who: Holder, seconds: float, caller: Caller) -> None:
    """Take a job's lock, waiting for it for so long. Raises RefusedError with who has it."""
    patience = LockPatience(seconds)
    while True:
        try:
            lock.acquire(who)
        except RefusedError as error:
            if not patience.wait(str(error), caller.tell, caller):
                raise
        else:
            return
