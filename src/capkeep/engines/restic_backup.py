"""What restic says during `backup --json -vv`.

Two forms are met: up to 0.16 an error is Go's own structure ({"Op","Path","Err"} or, when it is
wrapped, {}) and trouble at the end is plain text; since 0.17 it is {"message"}, and since 0.18
trouble at the end is {"message_type":"exit_error"}. Some lines are plain text in every version.
"""

import json
import os
from typing import Final

from capkeep.engines.base import (
    Cause,
    Event,
    Progress,
    Said,
    Seen,
    Summary,
    Unreadable,
    Warned,
)
from capkeep.engines.causes import cause_of_errno, cause_of_text
from capkeep.engines.lines import LineReader, as_int, as_object, as_text
from capkeep.engines.restic_lines import message_of

_VERBOSE: Final = b'{"message_type":"verbose_status"'
_STATUS: Final = b'{"message_type":"status"'
_SKIPPED: Final = " does not exist, skipping"
_PARTIAL: Final = "at least one source file could not be read"


class BackupReader(LineReader):
    """Turns lines into events; keeps counts and a short tail, whatever the number of files."""

    def __init__(self, watch: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._needles = {b'"item":"' + _go_json(path) + b'"': path for path in watch}
        self.unreadable = 0  # how many paths were named as not read
        self.counted_errors = 0  # how many restic says there were

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        if line.startswith(_VERBOSE):
            return self._item(line) if self._needles else ()
        if not line.startswith(b"{"):
            return self._plain(line)
        message = as_object(line)
        if message is None:
            return self._plain(line)
        match message.get("message_type"):
            case "status":
                return self._status(message)
            case "error":
                return self._error(message)
            case "summary":
                return (_summary(message),)
            case "exit_error":
                self._tail.add(message_of(message))
        return ()

    def _item(self, line: bytes) -> tuple[Event, ...]:
        for needle, path in self._needles.items():
            if needle in line:
                read = b'"action":"unchanged"' not in line[:80]
                del self._needles[needle]
                return (Seen(path, read),)
        return ()

    def _status(self, message: dict[str, object]) -> tuple[Event, ...]:
        self.counted_errors = max(self.counted_errors, as_int(message.get("error_count")))
        if "percent_done" not in message:
            return ()
        current = message.get("current_files")
        return (
            Progress(
                files=as_int(message.get("files_done")),
                total_files=as_int(message.get("total_files")),
                bytes=as_int(message.get("bytes_done")),
                total_bytes=as_int(message.get("total_bytes")),
                current=tuple(map(str, current)) if isinstance(current, list) else (),
                seconds_left=as_int(message.get("seconds_remaining")),
            ),
        )

    def _error(self, message: dict[str, object]) -> tuple[Event, ...]:
        if message.get("during") == "scan":
            return ()  # the scan only counts ahead; what cannot be archived is said again
        path = as_text(message.get("item"))
        cause, detail = _reason(message.get("error"))
        if not path:
            self._tail.add(detail)
            return (Warned(detail),)
        self.unreadable += 1
        return (Unreadable(_absolute(path), cause, detail),)

    def _plain(self, line: bytes) -> tuple[Event, ...]:
        text = line.decode(errors="replace").strip()
        if not text or _PARTIAL in text:
            return ()
        if text.endswith(_SKIPPED):
            self.unreadable += 1
            path = text.removesuffix(_SKIPPED)
            return (Unreadable(_absolute(path), Cause.VANISHED, "does not exist"),)
        if text.startswith(("using parent", "no parent", "repository ", "created new cache")):
            return (Said(text),)
        self._tail.add(text)
        return (Warned(text),)


def kept_file(line: bytes) -> bytes:
    """The file that a line names as new, modified or unchanged, quoted; b"" for all else.

    Directories end with a slash, the end of a scan has no name, and nothing else is told. Every quote
    in a name is escaped, so the first that is followed by the next key ends it.
    """
    if not line.startswith(_VERBOSE):
        return b""
    item = line.partition(b',"item":')[2].partition(b',"duration":')[0]
    quoted = len(item) > 2 and item.startswith(b'"') and item.endswith(b'"')
    return item if quoted and not item.endswith(b'/"') else b""


def _absolute(path: str) -> str:
    """Where restic stands is "/" (`Restic.backup`): errors name sources as they were given to it."""
    return path if path.startswith("/") else "/" + ("" if path == "." else path)


def _reason(error: object) -> tuple[Cause, str]:
    """Cause and words, from either form of an error."""
    if not isinstance(error, dict):
        text = as_text(error)
        return cause_of_text(text), text
    if "message" in error:
        text = as_text(error["message"])
        return cause_of_text(text), text
    number = error.get("Err")
    if isinstance(number, int):
        return cause_of_errno(number), f"{error.get('Op', 'read')}: {os.strerror(number).lower()}"
    return Cause.UNKNOWN, ""


def _summary(message: dict[str, object]) -> Summary:
    added = as_int(message.get("data_added"))
    return Summary(
        snapshot=as_text(message.get("snapshot_id")),
        files_new=as_int(message.get("files_new")),
        files_changed=as_int(message.get("files_changed")),
        files_unmodified=as_int(message.get("files_unmodified")),
        dirs_new=as_int(message.get("dirs_new")),
        dirs_changed=as_int(message.get("dirs_changed")),
        dirs_unmodified=as_int(message.get("dirs_unmodified")),
        bytes_added=added,
        bytes_stored=as_int(message.get("data_added_packed")),
        bytes_processed=as_int(message.get("total_bytes_processed")),
        total_files=as_int(message.get("total_files_processed")),
        seconds=_as_float(message.get("total_duration")),
        dry_run=message.get("dry_run") is True,
    )


def _as_float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _go_json(path: str) -> bytes:
    """A path as Go's encoding/json writes it inside quotes."""
    data = path.encode(errors="surrogateescape").decode(errors="replace")
    text = json.dumps(data, ensure_ascii=False)[1:-1]
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()
