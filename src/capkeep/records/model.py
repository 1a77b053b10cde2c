"""The values of the record: runs, their steps, and what was proven and found in each.

Times are seconds since 1970 (UTC) as the wall clock showed them; durations come from a clock that
does not jump, so they can be trusted where the difference of two times cannot.
"""

import os
import time
from enum import StrEnum
from typing import NamedTuple

from capkeep import __version__
from capkeep.errors import Failure


class Outcome(StrEnum):
    """How a run or a step ended."""

    COMPLETE = "complete"
    PARTIAL = "partial"  # something was not read
    FAILED = "failed"
    MISSED = "missed"  # it was due and did not start
    SKIPPED = "skipped"  # it was due and was left out on purpose, as on battery


class FindingKind(StrEnum):
    """What kind of thing a step reports about one path."""

    UNREADABLE = "unreadable"  # makes the step partial
    MAY_MISS = "may-miss"  # was not read either, as the job declares
    LEFT_OUT = "left-out"  # a filesystem or directory that was not shown to the engine
    WARNING = "warning"
    DIFFERENCE = "difference"  # of a drill: both sides of what is not as it should be


class Totals(NamedTuple):
    """What the engine counted. Zero where it did not say."""

    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    dirs_new: int = 0
    dirs_changed: int = 0
    dirs_unmodified: int = 0
    bytes_added: int = 0  # new in the repository, before compression
    bytes_stored: int = 0  # new in the repository, as written there
    bytes_processed: int = 0  # size of what the snapshot holds
    total_files: int = 0


class Run(NamedTuple):
    """One walk of a job through its steps."""

    id: str
    job: str  # "" for work on a repository that belongs to no job
    started: float
    action: str = "backup"  # what was asked for: "backup", "check", "init", …
    ended: float | None = None
    seconds: float | None = None
    outcome: Outcome | None = None  # None: it has not ended
    failure: Failure | None = None
    exit_code: int | None = None
    text: str = ""  # one sentence for people
    reasons: tuple[str, ...] = ()  # why it is not complete
    trigger_uid: int = -1  # who asked for it
    trigger_user: str = ""
    version: str = __version__


class Step(NamedTuple):
    """One step of a run, in one room."""

    run: str
    seq: int  # 1, 2, … within the run
    kind: str  # "backup", "check", "init", "snapshots", …
    repository: str
    started: float
    ended: float | None = None
    seconds: float | None = None
    outcome: Outcome | None = None
    failure: Failure | None = None
    exit_code: int | None = None  # the engine's
    engine: str = ""  # such as "restic 0.18.0"
    snapshot: str = ""
    text: str = ""
    engine_words: str = ""  # the engine's own last lines
    engine_network: bool = False  # the engine itself had the network, as the plan allows it
    totals: Totals = Totals()


class Proof(NamedTuple):
    """What the kernel said of one process of a step, and how that is weaker than granted."""

    room: str
    process: str  # "room", "engine", "vault", of a copier also "origin": the vault that it reads
    facts: str  # JSON object
    weaker: tuple[str, ...] = ()


class Finding(NamedTuple):
    """Something about one path. Bytes that are not UTF-8 are surrogate escapes in `path`."""

    kind: FindingKind
    path: str
    cause: str = ""
    detail: str = ""


class JobStatus(NamedTuple):
    """What is known of a job."""

    job: str
    latest: tuple[Run, ...]  # the last ended run of each action, oldest first
    last_complete: Run | None  # the last complete backup
    running: Run | None
    totals: (
        Totals  # of the last complete backup: the largest of its steps, which store the same files
    )


def new_run_id(now: float) -> str:
    """Sorts by time, fits in a line: 20261121T040506Z-ab12."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime(now)) + os.urandom(2).hex()


def elapsed(started: float, ended: float | None, seconds: float | None, now: float) -> float:
    """Seconds that something took, or has taken so far; never negative, even if the clock jumped."""
    if seconds is not None:
        return seconds
    return max(0.0, (now if ended is None else ended) - started)
