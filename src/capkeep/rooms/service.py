"""What a vault serves an engine with, on pairs of pipes: one of two kinds.

Where capkeep itself speaks the engine's protocol that is `rest.service`; elsewhere it is a program
of the engine's (`served`), which gets the pipes as they come.
"""

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from capkeep.errors import CapkeepError, Failure
from capkeep.plan.model import Brief
from capkeep.rooms.handover import Ends

# Connecting, asking and being answered, names looked up included: a dead endpoint is told early.
PREFLIGHT_SECONDS: Final = 14
Action = Callable[[], None]


class StoreError(CapkeepError):
    """The place behind the vault failed, in a way that people can act on."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Rates(NamedTuple):
    """Bytes a second; 0 is no limit."""

    upload: int = 0
    download: int = 0


class Stored(NamedTuple):
    """What a session has added."""

    bytes: int
    snapshots: tuple[str, ...] = ()  # names, where they are known


class Service(Protocol):
    """Serves one repository for one session; used from one thread. Close it."""

    def patience(self) -> float:
        """Seconds that the preflight may take."""

    def preflight(self) -> None:
        """Whether the place can be reached and used, told early. Raises StoreError."""

    def begin(self, rates: Rates, failed: Callable[[StoreError], None]) -> None:
        """Get ready; `failed` is told whenever the place behind fails. Raises StoreError."""

    def serve(self, ends: Ends) -> None:
        """Talk to an engine on these; they are the service's from now on."""

    def heard(self) -> Mapping[int, Action]:
        """Descriptors to be heard meanwhile, each with what to do when it has something to say."""

    def tick(self) -> None:
        """Once a second, roughly."""

    def let_make(self) -> None:
        """Let whoever may only add make the repository, if there is none: once."""

    def hold(self) -> list[str] | None:
        """Hold removals back until `commit`, if that can be done; the names of all snapshots.

        None if there are too many to be told, or they are not known.
        """

    def stop(self) -> None:
        """End all conversations."""

    def commit(self) -> None:
        """Carry out what was held back. Raises StoreError."""

    def release(self) -> None:
        """Leave no lock behind. Raises StoreError."""

    def stored(self) -> Stored:
        """What was added, when all is over."""

    def close(self) -> None:
        """Gives back connections and ends helpers."""


_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: OSError, what: str) -> StoreError:
    """The same failure with a name."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return StoreError(Failure.NO_SPACE, f"the repository's disk is full: {what}: {reason}")
    if error.errno in _DENIED:
        return StoreError(Failure.DENIED, f"the repository cannot be used: {what}: {reason}")
    return StoreError(Failure.UNREACHABLE, f"the repository's disk failed: {what}: {reason}")


def folder(brief: Brief) -> str:
    """The vaults' own directory for this repository."""
    assert brief.repository is not None
    return f"{brief.places.state}/vault/{brief.repository.name}"
