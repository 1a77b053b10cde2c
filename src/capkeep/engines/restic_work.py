"""What restic says during `check` and `restore`: JSON since 0.18 and 0.16, text before; and `copy`: text."""

import re
from typing import Final

from capkeep.engines.base import (
    CheckResult,
    CopyLine,
    Event,
    Progress,
    RestoreResult,
    Said,
    Unreadable,
    Warned,
)
from capkeep.engines.causes import cause_of_text
from capkeep.engines.lines import WORDS_KEPT, LineReader, as_int, as_object, as_text, as_texts
from capkeep.engines.restic_lines import message_of

_PACK: Final = re.compile(r"(?:pack(?: ID does not match, want)?) ([0-9a-f]{64})", re.IGNORECASE)
_ADVICE: Final = (
    "the repository contains damaged pack files",
    "the repository is damaged and must be repaired",
    "restic repair ",
    "damaged pack files can be caused by",
    "run `restic ",
    "the repository index is damaged",
)
_VERDICT: Final = "fatal: repository contains errors"
ERROR_COUNT: Final = re.compile(r"Fatal: There were \d+ errors")  # the last word of a restore
_IGNORING: Final = re.compile(r"ignoring error for (.+?): ((?:\w+ )?.*)")

_SAVED: Final = re.compile(rb"snapshot [0-9a-f]{8,64} saved\b")
_PACKS: Final = re.compile(rb"\[[0-9:]+\] +([0-9.]+%) +[0-9]+ / [0-9]+ packs copied")


def copy_line(line: bytes) -> CopyLine:
    """A line of `copy`, of a snapshot or of the packs under way (restic, cmd/restic/cmd_copy.go)."""
    packs = _PACKS.match(line)
    return CopyLine(bool(_SAVED.match(line)), packs[1].decode() if packs else "")


class CheckReader(LineReader):
    """Counts errors and collects the packs they name."""

    def __init__(self) -> None:
        super().__init__()
        self._errors = 0
        self._counted = 0
        self._gave_up = False
        self._packs: dict[str, None] = {}
        self._words: list[str] = []

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        message = as_object(line) if line.startswith(b"{") else None
        if message is not None:
            return self._message(message)
        text = line.decode(errors="replace").strip()
        if not text:
            return ()
        if stream == "stderr":
            return self._trouble(text)
        return (Said(text),)

    def _message(self, message: dict[str, object]) -> tuple[Event, ...]:
        match message.get("message_type"):
            case "summary":
                self._counted = as_int(message.get("num_errors"))
                self._packs.update(dict.fromkeys(as_texts(message.get("broken_packs"))))
                return ()
            case "status":
                return ()
        return self._trouble(message_of(message).strip())

    def _trouble(self, text: str) -> tuple[Event, ...]:
        lowered = text.lower()
        if not text or any(a in lowered for a in _ADVICE):
            return ()
        self._tail.add(text)
        if lowered == _VERDICT:
            return ()
        self._gave_up |= lowered.startswith("fatal: ")  # what comes then explains it
        if self._gave_up or lowered.startswith("load(") or "returned error, retrying" in lowered:
            return (Warned(text),)
        self._errors += 1
        self._packs.update(dict.fromkeys(_PACK.findall(text)))
        if len(self._words) < WORDS_KEPT:
            self._words.append(text)
        return (Warned(text),)

    def result(self) -> CheckResult:
        # That it could not check at all (a wrong password, no connection) restic counts as an error.
        uncounted = self._gave_up and not self._errors and not self._packs
        errors = 0 if uncounted else max(self._errors, self._counted)
        return CheckResult(errors, tuple(self._packs), tuple(self._words))


class RestoreReader(LineReader):
    """Names what could not be restored; restic says so in JSON since 0.17."""

    def __init__(self) -> None:
        super().__init__()
        self._result = RestoreResult(0, 0, 0, 0)

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        message = as_object(line) if line.startswith(b"{") else None
        if message is not None:
            return self._message(message)
        text = line.decode(errors="replace").strip()
        if not text:
            return ()
        if stream == "stdout":
            return (Said(text),)
        self._tail.add(text)
        if ignored := _IGNORING.match(text):
            return (Unreadable(ignored[1], cause_of_text(ignored[2]), ignored[2]),)
        return (Warned(text),)

    def _message(self, message: dict[str, object]) -> tuple[Event, ...]:
        match message.get("message_type"):
            case "status":
                return (_progress(message),)
            case "summary":
                self._result = RestoreResult(
                    total_files=as_int(message.get("total_files")),
                    files_restored=as_int(message.get("files_restored")),
                    bytes_restored=as_int(message.get("bytes_restored")),
                    files_skipped=as_int(message.get("files_skipped")),
                )
            case "error":
                text, item = message_of(message), as_text(message.get("item"))
                self._tail.add(text)
                return (Unreadable(item, cause_of_text(text), text) if item else Warned(text),)
            case "exit_error":
                self._tail.add(message_of(message))
        return ()

    def result(self) -> RestoreResult:
        return self._result

    def only_lacks(self, exit_code: int) -> bool:
        last = self.tail[-1] if self.tail else ""
        return exit_code > 0 and bool(ERROR_COUNT.match(last))


def _progress(message: dict[str, object]) -> Progress:
    done = as_int(message.get("files_restored")) + as_int(message.get("files_skipped"))
    return Progress(
        files=done,
        total_files=as_int(message.get("total_files")),
        bytes=as_int(message.get("bytes_restored")) + as_int(message.get("bytes_skipped")),
        total_bytes=as_int(message.get("total_bytes")),
        current=(),
        seconds_left=0,
    )
