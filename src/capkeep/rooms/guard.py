"""A guard: ends a helper that a room may be waiting for in a system call that nothing else ends.

Whoever looks at files that another process answers for waits in the kernel as long as that one lets him,
hears nobody meanwhile, and does not even die before that one has died. So a copy of the room's program,
which looks at no file, listens in its place: for its caller's leaving, and for the end of its time.
"""

import math
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from capkeep.kernel import libc
from capkeep.kernel.process import PR_SET_PDEATHSIG, branch


@contextmanager
def guarded(helper: int, caller: int, seconds: float) -> Iterator[None]:
    """End the helper, of that pidfd, when the caller has left its socket, or in so many seconds.

    For a process with one thread. The guard is gone on every way out.
    """
    ward, ours = os.pipe()  # nobody writes: its end tells that the room is no more
    room = os.getpid()

    def work() -> None:
        libc.prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == room:
            _watch(helper, caller, ward, seconds)

    try:
        pid = branch(work, {helper, caller, ward})
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        os.close(ward)
        os.close(ours)


def _watch(helper: int, caller: int, ward: int, seconds: float) -> None:
    poll = select.poll()
    poll.register(helper, select.POLLIN)
    poll.register(caller, select.POLLRDHUP)  # what it says is for the room to hear
    poll.register(ward, 0)
    found = dict(poll.poll(math.ceil(seconds * 1000)))
    if helper in found or ward in found:
        return
    signal.pidfd_send_signal(helper, signal.SIGKILL)
