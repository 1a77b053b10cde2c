"""Whether a run without an end still goes on."""

from typing import Final

from capkeep.errors import Failure
from capkeep.records.locks import copies_of, holder, holders_without_job
from capkeep.records.model import Outcome, Run

COPY: Final = "copy"
COPY_DRY_RUN: Final = "copy-dry-run"
COPYING: Final = (COPY, COPY_DRY_RUN)  # actions of runs with a lock of their own
INTERRUPTED_TEXT: Final = "the run ended without a word: killed, or the machine went down"


def is_alive(directory: str, run: Run) -> bool:
    """Whether the runner of a run without an end still holds its job, or its repository."""
    if not run.job:
        return any(h.run == run.id for h in holders_without_job(directory))
    found = holder(directory, copies_of(run.job) if run.action in COPYING else run.job)
    return found is not None and found.run == run.id


def interrupted(run: Run) -> Run:
    """The run as one that was cut off. When is not known, so it has neither end nor duration."""
    return run._replace(
        outcome=Outcome.FAILED, failure=Failure.INTERRUPTED, text=INTERRUPTED_TEXT,
        reasons=(INTERRUPTED_TEXT,),
    )  # fmt: skip
