"""Why restic failed: by exit code where it has one, by its words where it says 1 for everything.

Codes 10, 11 (0.17.0), 12 (0.17.1) and 130 (0.19.0) are restic's own (doc/075_scripting.rst).
Where several texts fit, the first in the table wins: the cause before its consequences.
"""

import re
import signal
from typing import Final

from capkeep.engines.base import Diagnosis
from capkeep.errors import Failure

WORDS: Final = 6  # lines of the engine's own shown below our sentence

PARTIAL_CODE: Final = 3

_BY_CODE: Final = {
    10: Failure.NO_REPOSITORY,
    11: Failure.LOCKED,
    12: Failure.WRONG_PASSWORD,
    130: Failure.STOPPED,
}

_SENTENCES: Final = {
    Failure.NO_REPOSITORY: "there is no repository at that place",
    Failure.LOCKED: "the repository is locked by another run",
    Failure.WRONG_PASSWORD: "the password does not open the repository",
    Failure.DAMAGED: "the repository is damaged",
    Failure.NO_SPACE: "there is no space left",
    Failure.UNREACHABLE: "the repository cannot be reached",
    Failure.DENIED: "the repository's place refuses access",
    Failure.STOPPED: "the engine was asked to stop",
    Failure.INTERRUPTED: "the engine was killed",
    Failure.ENGINE: "the engine failed",
}

_BY_TEXT: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), failure, sentence)
    for pattern, failure, sentence in (
        (r"wrong password or no key found|an empty password is not", Failure.WRONG_PASSWORD, ""),
        (
            r"no space left on device|disk quota exceeded|insufficient storage|\b507\b",
            Failure.NO_SPACE,
            "",
        ),
        (r"repository is already locked|unable to create lock.*already locked", Failure.LOCKED, ""),
        (
            r"all (target|source) directories/files do not exist",
            Failure.ENGINE,
            "none of the job's sources exists",
        ),
        (
            r"no matching ID found|no snapshot found|multiple IDs with prefix",
            Failure.ENGINE,
            "the repository holds no such snapshot",
        ),
        (
            r"connection refused|no route to host|network is unreachable|i/o timeout"
            r"|no such host|connection reset|connection timed out|tls handshake|x509:"
            r"|server misbehaving|broken pipe|unexpected http response \(5\d\d\)"
            r"|context deadline exceeded|bad gateway|service unavailable",
            Failure.UNREACHABLE,
            "",
        ),
        (
            r"access ?denied|\b40[13]\b|unauthorized|forbidden|signaturedoesnotmatch"
            r"|invalidaccesskeyid|authentication failed",
            Failure.DENIED,
            "",
        ),
        (
            r"is there a repository at the following location|repository does not exist"
            r"|unable to open config file",
            Failure.NO_REPOSITORY,
            "",
        ),
        (
            r"repository contains errors|ciphertext verification failed|hash mismatch"
            r"|invalid data returned|pack id does not match|repository is damaged"
            r"|damaged pack files|not found in (?:repository|index)|errors? loading index"
            r"|loadtree|wrong (?:data|blob)|readfull\(|streampack|content mismatch"
            r"|load\(<(?:data|index|snapshot|key)/.*(?:no such file|not exist|not found)",
            Failure.DAMAGED,
            "",
        ),
        (
            r"out of memory|cannot allocate memory|pthread_create failed",
            Failure.ENGINE,
            "the engine ran out of memory",
        ),
        (r"permission denied|operation not permitted", Failure.DENIED, ""),
        (r"read-only file system", Failure.DENIED, "the repository's place is read-only"),
    )
)


def diagnose(exit_code: int, tail: tuple[str, ...], *, backup: bool = False) -> Diagnosis | None:
    """See `Engine.diagnose`."""
    if backup and exit_code == PARTIAL_CODE:
        return None
    if exit_code == 0:
        return _silent_failure(tail)
    words = "\n".join(tail[-WORDS:])
    if exit_code < 0 or exit_code > 128:
        return _by_signal(-exit_code if exit_code < 0 else exit_code - 128, words)
    failure = _BY_CODE.get(exit_code)
    if failure is not None:
        return Diagnosis(failure, _SENTENCES[failure], words)
    text = "\n".join(tail)
    for pattern, kind, sentence in _BY_TEXT:
        if pattern.search(text):
            return Diagnosis(kind, sentence or _SENTENCES[kind], words)
    if exit_code == 2:
        return Diagnosis(Failure.ENGINE, "the engine crashed", words)
    return Diagnosis(Failure.ENGINE, f"the engine failed with exit code {exit_code}", words)


def _silent_failure(tail: tuple[str, ...]) -> Diagnosis | None:
    """restic 0.14 lists nothing and ends with 0 when there is no such snapshot."""
    for line in tail:
        if line.startswith("Ignoring ") and "no matching ID found" in line:
            return Diagnosis(Failure.ENGINE, "the repository holds no such snapshot", line)
    return None


def _by_signal(number: int, words: str) -> Diagnosis:
    if number in (signal.SIGINT, signal.SIGTERM):
        return Diagnosis(Failure.STOPPED, _SENTENCES[Failure.STOPPED], words)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return Diagnosis(Failure.INTERRUPTED, f"the engine was ended by {name}", words)
