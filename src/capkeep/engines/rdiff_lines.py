"""What our halves of rdiff-backup say, in lines of JSON (rooms/rdiff/files.py)."""

import time
from typing import Final

from capkeep.engines.base import (
    Cause,
    CheckResult,
    Diagnosis,
    Entry,
    Event,
    Named,
    Progress,
    RestoreResult,
    Said,
    Seen,
    Snapshot,
    Summary,
    Unreadable,
    Unset,
    Warned,
)
from capkeep.engines.causes import cause_of_errno
from capkeep.engines.lines import WORDS_KEPT, LineReader, as_int, as_object, as_text, as_texts
from capkeep.errors import EXIT_PARTIAL, Failure

KINDS: Final = {"reg": "file", "sym": "symlink", "sock": "socket"}


class BackupReader(LineReader):
    """Reads `backup`."""

    def __init__(self, watch: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._watch = set(watch)
        self._missed: set[str] = set()

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        item = as_object(line)
        if item is None or "failed" in item:
            self._tail.add(line.decode(errors="replace"))
            return ()
        if "unreadable" in item:
            path = as_text(item["unreadable"])
            self._missed.add(path)
            return (Unreadable(path, _cause(item), as_text(item.get("detail"))),)
        if "listed" in item:
            path = as_text(item["listed"])
            if path in self._watch - self._missed:
                self._watch.discard(path)
                return (Seen(path, read=item.get("read") is True),)
            return ()
        if "progress" in item:
            numbers = item["progress"]
            files, size = numbers if isinstance(numbers, list) and len(numbers) == 2 else (0, 0)
            return (Progress(as_int(files), 0, as_int(size), 0, (), 0),)
        if "warning" in item:
            return (Warned(as_text(item["warning"])),)
        if "message" in item:
            return (Said(as_text(item["message"])),)
        found = item.get("summary")
        if not isinstance(found, dict):
            return ()
        program = as_text(found.get("program"))
        return (_summary(found), Named(program)) if program else (_summary(found),)


def _cause(item: dict[str, object]) -> Cause:
    return (
        Cause.CHANGED if item.get("changed") is True else cause_of_errno(as_int(item.get("errno")))
    )


def _summary(found: dict[str, object]) -> Summary:
    when = as_int(found.get("time"))
    total = as_int(found.get("total_files"))
    new, changed = as_int(found.get("files_new")), as_int(found.get("files_changed"))
    return Summary(
        snapshot=f"{when:08x}" if when else "",
        files_new=new,
        files_changed=changed,
        files_unmodified=max(0, total - new - changed),
        bytes_stored=max(0, as_int(found.get("bytes_stored"))),
        bytes_processed=as_int(found.get("bytes_processed")),
        total_files=total,
        dry_run=found.get("dry_run") is True,
    )


class CheckReader(LineReader):
    """Reads `check`."""

    def __init__(self) -> None:
        super().__init__()
        self._errors = 0
        self._words: list[str] = []

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        item = as_object(line)
        if item is None or "failed" in item:
            self._tail.add(line.decode(errors="replace"))
            return ()
        if "damaged" in item:
            words = as_text(item["damaged"])
            self._errors += 1
            if len(self._words) < WORDS_KEPT:
                self._words.append(words)
            return (Warned(words),)
        end = item.get("end")
        if isinstance(end, dict):
            self._errors = max(self._errors, as_int(end.get("errors")))
        return ()

    def result(self) -> CheckResult:
        return CheckResult(self._errors, (), tuple(self._words))


class RestoreReader(LineReader):
    """Reads `restore`."""

    def __init__(self) -> None:
        super().__init__()
        self._result = RestoreResult(0, 0, 0, 0)

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        item = as_object(line)
        if item is None or "failed" in item:
            self._tail.add(line.decode(errors="replace"))
            return ()
        if "unrestored" in item:
            detail = as_text(item.get("detail"))
            self._tail.add(detail)
            return (Unreadable(as_text(item["unrestored"]), _cause(item), detail),)
        if "unset" in item:
            path, name = as_text(item["unset"]), as_text(item.get("attribute"))
            return (Unset(path, name, as_text(item.get("detail"))),)
        end = item.get("end")
        if isinstance(end, dict):
            files = as_int(end.get("files"))
            self._result = RestoreResult(files, files, as_int(end.get("bytes")), 0)
        return ()

    def result(self) -> RestoreResult:
        return self._result

    def only_lacks(self, exit_code: int) -> bool:
        return exit_code == EXIT_PARTIAL  # else one of our halves names what else it is


def diagnose(exit_code: int, tail: tuple[str, ...], *, backup: bool) -> Diagnosis | None:
    """Our halves name why they failed in their last line."""
    if exit_code == 0 or (backup and exit_code == EXIT_PARTIAL):
        return None
    words = "\n".join(tail)
    for line in reversed(tail):
        item = as_object(line.encode())
        failed = item.get("failed") if item else None
        if isinstance(failed, dict):
            kind, text = as_text(failed.get("kind")), as_text(failed.get("text"))
            failure = Failure(kind) if kind in tuple(Failure) else Failure.ENGINE
            return Diagnosis(failure, text or f"rdiff-backup failed ({exit_code})", text)
    if exit_code < 0:
        return Diagnosis(Failure.INTERRUPTED, f"the engine was ended by signal {-exit_code}", words)
    last = tail[-1] if tail else f"it ended with {exit_code}"
    return Diagnosis(Failure.ENGINE, f"rdiff-backup failed: {last}", words)


# -- what is listed


def object_of(line: bytes) -> dict[str, object]:
    """Raises ValueError for a line that is no object."""
    if not line.strip():
        return {}
    found = as_object(line)
    if found is None:
        raise ValueError("rdiff-backup lists something that is not JSON")
    return found


def snapshot_of(item: dict[str, object]) -> Snapshot:
    """Raises ValueError."""
    identity, when = as_text(item.get("id")), as_text(item.get("time"))
    if not identity or not when:
        raise ValueError("rdiff-backup lists a session without a time")
    return Snapshot(
        id=identity, time=when, host=as_text(item.get("host")), user="", paths=(),
        tags=as_texts(item.get("tags")), files=as_int(item.get("files")),
        bytes=as_int(item.get("bytes")),
    )  # fmt: skip


def entry_of(item: dict[str, object]) -> Entry:
    """A node as listings show it."""
    kind = as_text(item.get("kind"))
    numbers = item.get("numbers")
    if kind == "dev" and isinstance(numbers, list) and numbers[:1] == ["c"]:
        kind = "chardev"
    return Entry(
        path="/" + as_text(item.get("path")), kind=KINDS.get(kind, kind),
        size=as_int(item.get("size")) if kind == "reg" else 0, mode=as_int(item.get("perms")),
        uid=as_int(item.get("uid")), gid=as_int(item.get("gid")),
        mtime="" if kind in ("sym", "dev", "chardev") else _moment(as_int(item.get("mtime"))),
    )  # fmt: skip


def _moment(seconds: int) -> str:
    found = time.gmtime(seconds)
    return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z".format(*found[:6])
