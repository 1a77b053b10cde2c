"""What of a job is to happen by itself, and when: one entry for each kind; pure."""

from typing import NamedTuple

from capkeep.plan.model import Job, Plan

Request = dict[str, object]


class Timetable(NamedTuple):
    """One kind of run of one job, its times, and what the runner is then asked for."""

    job: str
    kind: str  # the run's action in the record: "backup", "check", …
    calendar: tuple[str, ...]  # expressions of systemd.time(7)
    request: Request  # to the runner
    spread_seconds: int
    on_battery: bool
    on_metered: bool

    @property
    def unit(self) -> str:
        """What its timer is called, without the installation's prefix and without a suffix."""
        return f"run-{self.job}" if self.kind == "backup" else f"{self.kind}-{self.job}"


def timetables(job: Job) -> tuple[Timetable, ...]:
    """All kinds of runs of a job that have times of their own."""
    kinds: tuple[tuple[str, tuple[str, ...], Request], ...] = (
        ("backup", job.schedule, {"action": "run", "jobs": [job.name]}),
        ("check", job.check.schedule if job.check else (), _upkeep("check", job)),
        ("retention", job.retention.schedule if job.retention else (), _upkeep("retention", job)),
        ("drill", job.drill.schedule if job.drill else (), _upkeep("drill", job)),
        ("copy", job.copies.schedule if job.copies else (), _upkeep("copy", job)),
    )
    return tuple(
        Timetable(
            job.name, kind, calendar, request, job.spread_seconds, job.on_battery, job.on_metered
        )
        for kind, calendar, request in kinds
        if calendar
    )


def _upkeep(action: str, job: Job) -> Request:
    return {"action": action, "jobs": [job.name]}


def whole(plan: Plan) -> tuple[Timetable, ...]:
    """Those of all jobs."""
    return tuple(table for job in plan.jobs for table in timetables(job))


def is_remote(plan: Plan, job: Job) -> bool:
    """Whether a run of the job sends anything over a network."""
    if job.target:
        return True
    names = (*job.repositories, *(job.copies.targets if job.copies else ()))
    return any(not plan.repository(name).location.startswith("/") for name in names)
