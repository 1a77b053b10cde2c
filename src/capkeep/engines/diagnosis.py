"""What is said of a failure, whichever engine it was."""

from typing import Final

from capkeep.engines.base import Diagnosis
from capkeep.errors import Failure

WORDS: Final = 6  # lines of the engine's own shown below our sentence

SENTENCES: Final = {
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


def by_signal(number: int, words: str) -> Diagnosis:
    """Why an engine failed that was ended by a signal."""
    import signal  # costs a room 1 ms of its start, and is needed when things have gone wrong

    if number in (signal.SIGINT, signal.SIGTERM):
        return Diagnosis(Failure.STOPPED, SENTENCES[Failure.STOPPED], words)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return Diagnosis(Failure.INTERRUPTED, f"the engine was ended by {name}", words)
