"""Copies in a run: after a backup, or by themselves; one errand for each repository copied into."""

from typing import Final

from capkeep.plan.model import Job, Plan
from capkeep.records.life import COPY_DRY_RUN
from capkeep.records.queries import Records
from capkeep.run.errand import Errand

COPY_SECONDS: Final = 7 * 24 * 3600
KNOWN_SNAPSHOTS: Final = (
    10_000  # complete ones that the copier is told of: less than a message holds
)


def errand(plan: Plan, job: Job, target: str, records: Records, action: str) -> Errand:
    """A visit to the copier that copies into one repository, or says what it would copy."""
    assert job.copies is not None, "asked before"
    known = records.complete_snapshots(job.name, job.copies.origin, KNOWN_SNAPSHOTS)
    room = plan.room(f"copier-{job.name}-{target}")
    options = {"complete": list(known), "dry_run": action == COPY_DRY_RUN}
    request: dict[str, object] = {"action": "copy", "options": options}
    return Errand(action, room, request, COPY_SECONDS)
