"""One root error; every class carries its exit code, and every instance a hint.

Exit codes are part of the command line's contract (docs/reference/exit-codes.md).
10, 11 and 12 mean what they mean for restic itself (restic 0.17, doc/075_scripting.rst).
"""

from enum import StrEnum


class Failure(StrEnum):
    """Why a step failed, told apart so that people and monitoring can act on it."""

    ENGINE = "engine"  # the engine failed in a way that has no name of its own
    NO_REPOSITORY = "no-repository"
    LOCKED = "locked"
    WRONG_PASSWORD = "wrong-password"
    DAMAGED = "damaged"
    DUMP = "dump"  # a dump does not load as its dumper noted; the repository is as it should be
    NO_SPACE = "no-space"
    UNREACHABLE = "unreachable"
    DENIED = "denied"  # the repository's remote refused our credentials
    TIMEOUT = "timeout"
    WEAKENED = "weakened"  # a room's kernel facts are weaker than its grant
    STOPPED = "stopped"  # somebody asked the run to stop
    INTERRUPTED = "interrupted"  # the run, or one of its rooms, died
    REFUSED = "refused"
    CONFLICT = "conflict"  # a restore would overwrite what is there


EXIT_COMPLETE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_REFUSED = 4
EXIT_CONFIG = 5
EXIT_FINDINGS = 7

EXIT_CODES: dict[Failure, int] = {
    Failure.ENGINE: EXIT_FAILED,
    Failure.INTERRUPTED: EXIT_FAILED,
    Failure.REFUSED: EXIT_REFUSED,
    Failure.CONFLICT: 6,
    Failure.NO_REPOSITORY: 10,
    Failure.LOCKED: 11,
    Failure.WRONG_PASSWORD: 12,
    Failure.DAMAGED: 13,
    Failure.NO_SPACE: 14,
    Failure.UNREACHABLE: 15,
    Failure.DENIED: 16,
    Failure.TIMEOUT: 17,
    Failure.WEAKENED: 18,
    Failure.DUMP: 19,
    Failure.STOPPED: 130,
}


class CapkeepError(Exception):
    """Something went wrong that a person can act on: one sentence, an exit code, a hint."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CapkeepError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = EXIT_USAGE


class RefusedError(CapkeepError):
    """capkeep declines on purpose: a run is under way, a plan is unsafe, a caller may not ask."""

    exit_code = EXIT_REFUSED


class ConfigError(CapkeepError):
    """The configuration is wrong; the message lists every mistake with its file and line."""

    exit_code = EXIT_CONFIG


class StepError(CapkeepError):
    """A step failed for a reason that has a name; the exit code follows from it.

    `engine_words` are the engine's own last lines, shown below our sentence.
    """

    def __init__(
        self, failure: Failure, message: str, *, hint: str = "", engine_words: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.failure = failure
        self.engine_words = engine_words
        self.exit_code = EXIT_CODES[failure]
