"""What of a snapshot a drill restores, chosen while it is listed."""

import json
from collections.abc import Callable, Collection, Iterable
from typing import Final, TextIO

from capkeep.engines.base import Entry
from capkeep.plan.model import Drill
from capkeep.rooms.restorer import UNKNOWN, nanoseconds
from capkeep.rooms.sampling import Sample
from capkeep.values import is_at_or_below

ALWAYS_MOST: Final = 10_000  # files that are named, or lie below what is named
DEVICES: Final = frozenset(("dev", "chardev"))
ALONE: Final = ("dir", "socket")  # what nobody restores by itself


class Choice:
    """Takes entry after entry, and keeps what is to be restored; of everything, in a file."""

    def __init__(
        self, settings: Drill, seed: str, *, whole: bool, dumps: Iterable[str], listing: TextIO,
        moment: int, read: Collection[str] = (),
    ) -> None:  # fmt: skip
        """`dumps` are directories that hold one each, `read` files that a reader has read.

        How old a file is counts from `moment` (seconds since 1970), which is the snapshot's own: from
        now on, the same seed would choose other files tomorrow.
        """
        self.dumps: dict[str, list[Entry]] = {path: [] for path in dumps}
        self.held = {"entries": 0, "files": 0, "bytes": 0}  # by the snapshot
        self.apart = dict.fromkeys(("devices", "names", "large", "links"), 0)
        self._settings, self._whole, self._listing = settings, whole, listing
        self._sample = Sample(seed, max(1, settings.sample - len(read)))
        self._always: list[Entry] = []
        self._read: list[Entry] = []
        self._unseen = set(settings.always)
        self._to_read = frozenset(read)
        self._unread = set(read)
        self._moment = moment

    def take(self, entry: Entry) -> None:
        """One entry of the snapshot, in the engine's order."""
        self.held["entries"] += 1
        self.held["files"] += entry.kind == "file"
        self.held["bytes"] += max(0, entry.size)
        named = [p for p in self._settings.always if is_at_or_below(entry.path, p)]
        self._unseen.difference_update(named)
        self._unread.discard(entry.path)
        if self._is_dumped(entry) and not self._whole:
            return
        if self._whole:
            self._listing.write(json.dumps(entry) + "\n")
        elif self.may_be_chosen(entry):
            if named and len(self._always) < ALWAYS_MOST:
                self._always.append(entry)
            elif entry.path in self._to_read:
                self._read.append(entry)
            else:
                age = self._moment - (nanoseconds(entry.mtime) or 0) / 1e9
                self._sample.add(entry, age)

    def _is_dumped(self, entry: Entry) -> bool:
        for path, kept in self.dumps.items():
            if entry.kind == "file" and is_at_or_below(entry.path, path):
                if len(kept) < ALWAYS_MOST:
                    kept.append(entry)
                else:
                    self.apart["large"] += not self._whole
                return True
        return False

    def may_be_chosen(self, entry: Entry) -> bool:
        """Whether it can be restored by itself; what cannot is counted."""
        if entry.kind in ALONE:
            return False
        if entry.kind in DEVICES:
            self.apart["devices"] += 1
        elif UNKNOWN in entry.path:
            self.apart["names"] += 1  # the engine cannot be asked for it by that
        elif entry.size > self._settings.max_bytes:
            self.apart["large"] += 1
        elif entry.size < 0:
            self.apart["links"] += 1  # another name of a file; how large that is, is not told
        else:
            return True
        return False

    def chosen(self, differs: Callable[[str, str], None]) -> list[Entry]:
        """What is restored of a sample; what should be in every snapshot and is not, is told."""
        for path in sorted(self._unseen):
            differs(path, "is to be in every snapshot, and is not in this one")
        for path in sorted(self._unread):
            differs(path, "was read at backup time, and is not in the snapshot")
        left = self._settings.max_bytes - sum(entry.size for entry in self._always)
        read = []
        half = left // 2
        for entry in self._read:
            if entry.size <= half:
                half -= entry.size
                left -= entry.size
                read.append(entry)
        return [*self._always, *read, *self._sample.chosen(max(0, left))]
