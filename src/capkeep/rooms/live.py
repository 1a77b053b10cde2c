"""What a reader says of live files: their metadata, and sums of what is in them.

Of its job's sources only, of links never what they lead to, and of no more files than one visit may ask
for. Whoever asks gets sums whose key is not his (`rooms/sums.py`).
"""

import os
import time
from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Job
from capkeep.rooms.base import EngineRoom, option, option_list
from capkeep.rooms.protocol import Message, ProtocolError, encode
from capkeep.rooms.rdiff.globs import matcher
from capkeep.rooms.sums import BATCH, describe, key_of, latest_above

FILES_MOST: Final = 1000  # in one visit
SECONDS: Final = 3600
GONE: Final = frozenset((2, 20))  # ENOENT, ENOTDIR


def tell_live(room: EngineRoom, job: Job, request: Message) -> None:
    """Tell of each path that is asked for. Raises ProtocolError, StepError."""
    paths = option_list(request, "paths")
    nonce, before = option(request, "nonce", default=""), option(request, "before", default=0)
    if len(paths) > FILES_MOST or not 16 <= len(nonce) <= 64 or before <= 0:
        raise ProtocolError(f"at most {FILES_MOST} paths, with a nonce and a time")
    for path in paths:
        if not job.holds(path):
            raise ProtocolError("a path is not the job's")
    key = key_of(dict(room.brief.secrets).get("password", ""), nonce)
    teller = _Teller(room)
    kept = _kept_of(room, job)
    for path in paths:
        found = _live(room, path, key, before, teller) if kept(path) else {"missing": "excluded"}
        teller.take({"path": path, **found})
    teller.flush()


def _kept_of(room: EngineRoom, job: Job) -> Callable[[str], bool]:
    """Whether a path is kept, as far as the job's patterns say: another host is told of no others."""
    if not room.brief.pulled:
        return lambda _: True
    # Relative patterns mean names at any depth.
    deep = (p if p.startswith(("/", "**")) else f"**/{p}" for p in job.exclude)
    excluded = matcher(deep)
    return lambda path: not excluded(os.fsencode(path))


def _live(room: EngineRoom, path: str, key: bytes, before: int, teller: "_Teller") -> Message:
    try:
        found = describe(room.seen(path), key, teller.alive, before)
        return {**found, "above": latest_above(path, room.brief.source_root)}
    except OSError as error:
        return {"missing": "gone" if error.errno in GONE else error.strerror or "unreadable"}


class _Teller:
    """Tells of files in messages of a good size, and between them that the room is alive."""

    def __init__(self, room: EngineRoom) -> None:
        self._room = room
        self._files: list[Message] = []
        self._size = 0
        self._until = time.monotonic() + SECONDS
        self._ticked = time.monotonic()

    def take(self, file: Message) -> None:
        self._files.append(file)
        self._size += len(encode(file))  # a file may have thousands of attributes
        if self._size > BATCH:
            self.flush()
        self.alive()

    def flush(self) -> None:
        if self._files:
            self._room.tell({"event": "live", "files": self._files})
        self._files, self._size = [], 0

    def alive(self) -> None:
        """Once a second. Raises StepError, Stopped."""
        now = time.monotonic()
        if now - self._ticked >= 1.0:
            self._ticked = now
            self._room.tell({"event": "alive"})
            if now > self._until:
                raise StepError(Failure.TIMEOUT, "comparing with live files took too long")
