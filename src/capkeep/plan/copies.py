"""Copies in the plan: which room copies from where, and whose repositories are copies; pure."""

from capkeep.config.model import Config, CopiesConfig
from capkeep.plan.model import Copy


def compiled(copies: CopiesConfig | None) -> Copy | None:
    """The settings as the room needs them."""
    return Copy(**vars(copies)) if copies else None


def pairs(config: Config) -> tuple[tuple[str, str, str], ...]:
    """For each room its job, the repository that it copies from, and the one that it copies into."""
    return tuple(
        (job.name, job.copies.origin, target)
        for job in config.jobs
        if job.copies
        for target in job.copies.targets
    )
