"""Why restic failed: by exit code where it has one, by its words where it says 1 for everything.

Codes 10, 11 (0.17.0), 12 (0.17.1) and 130 (0.19.0) are restic's own (doc/075_scripting.rst).
Where several texts fit, the first in the table wins: the cause before its consequences.
"""

import re
from typing import Final

from capkeep.engines.base import Diagnosis
from capkeep.engines.diagnosis import SENTENCES, WORDS, by_signal
from capkeep.engines.lines import as_object
from capkeep.engines.restic_lines import message_of
from capkeep.errors import Failure

PARTIAL_CODE: Final = 3

_BY_CODE: Final = {
    10: Failure.NO_REPOSITORY,
    11: Failure.LOCKED,
    12: Failure.WRONG_PASSWORD,
    130: Failure.STOPPED,
}

# Alternatives, searched for in everything that restic said of trouble, whatever the case.
_TEXTS: Final[tuple[tuple[Failure, str, tuple[str, ...]], ...]] = (
    (Failure.WRONG_PASSWORD, "", ("wrong password or no key found", "an empty password is not")),
    (
        Failure.NO_SPACE,
        "",
        ("no space left on device", "disk quota exceeded", "insufficient storage", r"\b507\b"),
    ),
    (Failure.LOCKED, "", ("repository is already locked",)),
    (
        Failure.ENGINE,
        "none of the job's sources exists",
        ("all (target|source) directories/files do not exist",),
    ),
    (
        Failure.ENGINE,
        "the repository holds no such snapshot",
        ("no matching ID found", "no snapshot found", "multiple IDs with prefix"),
    ),
    (
        Failure.UNREACHABLE,
        "",
        (
            "connection refused", "connection reset", "connection timed out", "broken pipe",
            "no route to host", "no such host", "network is unreachable", "i/o timeout",
            "tls handshake", "x509:", "server misbehaving", "context deadline exceeded",
            r"unexpected http response \(5\d\d\)", "bad gateway", "service unavailable",
            "error talking http to rclone", "rclone stdio connection already closed",
        ),
    ),
    (
        Failure.DENIED,
        "",
        (
            "access ?denied", r"\b40[13]\b", "unauthorized", "forbidden", "signaturedoesnotmatch",
            "invalidaccesskeyid",
            "unable to open config file.*(?:permission denied|not permitted)", "authentication failed",
        ),
    ),
    (
        Failure.NO_REPOSITORY,
        "",
        (
            "is there a repository at the following location", "repository does not exist",
            "unable to open config file",
        ),
    ),
    (
        Failure.DAMAGED,
        "",
        (
            "repository contains errors", "ciphertext verification failed", "hash mismatch",
            "invalid data returned", "pack id does not match", "repository is damaged",
            "damaged pack files", "not found in (?:repository|index)", "errors? loading index",
            "loadtree", "wrong (?:data|blob)", r"readfull\(", "streampack", "content mismatch",
            r"load\(<(?:data|index|snapshot|key)/.*(?:no such file|not exist|not found)",
        ),
    ),
    (
        Failure.ENGINE,
        "the engine ran out of memory",
        ("out of memory", "cannot allocate memory", "pthread_create failed"),
    ),
    (Failure.DENIED, "", ("permission denied", "operation not permitted")),
    (Failure.DENIED, "the repository's place is read-only", ("read-only file system",)),
)  # fmt: skip


def diagnose(exit_code: int, tail: tuple[str, ...], *, backup: bool = False) -> Diagnosis | None:
    """See `Engine.diagnose`."""
    if backup and exit_code == PARTIAL_CODE:
        return None
    tail = tuple(line for raw in tail for line in _words(raw))
    if exit_code == 0:
        return _silent_failure(tail)
    words = "\n".join(tail[-WORDS:])
    if exit_code < 0 or exit_code > 128:
        return by_signal(-exit_code if exit_code < 0 else exit_code - 128, words)
    failure = _BY_CODE.get(exit_code)
    if failure is not None:
        return Diagnosis(failure, SENTENCES[failure], words)
    text = "\n".join(tail)
    for kind, sentence, patterns in _TEXTS:
        if re.search("|".join(patterns), text, re.IGNORECASE):
            return Diagnosis(kind, sentence or SENTENCES[kind], words)
    if exit_code == 2:
        return Diagnosis(Failure.ENGINE, "the engine crashed", words)
    return Diagnosis(Failure.ENGINE, f"the engine failed with exit code {exit_code}", words)


def _words(line: str) -> list[str]:
    """A line of trouble without the JSON around it."""
    message = as_object(line.encode()) if line.startswith("{") else None
    text = message_of(message) if message else line
    return [part.strip() for part in text.splitlines() if part.strip()]


def _silent_failure(tail: tuple[str, ...]) -> Diagnosis | None:
    """restic 0.14 lists nothing and ends with 0 when there is no such snapshot."""
    for line in tail:
        if line.startswith("Ignoring ") and "no matching ID found" in line:
            return Diagnosis(Failure.ENGINE, "the repository holds no such snapshot", line)
    return None
