"""Why borg failed: by the kind of its error, or by its words where it names none.

Kinds (`msgid`) and the codes of 1.4 with BORG_EXIT_CODES=modern: borg's docs/usage/general/
return-codes.rst.inc and docs/internals/frontends.rst. 1.2 ends with 2 for all errors, and with 1
for all warnings.
"""

import re
from typing import Final

from capkeep.engines.base import Diagnosis
from capkeep.engines.diagnosis import SENTENCES, WORDS, by_signal
from capkeep.engines.lines import as_object, as_text
from capkeep.errors import Failure

WARNING: Final = 1
FIRST_WARNING: Final = 100  # of the codes that name one kind of warning
LAST_WARNING: Final = 127

# Alternatives, searched for in "MSGID: message" of all that borg said of trouble; the first wins.
_TEXTS: Final[tuple[tuple[Failure, str, tuple[str, ...]], ...]] = (
    (Failure.REFUSED, "", ("Capkeep.Refused",)),
    (Failure.DAMAGED, "the repository does not list all archives any more", ("Capkeep.Lost",)),
    (
        Failure.ENGINE, "borg has no pyfuse3 to show files with: apt-get install python3-pyfuse3",
        ("mount not available",),
    ),
    (Failure.WRONG_PASSWORD, "", ("PassphraseWrong", "PasscommandFailure", "NoPassphraseFailure")),
    (
        Failure.NO_SPACE, "",
        ("no space left on device", "disk quota exceeded", "InsufficientFreeSpace", "StorageQuota"),
    ),
    (Failure.LOCKED, "", ("LockTimeout", "LockFailed", "LockError", r"create/acquire the lock")),
    (
        Failure.ENGINE, "the repository holds no such snapshot",
        ("Archive.DoesNotExist", "Archive .* does not exist", r"Archive .* not found"),
    ),
    (
        Failure.NO_REPOSITORY, "",
        ("Repository.DoesNotExist", r"\bInvalidRepository\b", "is not a valid repository",
         r"Repository .* does not exist"),
    ),
    (
        Failure.REFUSED,
        "the repository is not encrypted, or not with its passphrase and a key in the repository",
        ("CacheInitAbortedError", "UnencryptedRepo", "KeyfileNotFound", "RepoKeyNotFound"),
    ),
    (Failure.DENIED, "the vault allows no such thing", ("PathNotAllowed", "InvalidRPCMethod")),
    (
        Failure.DAMAGED, "",
        (
            "Integrity", "UnsupportedPayload", "UnsupportedManifest", "EncryptionMethodMismatch",
            "TAMRequired", "TAMInvalid", "TAMUnsupported", "CheckNeeded", "NoManifestError",
            "ObjectNotFound", "RepositoryReplay", "RepositoryAccessAborted", "FileIntegrity",
            "repository check", "inconsistenc", r"damaged \(all-zero\)",
        ),
    ),
    (
        Failure.UNREACHABLE, "",
        ("ConnectionClosed", "ConnectionBroken", "Broken pipe", "Connection closed by remote"),
    ),
    (Failure.ENGINE, "the engine ran out of memory", ("MemoryError", "cannot allocate memory")),
    (Failure.DENIED, "", ("permission denied", "operation not permitted", r"\[Errno 13\]")),
    (Failure.DENIED, "the repository's place is read-only", ("read-only file system",)),
)  # fmt: skip


def is_warning(exit_code: int) -> bool:
    """Whether borg has done what it could, and has something to say about it."""
    return exit_code == WARNING or FIRST_WARNING <= exit_code <= LAST_WARNING


def diagnose(exit_code: int, tail: tuple[str, ...], *, backup: bool = False) -> Diagnosis | None:
    """See `Engine.diagnose`."""
    if exit_code == 0 or (backup and is_warning(exit_code)):
        return None
    lines = [line for raw in tail for line in _words(raw)]
    words = "\n".join(line.partition("\t")[2] for line in lines[-WORDS:])
    if exit_code < 0 or exit_code > 128:
        return by_signal(-exit_code if exit_code < 0 else exit_code - 128, words)
    text = "\n".join(lines)
    for kind, sentence, patterns in _TEXTS:
        if re.search("|".join(patterns), text, re.IGNORECASE):
            plain = sentence or SENTENCES.get(kind) or (words.splitlines() or [""])[-1]
            return Diagnosis(kind, plain, words)
    return Diagnosis(Failure.ENGINE, f"the engine failed with exit code {exit_code}", words)


def _words(line: str) -> list[str]:
    """Lines of trouble: borg's kind of error, a tab, its words."""
    message = as_object(line.encode()) if line.startswith("{") else None
    kind = as_text(message.get("msgid")) if message else ""
    if message and message.get("levelname") == "INFO":
        return []
    text = as_text(message.get("message")) if message else line
    told = text.partition("\nPlatform: ")[0]  # after a crash: what the machine is like
    return [f"{kind}\t{part.strip()}" for part in told.splitlines() if part.strip()]
