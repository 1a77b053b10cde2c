"""What a restore changes in a directory: what is missing, what differs, what is there beside it."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from capkeep.engines.base import Entry
from capkeep.kernel import mounts
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.restorer import KINDS, NOT_UTF8, UNKNOWN, differences_of, places

TOLD: Final = 100_000
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Changes:
    """Tells each change with both sides, and counts all."""

    def __init__(self, room: EngineRoom) -> None:
        self._room = room
        self._known: set[str] = set()
        self._mounted: set[str] = set()
        self._dry_run = True
        self.counts: dict[str, int] = {"added": 0, "changed": 0, "removed": 0}

    def compare(self, entries: Iterable[Entry], target: str, digits: int, *, owners: bool) -> None:
        """Each entry of a snapshot that is not below the target as it is in the snapshot."""
        for entry in entries:
            if entry.kind not in KINDS:
                continue
            place = places(target, entry.path)[0]
            if not os.path.lexists(place):
                self._tell("added", entry.path, "is not there")
            elif found := list(differences_of(entry, place, digits, owners=owners)):
                self._tell("changed", entry.path, "; ".join(found))

    def clear(self, tops: Iterable[str], known: set[str], target: str, *, dry_run: bool) -> None:
        """Whatever is below the tops and not among the known paths is removed, or would be.

        The known paths are as the engine lists them, which may have lost bytes that are not UTF-8: a
        name that looks like one of them stays. By descriptors, since who may write there could put a
        link in a directory's place meanwhile. Raises OSError.
        """
        self._known, self._dry_run = known, dry_run
        self._mounted = {
            m.point.removeprefix(target)
            for m in mounts.read_mounts()
            if m.point.startswith(f"{target}/")
        }
        for top in tops:
            with opened(target + top) as fd:
                if fd >= 0:
                    self._clear(fd, top.rstrip("/"))

    def _clear(self, folder: int, above: str) -> None:
        for name in sorted(os.listdir(folder)):
            path = f"{above}/{name}"
            if path in self._mounted:
                continue  # another filesystem's
            holds = any(point.startswith(f"{path}/") for point in self._mounted)
            if holds or NOT_UTF8.sub(UNKNOWN, path) in self._known:
                with opened(name, folder) as fd:
                    if fd >= 0:
                        self._clear(fd, path)
                continue
            if not self._dry_run:
                before = os.stat(folder)
                _remove(folder, name)
                os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
            self._tell("removed", path, "is not in the snapshot")

    def _tell(self, what: str, path: str, detail: str) -> None:
        self.counts[what] += 1
        if sum(self.counts.values()) <= TOLD:
            self._room.tell({"event": "change", "change": what, "path": path, "detail": detail})


@contextmanager
def opened(path: str, above: int = -1) -> Iterator[int]:
    """A handle on a directory, reached without following links; -1 if there is none."""
    here = os.dup(above) if above >= 0 else os.open("/", _FOLDER)
    try:
        for name in path.strip("/").split("/"):
            below = os.open(name or ".", _FOLDER, dir_fd=here)
            os.close(here)
            here = below
    except (FileNotFoundError, NotADirectoryError):
        yield -1
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        yield -1
    else:
        yield here
    finally:
        os.close(here)


def _remove(folder: int, name: str) -> None:
    import shutil

    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=folder)
