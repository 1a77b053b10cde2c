"""Copies in a run: after a backup, or by themselves; one errand for each repository copied into."""

from typing import Final

from capkeep.plan.model import Job, Plan
from capkeep.records.queries import Records
from capkeep.run.errand import Errand

COPY_SECONDS: Final = 7 * 24 * 3600
KNOWN_SNAPSHOTS: Final = (
    10_000  # complete ones that the copier is told of: less than a message holds
)


def errand(plan: Plan, job: Job, target: str, records: Records) -> Errand:
    """A visit to the copier that copies into one repository."""
    assert job.copies is not None, "asked before"
    known = records.complete_snapshots(job.name, job.copies.origin, KNOWN_SNAPSHOTS)
    room = plan.room(f"copier-{job.name}-{target}")
    request: dict[str, object] = {"action": "copy", "options": {"complete": list(known)}}
    return Errand("copy", room, request, COPY_SECONDS)
