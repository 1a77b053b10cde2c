"""What borg says with `--log-json`, during a backup, a check and a restore.

Warnings have their kind in `msgid` since 1.4 and nowhere in 1.2, and exit codes of mixed kinds
collapse; so each is told apart by its words, which are the same in both: PATH: OPERATION: and
Python's text of the kernel's reason, with its number.
"""

import json
import re
from typing import Final

from capkeep.engines.base import (
    Cause,
    CheckResult,
    Event,
    Named,
    Progress,
    RestoreResult,
    Said,
    Seen,
    Summary,
    Unreadable,
    Unset,
    Warned,
)
from capkeep.engines.borg_diagnosis import is_warning
from capkeep.engines.causes import cause_of_errno
from capkeep.engines.lines import WORDS_KEPT, LineReader, as_int, as_object, as_text

_ERRNO: Final = re.compile(
    r"(?P<path>.+?): (?:(?P<op>[a-z_]+): )?\[Errno (?P<number>\d+)\] (?P<text>[^:]*)", re.DOTALL
)
_KEPT: Final = b'{"kept": '  # of `guest/borg_client.py`
_CHANGED: Final = ": file changed while we backed it up"
_TURNED: Final = re.compile(
    r"(?P<path>.+?): (?P<text>file type or inode (?:of file )?changed.*|.*race condition.*)",
    re.DOTALL | re.IGNORECASE,
)
_UNKNOWN: Final = re.compile("[\udc80-\udcff]")  # how Python holds such bytes (PEP 383)
_UNKNOWN_TYPE: Final = "Unknown file type: "
# Said of things that have come right by themselves, or of how borg works.
_REMARKS: Final = (
    "Killed stale lock", "Removed stale", "By default repositories initialized",
    "IMPORTANT: you will need both KEY", "Warning: The repository at location",
    "Found stale lock", "Initialized logging",
)  # fmt: skip


class Lines(LineReader):
    """What all calls have in common; in the tail trouble is JSON where borg wrote JSON."""

    def plain(self, line: bytes) -> str:
        """A line that is not JSON, noted, since borg says the worst so."""
        text = line.decode(errors="replace").strip()
        if text:
            self._tail.add(text)
        return text

    def trouble(self, message: dict[str, object]) -> str:
        """A message's text, noted if it is of an error; "" for remarks."""
        text = as_text(message.get("message")).strip()
        if as_text(message.get("levelname")) in ("ERROR", "CRITICAL"):
            self._tail.add(json.dumps({
                "msgid": as_text(message.get("msgid")), "message": text,
            }))  # fmt: skip
            return ""
        if as_text(message.get("levelname")) != "WARNING":
            return ""
        return "" if text.startswith(_REMARKS) else text


class BackupReader(Lines):
    """Turns lines into events; keeps counts and a short tail, whatever the number of files."""

    def __init__(self, watch: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._watched = {path.strip("/"): path for path in watch}

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        message = as_object(line) if line.startswith(b"{") else None
        if message is None:
            text = self.plain(line)
            return (Warned(text),) if text else ()
        if stream == "stdout":
            return () if line.startswith(_KEPT) else _summary(message)
        match message.get("type"):
            case "archive_progress":
                return _progress(message)
            case "file_status":
                return self._status(message)
            case "log_message":
                return self._log(message)
        return ()

    def _status(self, message: dict[str, object]) -> tuple[Event, ...]:
        path = self._watched.pop(as_text(message.get("path")), None)
        status = as_text(message.get("status"))
        if path is None or status in ("E", "x"):
            return ()
        return (Seen(path, read=status != "U"),)

    def _log(self, message: dict[str, object]) -> tuple[Event, ...]:
        text = self.trouble(message)
        if not text:
            return ()
        return (unread(text) or self._unexplained(text),)

    def _unexplained(self, text: str) -> Event:
        """Counts as something that is missing, since nobody knows better."""
        self._tail.add(text)
        return Unreadable("/", Cause.IO, text)


def kept_file(line: bytes) -> bytes:
    """The file that a line names as kept, quoted; b"" for all else."""
    return line.removeprefix(_KEPT).rstrip(b"}\n") if line.startswith(_KEPT) else b""


def unread(text: str) -> Unreadable | None:
    """A warning about a path that is not, or not wholly, in the archive."""
    if text.endswith(_CHANGED):
        return Unreadable(real(text.removesuffix(_CHANGED)), Cause.CHANGED, "changed while read")
    if text.startswith(_UNKNOWN_TYPE):
        return Unreadable(real(text.removeprefix(_UNKNOWN_TYPE)), Cause.IO, "unknown file type")
    if found := _ERRNO.match(text):
        cause = cause_of_errno(int(found["number"]))
        detail = f"{found['op'] or 'read'}: {found['text'].strip().lower()}"
        return Unreadable(real(found["path"]), cause, detail)
    if found := _TURNED.match(text):
        return Unreadable(real(found["path"]), Cause.CHANGED, found["text"])
    return None


def real(path: str) -> str:
    """The machine's path: borg stands in "/", and archives hold paths without the first slash."""
    clean = _UNKNOWN.sub("\ufffd", path).strip("/")
    return "/" + ("" if clean == "." else clean)


def _progress(message: dict[str, object]) -> tuple[Event, ...]:
    if "nfiles" not in message:
        return ()
    path = as_text(message.get("path"))
    return (
        Progress(
            files=as_int(message.get("nfiles")), total_files=0,
            bytes=as_int(message.get("original_size")), total_bytes=0,
            current=(real(path),) if path else (), seconds_left=0,
        ),
    )  # fmt: skip


def _summary(message: dict[str, object]) -> tuple[Event, ...]:
    counts = message.get("counts")
    states = counts if isinstance(counts, dict) else {}
    if message.get("dry_run") is True:
        return (Summary(snapshot="", dry_run=True, total_files=sum(map(as_int, states.values()))),)
    archive = message.get("archive")
    if not isinstance(archive, dict):
        return ()
    stats = archive.get("stats")
    found = stats if isinstance(stats, dict) else {}
    duration = archive.get("duration")
    return (
        Summary(
            snapshot=as_text(archive.get("id")),
            files_new=as_int(states.get("A")),
            files_changed=as_int(states.get("M")) + as_int(states.get("C")),
            files_unmodified=as_int(states.get("U")),
            dirs_changed=as_int(states.get("d")),  # borg does not compare directories
            bytes_added=as_int(found.get("deduplicated_size")),
            bytes_stored=as_int(found.get("deduplicated_size")),
            bytes_processed=as_int(found.get("original_size")),
            total_files=as_int(found.get("nfiles")),
            seconds=float(duration) if isinstance(duration, int | float) else 0.0,
        ),
        *((Named(program),) if (program := as_text(message.get("program"))) else ()),
    )


class CheckReader(Lines):
    """Counts what is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._errors = 0
        self._words: list[str] = []

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        message = as_object(line) if line.startswith(b"{") else None
        if message is None:
            text = self.plain(line)
            return (Said(text),) if text else ()
        if message.get("type") != "log_message":
            return ()
        text = as_text(message.get("message")).strip()
        warned = self.trouble(message)
        # With a msgid it is why borg could not check, not what it found.
        wrong = as_text(message.get("levelname")) == "ERROR" and not message.get("msgid")
        if wrong:
            self._errors += 1
            if len(self._words) < WORDS_KEPT:
                self._words.append(text)
        return (Warned(text),) if wrong or warned else ()

    def result(self) -> CheckResult:
        return CheckResult(self._errors, (), tuple(self._words))


class RestoreReader(Lines):
    """Names what could not be restored."""

    def __init__(self) -> None:
        super().__init__()
        self._strange = 0  # warnings that name nothing we know

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        message = as_object(line) if line.startswith(b"{") else None
        if message is None:
            text = self.plain(line)
            return (Warned(text),) if text else ()
        if message.get("type") == "progress_percent":
            current, total = as_int(message.get("current")), as_int(message.get("total"))
            return (Progress(0, 0, current, total, (), 0),)
        if message.get("type") == "attribute":
            path, name = real(as_text(message.get("path"))), as_text(message.get("name"))
            return (Unset(path, name, as_text(message.get("message"))),)
        text = self.trouble(message) if message.get("type") == "log_message" else ""
        if not text:
            return ()
        self._tail.add(json.dumps({"msgid": "", "message": text}))
        found = unread(text)
        self._strange += found is None
        return (found or Warned(text),)

    def result(self) -> RestoreResult:
        return RestoreResult(0, 0, 0, 0)

    def only_lacks(self, exit_code: int) -> bool:
        return is_warning(exit_code) and not self._strange
