"""Jobs in the plan; pure."""

from capkeep.config.model import CheckConfig, JobConfig, ResourcesConfig, RetentionConfig
from capkeep.plan import copies, hooks, pull
from capkeep.plan.model import Check, Drill, Job, Resources, Retention, job_tag


def compiled(job: JobConfig, hostname: str, canary: str) -> Job:
    """The job as rooms need it, without its dumps. `canary`: where this host's own is."""
    return Job(
        name=job.name,
        repositories=job.repositories,
        include=job.include,
        exclude=job.exclude,
        may_miss=tuple(glob.text for glob in job.may_miss),
        one_file_system=job.one_file_system,
        canary=(pull.CANARY if job.target else canary) if job.canary else "",
        max_shrink_percent=job.max_shrink_percent,
        allow_empty=job.allow_empty,
        tags=(*job.tags, job_tag(job.name)),
        host=job.host or hostname,
        timeout_seconds=job.timeout_seconds,
        max_age_seconds=job.max_age_seconds,
        schedule=job.schedule,
        check=_check(job.check),
        retention=_retention(job.retention),
        drill=Drill(**vars(job.drill)) if job.drill else None,
        copies=copies.compiled(job.copies),
        spread_seconds=job.spread_seconds,
        on_battery=job.on_battery,
        on_metered=job.on_metered,
        resources=_resources(job.resources),
        hooks=hooks.of_job(job),
        target=job.target,
    )


def _resources(resources: ResourcesConfig) -> Resources:
    return Resources(
        upload_bytes=resources.upload_bytes,
        download_bytes=resources.download_bytes,
        lock_wait_seconds=resources.lock_wait_seconds,
        retries=resources.retries,
        retry_wait_seconds=resources.retry_wait_seconds,
    )


def _check(check: CheckConfig | None) -> Check | None:
    if check is None:
        return None
    return Check(
        after_backup=check.after_backup,
        schedule=check.schedule,
        read_data=check.read_data.part,
        rotate_seconds=check.read_data.rotate_seconds,
    )


def _retention(retention: RetentionConfig | None) -> Retention | None:
    return Retention(**vars(retention)) if retention else None
