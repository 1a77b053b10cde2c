"""What a reader reads beside its engine: keyed sums of a part of the files, for drills to come.

A file that changes after its backup can never again be compared with what it was. So after each backup
of a job with drills the reader sums some of the files that have not changed since some minutes before the
engine began: what the engine has kept of them must be what is read now. The key comes from the repository's
password and a nonce of the reader's own (`rooms/sums.py`); the runner keeps the sums for drills
(`run/manifest.py`).
"""

import heapq
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import Final

from capkeep.engines.base import KEPT_MOST
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.protocol import Message, encode
from capkeep.rooms.sums import MANIFEST, content_sum, key_of, latest_above, open_unled, text_sum

FILES_MOST: Final = 200
BYTES_MOST: Final = 64 << 20
TEXT_MOST: Final = 256 << 10  # characters of the message
SECONDS: Final = 5.0
# A page that is mapped and dirty is written to without a change of time, until it has been written out:
# after half a minute as kernels come (vm.dirty_expire_centisecs), after minutes on some laptops.
SETTLED_SECONDS: Final = 600
NAME_MOST: Final = 6 * 4096 + 2  # bytes of a quoted path (PATH_MAX): "\u0001" is one of it
CIRCLE: Final = 1 << 64
UNKNOWN: Final = "\ufffd"  # in a name that is not UTF-8, which no drill can ask for

Item = tuple[str, int, int, bool, str]  # path, size, mtime (ns), whether it stayed in place, sum


class Turn:
    """The files whose turn it is, of all that an engine names as kept.

    Names lie on a circle, each at the place of its hash. A turn takes the next ones from where the last
    turn has ended: so all have their turn, however many there are, and nothing else is remembered.
    """

    def __init__(self, begin: int, most: int = KEPT_MOST) -> None:
        self.begin, self._most = begin % CIRCLE, most
        self._heap: list[tuple[int, bytes]] = []  # the farthest first

    def take(self, name: bytes) -> None:
        """A file, by its path as a JSON string."""
        if len(name) > NAME_MOST:
            return
        place = int.from_bytes(blake2b(name, digest_size=8).digest())
        distance = (place - self.begin) % CIRCLE
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (-distance, name))
        elif -distance > self._heap[0][0]:
            heapq.heapreplace(self._heap, (-distance, name))

    def files(self) -> Iterator[tuple[int, str]]:
        """Each with its place, in the order of their turn; an engine may name what is no name."""
        for far, name in sorted(self._heap, reverse=True):
            with suppress(ValueError):
                yield (self.begin - far) % CIRCLE, json.loads(name)


class Over(Exception):
    """The time is over."""


class Summing:
    """Sums a turn's files one after the other, until there are enough."""

    def __init__(self, room: EngineRoom, turn: Turn, before: int) -> None:
        """No file that was changed after `before` (nanoseconds since 1970)."""
        assert room.brief.job is not None, "a reader has a job"
        self._room, self._job = room, room.brief.job
        self._turn, self._before = turn, before
        self._nonce = os.urandom(16).hex()
        self._check = ""
        self._done: list[tuple[int, Item | None]] = []
        self.over = False

    def work(self) -> None:
        """In a thread: a file that cannot be read to its end must keep nobody waiting."""
        key = key_of(dict(self._room.brief.secrets).get("password", ""), self._nonce, MANIFEST)
        self._check = text_sum(MANIFEST, key)
        count, left, text = 0, BYTES_MOST, TEXT_MOST
        for place, path in self._turn.files():
            if self.over or count >= FILES_MOST:
                break
            # One that is never read to its end is passed over the next time.
            self._done.append((place, None))
            if UNKNOWN in path or not self._job.holds(path):
                continue
            try:
                item = self._summed(path, key, left)
            except (OSError, ValueError):  # an engine may name what is no name
                continue
            except _NoRoom:
                self._done.pop()
                break
            except Over:
                break
            if item is None:
                continue
            text -= len(encode({"": item}))
            if text < 0:
                self._done.pop()
                break
            count, left = count + 1, left - item[1]
            self._done[-1] = (place, item)

    def _summed(self, path: str, key: bytes, left: int) -> Item | None:
        """None if it is not as it was when the engine began. Raises OSError, Over."""
        fd = open_unled(self._room.seen(path))
        try:
            found = os.fstat(fd)
            changed = max(found.st_ctime_ns, found.st_mtime_ns)
            if not stat.S_ISREG(found.st_mode) or changed > self._before:
                return None
            if found.st_size > left:
                if found.st_size <= BYTES_MOST:
                    raise _NoRoom
                return None
            # Opened anew, by a way that leads to this very file (proc(5)).
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            content = os.open(f"/proc/self/fd/{fd}", flags)
        finally:
            os.close(fd)
        try:
            said = content_sum(content, key, self._go_on)
            after = os.fstat(content)
        finally:
            os.close(content)
        if (after.st_ctime_ns, after.st_size) != (found.st_ctime_ns, found.st_size):
            return None
        stayed = latest_above(path, self._room.brief.source_root) <= self._before
        return path, found.st_size, found.st_mtime_ns, stayed, said

    def _go_on(self) -> None:
        if self.over:
            raise Over

    def message(self) -> Message | None:
        """What is known by now, if anything is."""
        if not self._check:
            return None
        done = list(self._done)
        begin = self._turn.begin
        end = (done[-1][0] + 1) % CIRCLE if done else begin
        return {
            "event": "manifest", "nonce": self._nonce, "check": self._check, "begin": begin, "end": end,
            "files": [list(item) for _, item in done if item],
        }  # fmt: skip


class _NoRoom(Exception):
    """It has its turn the next time."""


def tell_manifest(room: EngineRoom, turn: Turn, begun: int) -> None:
    """Sum the turn's files, for some seconds, and tell the caller. Raises Stopped and nothing else.

    The engine began at `begun` (nanoseconds since 1970).
    """
    import threading

    summing = Summing(room, turn, begun - SETTLED_SECONDS * 10**9)
    worker = threading.Thread(target=summing.work, daemon=True)
    try:
        worker.start()
    except RuntimeError as error:
        text = f"nothing could be summed for drills: {error}"
        room.tell({"event": "message", "text": text})
        return
    _await(worker.join, worker.is_alive, lambda: room.tell({"event": "alive"}))
    summing.over = True
    if (message := summing.message()) is not None:
        room.tell(message)


def _await(
    join: Callable[[float], None], is_alive: Callable[[], bool], alive: Callable[[], None]
) -> None:
    until = time.monotonic() + SECONDS
    while is_alive() and (left := until - time.monotonic()) > 0:
        join(min(1.0, left))
        alive()
