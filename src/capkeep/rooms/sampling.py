"""Which files of a snapshot a drill restores; pure, and in memory that does not grow with the snapshot.

A weighted sample without replacement in one pass: each file draws a number, more easily a high one the
heavier it is, and the highest stay (P. Efraimidis, P. Spirakis, "Weighted random sampling with a
reservoir", 2006). The same seed and the same list give the same sample.
"""

import heapq
import math
import random
from typing import Final

from capkeep.engines.base import Entry

BLOCK: Final = 4096  # bytes
DAY: Final = 86400.0


def weight(size: int, age: float) -> float:
    """How likely a file is chosen, after `age` seconds.

    Large ones are in more places of a repository, and old ones have lain there longest unread.
    """
    return (1 + math.log2(1 + size / BLOCK)) * (1 + math.log2(1 + max(0.0, age) / DAY) / 4)


class Sample:
    """Takes entry after entry, and keeps some."""

    def __init__(self, seed: str, count: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 (to be repeated, not to be secret)
        self._count = count
        self._heap: list[tuple[float, int, Entry]] = []
        self._seen = 0

    def add(self, entry: Entry, age: float) -> None:
        """One that may be chosen."""
        self._seen += 1
        draw = math.log(1.0 - self._random.random()) / weight(entry.size, age)
        item = (draw, self._seen, entry)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, item)
        elif item > self._heap[0]:
            heapq.heapreplace(self._heap, item)

    def chosen(self, most_bytes: int) -> list[Entry]:
        """Those that stay, by path: as many of the best as have so many bytes together."""
        left = most_bytes
        kept = []
        for _, _, entry in sorted(self._heap, reverse=True):
            if entry.size <= left:
                left -= entry.size
                kept.append(entry)
        return sorted(kept)


def batches(entries: list[Entry], most: int, most_bytes: int, most_text: int) -> list[list[Entry]]:
    """Restored one after the other: each with so many entries, bytes and characters of names at most."""
    found: list[list[Entry]] = []
    size = text = 0
    for entry in entries:
        full = found and (
            len(found[-1]) >= most or size + entry.size > most_bytes
            or text + len(entry.path) > most_text
        )  # fmt: skip
        if not found or full:
            found.append([])
            size = text = 0
        found[-1].append(entry)
        size += entry.size
        text += len(entry.path)
    return found
