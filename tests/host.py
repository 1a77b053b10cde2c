"""What the host that runs the tests is like, where that decides what they can show."""

from capkeep.kernel.facts import read_facts

NEWEST_LANDLOCK = 6  # the ABI from which everything is there that a room uses


def host_filters() -> bool:
    """Whether a container's system call filter is around us: what it stops, no room stops."""
    return read_facts(None, ()).seccomp != 0
