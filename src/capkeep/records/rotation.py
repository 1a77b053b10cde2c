"""Which part of a repository's data is to be read next, so that all is read in a given time; pure.

An engine's part n/t holds the packs whose id's first byte is n - 1, divided by t (restic 0.14 to
0.19, cmd_check.go, selectPacksByBucket). So what was read is known for each of 256 bytes, whatever
number of parts there was at the time.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

BYTES: Final = 256  # also the most parts that an engine knows
DAY: Final = 86400.0
GAPS: Final = 3  # between this and the last checks, which tell how often there is one
MARGIN: Final = 0.8  # of the time: checks do not come as regularly as they did
LEAST: Final = 3600.0  # seconds: checks that follow each other faster say nothing about the next


class Read(NamedTuple):
    """A part that was read without finding an error."""

    when: float
    part: int  # 1 … parts
    parts: int  # 1: all


class Coverage(NamedTuple):
    """What was read."""

    share: float  # of all data, within the time asked for; 0 … 1
    oldest: float | None  # when the part that was read longest ago was read; None: some never was


def read_times(reads: Iterable[Read]) -> list[float | None]:
    """When the packs of each first byte were last read."""
    times: list[float | None] = [None] * BYTES
    for read in reads:
        for byte in _bytes(read.part, read.parts):
            times[byte] = max(times[byte] or read.when, read.when)
    return times


def coverage(reads: Iterable[Read], within: float, now: float) -> Coverage:
    """How much was read within so many seconds."""
    times = read_times(reads)
    fresh = sum(1 for t in times if t is not None and now - t <= within)
    known = [t for t in times if t is not None]
    return Coverage(fresh / BYTES, min(known) if len(known) == BYTES else None)


def next_part(reads: Iterable[Read], within: float, now: float) -> tuple[int, int]:
    """The part to read now: number and number of parts.

    As little as will do, so that nothing gets older than the time asked for if checks go on as they
    came lately. Numbers of parts are powers of two: such
    parts lie in each other, and never leave odd pieces over. What was never read is as old as the
    first check.
    """
    reads = sorted(reads)
    within *= MARGIN
    first = reads[0].when if reads else now
    interval = _interval([*(r.when for r in reads[-GAPS:]), now])
    times = [first if t is None else t for t in read_times(reads)]
    needed = 1.0  # bytes now, if each later check may read half as much again
    for number, when in enumerate(sorted(times), start=1):
        checks = max(1, int(max(0.0, when + within - now) / interval))
        needed = max(needed, number / (1.5 * checks - 0.5))
    parts = BYTES
    while parts > 1 and BYTES // parts < needed:
        parts //= 2
    unread = [t is None for t in read_times(reads)]

    def urgency(part: int) -> tuple[int, float, int]:
        members = _bytes(part, parts)
        unread_here = sum(unread[b] for b in members)
        return unread_here, sum(now - times[b] for b in members), -_mirrored(part - 1)

    return max(range(1, parts + 1), key=urgency), parts


def _mirrored(byte: int) -> int:
    """Its bits in reverse: in this order small parts make up one larger part after the other."""
    return int(f"{byte:08b}"[::-1], 2)


def _interval(times: list[float]) -> float:
    """Between two checks: the longest of the last gaps, a day while there is none."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return max([LEAST, *gaps]) if gaps else DAY


def _bytes(part: int, parts: int) -> range:
    return range(part - 1, BYTES, parts)
