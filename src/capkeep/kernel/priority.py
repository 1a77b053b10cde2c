"""How much a process steps back for others: nice(2), ioprio_set(2), sched_setaffinity(2), prlimit(2).

Inherited by all that it starts. Never comes before where we are ourselves.
"""

import os
from typing import Final, Protocol

from capkeep.kernel import libc

IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}  # asm/unistd.h
IOPRIO_WHO_PROCESS: Final = 1
IO_CLASSES: Final = {"best-effort": 2, "idle": 3}  # linux/ioprio.h
CLASS_SHIFT: Final = 13


class Wanted(Protocol):
    """What is asked for; a plan's limits are one."""

    @property
    def nice(self) -> int:
        """0 to 19."""

    @property
    def io_class(self) -> str:
        """One of IO_CLASSES, or "" for none."""

    @property
    def io_priority(self) -> int:
        """0 to 7, within best-effort."""

    @property
    def cpu_percent(self) -> int:
        """Of one processor; 0 for no limit."""


def step_back(wanted: Wanted) -> None:
    """Make this process as modest as that. Raises OSError."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if wanted.nice > own:
        os.setpriority(os.PRIO_PROCESS, 0, wanted.nice)
    if wanted.io_class:
        level = 0 if wanted.io_class == "idle" else wanted.io_priority
        number = IOPRIO_SET[os.uname().machine]
        value = IO_CLASSES[wanted.io_class] << CLASS_SHIFT | level
        libc.syscall("ioprio_set", number, IOPRIO_WHO_PROCESS, 0, value)
    if wanted.cpu_percent:
        # A quota is a control group's; without systemd there is none to be had everywhere. So many
        # processors, rounded up, is what any kernel can promise.
        count = -(-wanted.cpu_percent // 100)
        usable = sorted(os.sched_getaffinity(0))
        if count < len(usable):
            os.sched_setaffinity(0, usable[-count:])


def limit_memory(most: int) -> None:
    """Have no more data than so many bytes, or than was allowed before (RLIMIT_DATA). Raises OSError."""
    import resource  # of few rooms alone

    # By prlimit(2): systemd's filter takes setrlimit(2) for a change of priorities (@resources).
    _, hard = resource.prlimit(0, resource.RLIMIT_DATA)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.prlimit(0, resource.RLIMIT_DATA, (most, most))
