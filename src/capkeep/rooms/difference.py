"""What differs between two snapshots: counted as it comes, in bounded memory, and passed on whole."""

from collections.abc import Callable
from typing import Final

from capkeep.engines.base import Change, DiffTotals
from capkeep.rooms.protocol import Message

TOPS: Final = 1000  # directories that are counted apart; changes in others count together
NAMED: Final = 20  # of them in the result, those with the most changes
BATCH: Final = 32 << 10  # characters of a message that lists changes
OTHERS: Final = "elsewhere"
DEPTH: Final = 2  # names of a path that a top directory has: /home/alice


class Difference:
    """Takes change after change; tells all, and keeps the sums."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell
        self._batch: list[list[str]] = []
        self._size = 0
        self._added = self._changed = self._removed = 0
        self._tops: dict[str, int] = {}
        self.totals: DiffTotals | None = None

    def add(self, change: Change) -> None:
        """One path that differs; directories are listed, and not counted."""
        self._batch.append([change.modifier, change.path])
        self._size += len(change.path) + 8
        if self._size > BATCH:
            self.flush()
        if change.path.endswith("/"):
            return
        if "+" in change.modifier:
            self._added += 1
        elif "-" in change.modifier:
            self._removed += 1
        else:
            self._changed += 1
        top = _top(change.path)
        if top not in self._tops and len(self._tops) >= TOPS:
            top = OTHERS
        self._tops[top] = self._tops.get(top, 0) + 1

    def flush(self) -> None:
        """Tell what is not told yet."""
        if self._batch:
            self._tell({"event": "changes", "changes": self._batch})
        self._batch, self._size = [], 0

    def facts(self) -> Message:
        """The sums: files, bytes, and the directories with the most changes."""
        totals = self.totals or DiffTotals(0, 0, 0, 0, 0)
        return {
            "added": self._added, "changed": self._changed, "removed": self._removed,
            "bytes_added": totals.bytes_added, "bytes_removed": totals.bytes_removed,
            "tops": [[path, count] for path, count in self._most()],
        }  # fmt: skip

    def _most(self) -> list[tuple[str, int]]:
        return sorted(self._tops.items(), key=lambda item: (-item[1], item[0]))[:NAMED]

    def sentence(self) -> str:
        """The sums in words."""
        text = f"{self._added} added, {self._changed} changed, {self._removed} removed"
        if self.totals and (self.totals.bytes_added or self.totals.bytes_removed):
            text += (
                f"; {_mib(self.totals.bytes_added)} more, {_mib(self.totals.bytes_removed)} less"
            )
        if most := self._most()[:3]:
            text += "; most in " + ", ".join(f"{path} ({count})" for path, count in most)
        return text


def _top(path: str) -> str:
    """The first names of a path, the file's own not among them."""
    return "/".join(path.split("/")[:-1][: DEPTH + 1]) or "/"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
