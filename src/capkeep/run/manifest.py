"""What readers have read at backup time, kept for drills: sums of a part of each snapshot's files.

A reader may say anything, so what it says is looked at before it is kept, and again before it is used.
Files have names here, which the record must not tell everybody who may read it: what is kept is in
files of the runner's own, for its user alone. The sums have a key that the runner does not know.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.plan.model import Job
from capkeep.records.locks import open_regular
from capkeep.rooms.protocol import Message

FOLDER: Final = "manifests"  # in the record's directory
FILES_MOST: Final = 200  # of one snapshot
PATH_MOST: Final = 4096  # characters (PATH_MAX)
TEXT_MOST: Final = 1 << 20  # bytes of one manifest
SHORT: Final = 8  # digits of a snapshot's id that tell it from others
KEPT: Final = 400  # of a job in one repository
KEPT_BYTES: Final = 16 << 20
YEAR_SECONDS: Final = 365 * 24 * 3600
CIRCLE: Final = 1 << 64
_SUM: Final = re.compile(r"[0-9a-f]{64}")
_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_SNAPSHOT: Final = re.compile(r"[0-9a-f]{8,64}")
# When its backup began (seconds since 1970), the snapshot, and where the next turn begins.
_NAME: Final = re.compile(r"(\d{12})-([0-9a-f]{8,64})-([0-9a-f]{16})\.json")


class Read(NamedTuple):
    """A file as it was read at backup time, unchanged since before its backup began."""

    size: int
    mtime: int  # nanoseconds since 1970
    stayed: bool  # no directory above had changed either, so nothing was put in its place
    content: str  # its sum


class Manifest(NamedTuple):
    """What was read of one snapshot's files."""

    nonce: str  # of the sums' key
    check: str  # the sum of a known text: another password has another key
    begin: int  # of the turn of the files that were read (`rooms.manifest.Turn`)
    end: int
    files: dict[str, Read]

    def facts(self) -> Message:
        """What the record tells: how much was read, and which part it was."""
        size = sum(read.size for read in self.files.values())
        part = f"{self.begin:016x}-{self.end:016x}"
        return {"manifest": {"files": len(self.files), "bytes": size, "part": part}}


def parse(message: Message, job: Job) -> Manifest:
    """What a reader has said, or what is kept of it. Raises ValueError."""
    nonce, check, begin, end = (message.get(n) for n in ("nonce", "check", "begin", "end"))
    items = message.get("files")
    if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        raise ValueError("its nonce is none")
    if not isinstance(check, str) or not _SUM.fullmatch(check):
        raise ValueError("it does not say by which key its sums are")
    if not _is_below(begin, CIRCLE) or not _is_below(end, CIRCLE):
        raise ValueError("it does not say which part of the files it is of")
    if not isinstance(items, list) or len(items) > FILES_MOST:
        raise ValueError(f"it names more than {FILES_MOST} files, or none")
    files = dict(_file(item, job) for item in items)
    assert isinstance(begin, int), "asked above"
    assert isinstance(end, int), "asked above"
    return Manifest(nonce, check, begin, end, files)


def _file(item: object, job: Job) -> tuple[str, Read]:
    if not isinstance(item, list) or len(item) != 5:
        raise ValueError("a file has a path, a size, a time and a sum")
    path, size, mtime, stayed, content = item
    if not isinstance(path, str) or len(path) > PATH_MOST or not job.holds(path):
        raise ValueError("a path is not the job's")
    right = (
        _is_below(size, 1 << 63) and isinstance(mtime, int) and abs(mtime) < 1 << 63
        and isinstance(stayed, bool) and isinstance(content, str) and _SUM.fullmatch(content)
    )  # fmt: skip
    if not right:
        raise ValueError("a file's size, time or sum is none")
    return path, Read(size, mtime, stayed, content)


def _is_below(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < most


def compared(restored: Message, read: Read) -> tuple[str, str]:
    """What becomes of a file that was restored, and the difference in words, if it is one.

    The engine may have met another file there than the reader: one that was put in its place between
    them has another size or time, and a directory above it has changed.
    """
    sides = (
        ("kind", restored.get("kind"), "file"),
        ("size", restored.get("size"), read.size),
        ("mtime", restored.get("mtime"), read.mtime),
    )
    words = [f"{name} {one}, {other} at backup time" for name, one, other in sides if one != other]
    if words and not read.stayed:
        return "changed", ""
    if restored.get("read") != read.content:
        words.append("content differs from what was read at backup time")
    return ("different", "; ".join(words)) if words else ("same", "")


def asked(manifest: Manifest, seed: str, sample: int, *, whole: bool) -> list[str]:
    """The files that a drill restores for their sums: half of its sample, or of all files all."""
    paths = sorted(manifest.files)
    if whole or len(paths) <= sample // 2:
        return paths
    import random

    chooser = random.Random(f"read {seed}")  # noqa: S311 (to be repeated)
    return sorted(chooser.sample(paths, sample // 2))


class Shelf:
    """The manifests of a job in one repository: the newest of them."""

    def __init__(self, records: str, job: Job, repository: str) -> None:
        """`records`: Places.records."""
        self._top = f"{records}/{FOLDER}"
        self._folder = f"{self._top}/{job.name}/{repository}"
        self.job = job

    def begin(self) -> int:
        """Where the next turn begins."""
        names = _names(self._folder)
        return int(names[-1][3], 16) if names else 0

    def keep(self, manifest: Manifest, snapshot: str, started: float) -> None:
        """Keep it, and remove what is too old or too much. Raises OSError, ValueError."""
        if not _SNAPSHOT.fullmatch(snapshot):
            raise ValueError("the snapshot has no name")
        for folder in (self._top, os.path.dirname(self._folder), self._folder):
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        files = [[path, *read] for path, read in manifest.files.items()]
        text = json.dumps({**manifest._asdict(), "files": files}, separators=(",", ":"))
        name = f"{int(started):012d}-{snapshot}-{manifest.end:016x}.json"
        part = f"{self._folder}/part"
        with suppress(FileNotFoundError):
            os.unlink(part)  # of a run that was killed
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="ascii") as file:
                file.write(text)
            os.rename(part, f"{self._folder}/{name}")
        except BaseException:
            os.unlink(part)
            raise
        _prune(self._folder, started)
        for folder in _folders(self._top):
            if folder != self._folder:
                _forget(folder, started - YEAR_SECONDS)

    def of(self, snapshot: str) -> Manifest | None:
        """What was read of that snapshot's files; None where nothing right is kept."""
        # Of several that claim to be of one snapshot the first was told when it was made.
        found = [n for n in _names(self._folder) if snapshot.startswith(n[2][:SHORT])]
        found = [n for n in found if n[2].startswith(snapshot) or snapshot.startswith(n[2])]
        if not found or len(snapshot) < SHORT or len({n[2][: len(snapshot)] for n in found}) > 1:
            return None
        with suppress(OSError, ValueError, RecursionError):
            with open(open_regular(f"{self._folder}/{found[0][0]}"), "rb") as file:
                said = json.loads(file.read(TEXT_MOST))
            return parse(said, self.job) if isinstance(said, dict) else None
        return None


def _names(folder: str) -> list[re.Match[str]]:
    """What is kept there; the newest last."""
    try:
        return [found for name in sorted(os.listdir(folder)) if (found := _NAME.fullmatch(name))]
    except OSError:
        return []


def _folders(top: str) -> Iterator[str]:
    """Those of all jobs and repositories, also of those that are no more."""
    with suppress(OSError):
        for job in os.listdir(top):
            with suppress(OSError):
                yield from (f"{top}/{job}/{name}" for name in os.listdir(f"{top}/{job}"))


def _prune(folder: str, now: float) -> None:
    """Keep the newest; what is from the future was made by a clock that was wrong."""
    size = count = 0
    for name in reversed(_names(folder)):
        path = f"{folder}/{name[0]}"
        with suppress(OSError):
            size += os.lstat(path).st_size
            count += 1
            if int(name[1]) > now or (count > 1 and (count > KEPT or size > KEPT_BYTES)):
                os.unlink(path)


def _forget(folder: str, oldest: float) -> None:
    """What another job, or one that is no more, has long not added to."""
    for name in _names(folder):
        if int(name[1]) < oldest:
            with suppress(OSError):
                os.unlink(f"{folder}/{name[0]}")
