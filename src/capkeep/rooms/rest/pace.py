"""A store that is used no faster than was asked for: so many bytes a second in, and out.

What waits here has not been taken from the engine, which so waits too (streams.py); and what is
behind the store, rclone or ssh, gets no more to send than that. So one measure holds for every
place and every engine.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from capkeep.rooms.rest.names import Name
from capkeep.rooms.rest.store import Blob, Item, Store, Upload
from capkeep.rooms.service import Rates as Rates

# What was not used may be used later, but not more than that: no burst that anybody would notice.
SAVED_SECONDS: Final = 0.25
PIECE: Final = 64 << 10  # bytes that pass at a time


class Pace:
    """A bucket of leave to pass, filled at a rate. Used by several threads at a time."""

    def __init__(
        self,
        rate: int,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._due = 0.0  # when all that has passed may have passed

    def passed(self, size: int) -> None:
        """So many bytes have passed: wait until the next may."""
        if not self._rate:
            return
        with self._lock:
            now = self._now()
            self._due = max(self._due, now - SAVED_SECONDS) + size / self._rate
            left = self._due - now
        if left > 0:
            self._sleep(left)


def paced(store: Store, rates: Rates) -> Store:
    """The store at that pace; itself where there is no limit."""
    return PacedStore(store, rates) if rates.upload or rates.download else store


class PacedStore:
    """Another store, no faster than asked for."""

    def __init__(self, store: Store, rates: Rates) -> None:
        self._store = store
        self._in = Pace(rates.upload)
        self._out = Pace(rates.download)
        self.patience = store.patience

    def preflight(self) -> None:
        self._store.preflight()

    def create(self) -> None:
        self._store.create()

    def size(self, name: Name) -> int | None:
        return self._store.size(name)

    def items(self, kind: str) -> list[Item]:
        return self._store.items(kind)

    def read(self, name: Name, offset: int, length: int | None) -> Blob:
        return PacedBlob(self._store.read(name, offset, length), self._out)

    def write(self, name: Name, length: int) -> Upload:
        return PacedUpload(self._store.write(name, length), self._in)

    def remove(self, name: Name) -> bool:
        return self._store.remove(name)

    def close(self) -> None:
        self._store.close()


class PacedBlob:
    """A part of an object, on its way out."""

    def __init__(self, blob: Blob, pace: Pace) -> None:
        self._blob = blob
        self._pace = pace
        self.size = blob.size
        self.length = blob.length

    def read_into(self, buffer: memoryview) -> int:
        got = self._blob.read_into(buffer[:PIECE])
        self._pace.passed(got)
        return got

    def close(self) -> None:
        self._blob.close()


class PacedUpload:
    """An object on its way in."""

    def __init__(self, upload: Upload, pace: Pace) -> None:
        self._upload = upload
        self._pace = pace

    @property
    def pour(self) -> Callable[[int, int], int] | None:
        pour = self._upload.pour
        if pour is None:
            return None

        def slowly(pipe: int, most: int) -> int:
            got = pour(pipe, min(most, PIECE))
            self._pace.passed(got)
            return got

        return slowly

    def write(self, data: memoryview) -> None:
        for begin in range(0, len(data), PIECE):
            piece = data[begin : begin + PIECE]
            self._upload.write(piece)
            self._pace.passed(len(piece))

    def commit(self) -> None:
        self._upload.commit()

    def abort(self) -> None:
        self._upload.abort()
