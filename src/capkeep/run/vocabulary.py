"""What a runner may be asked for: a fixed vocabulary, so that asking can do no more than cost time."""

from collections.abc import Callable, Iterable
from typing import Final, NoReturn

from capkeep.errors import EXIT_COMPLETE, EXIT_PARTIAL, RefusedError
from capkeep.plan.model import Brief, Job, Plan, Repository, closed
from capkeep.rooms.protocol import Message, ProtocolError
from capkeep.run.errand import AFTER_PULLS
from capkeep.run.walk import Walk
from capkeep.values import of_all

MOST_APART: Final = 12  # runs that one caller asks for at a time: others may ask too
UPKEEP: Final = ("check", "retention")  # parts of a job that can also be asked for by themselves


def answer(plan: Plan, walk: Walk, brief: Brief, request: Message) -> int:
    """Do what was asked; returns the exit code. Raises CapkeepError (a ProtocolError for nonsense)."""
    action = str(request.get("action"))
    if action == "retention" or (action in UPKEEP and request.get("jobs")):
        return _keep(plan, walk, action, request)
    if action == "drill":
        return _drill(plan, walk, request)
    if action == "copy":
        return _copy(plan, walk, request)
    found = _ANSWERS.get(action)
    if found is None:
        raise ProtocolError("unknown request")
    return found(plan, walk, brief, request)


def _run(plan: Plan, walk: Walk, _brief: Brief, request: Message) -> int:
    dry_run, accept = _flag(request, "dry_run"), _flag(request, "accept_shrink")
    jobs = _jobs(plan, request)
    if _flag(request, "apart"):
        jobs = _without_several(plan, walk, jobs)
    codes = [walk.run_job(job, dry_run=dry_run, accept_shrink=accept) for job in jobs]
    codes += walk.copy_made()
    if any(job.target for job in jobs) and not dry_run and not _flag(request, "more"):
        codes.append(walk.after_pulls())
    return worst(codes)


def _after_pulls(_plan: Plan, walk: Walk, _brief: Brief, _request: Message) -> int:
    """Whoever asked for several pulls says that they were all."""
    return walk.after_pulls()


def _without_several(plan: Plan, walk: Walk, jobs: list[Job]) -> list[Job]:
    """Targets are pulled from side by side; a runner does one thing, so each has one of its own."""
    several = [job.name for job in jobs if job.target]
    if len(several) < 2 or plan.parallel_pulls == 1:
        return jobs
    parallel = min(plan.parallel_pulls or len(several), len(several), MOST_APART)
    walk.tell({"event": "apart", "jobs": several, "parallel": parallel})
    return [job for job in jobs if not job.target]


def _keep(plan: Plan, walk: Walk, part: str, request: Message) -> int:
    known = [job.name for job in plan.jobs if getattr(job, part)] or _none(part)
    jobs = [plan.job(name) for name in _chosen(request, "jobs", known)]
    dry_run = _flag(request, "dry_run")
    return worst(walk.keep(job, part, dry_run=dry_run) for job in jobs)


def _drill(plan: Plan, walk: Walk, request: Message) -> int:
    known = [job.name for job in plan.jobs if job.drill] or _none("drill")
    jobs = [plan.job(name) for name in _chosen(request, "jobs", known)]
    seed, whole = _text(request, "seed"), _flag(request, "all")
    return worst(walk.drill(job, seed, whole=whole) for job in jobs)


def _copy(plan: Plan, walk: Walk, request: Message) -> int:
    known = [job.name for job in plan.jobs if job.copies] or _none("copies")
    jobs = [plan.job(name) for name in _chosen(request, "jobs", known)]
    dry_run = _flag(request, "dry_run")
    return worst(walk.copy(job, dry_run=dry_run) for job in jobs)


def _check(plan: Plan, walk: Walk, _brief: Brief, request: Message) -> int:
    part = _text(request, "read_data")
    return worst(walk.check(repository, part) for repository in _opened(plan, request))


def _init(plan: Plan, walk: Walk, _brief: Brief, request: Message) -> int:
    targets = {name for job in plan.jobs if job.copies for name in job.copies.targets}
    # What others are made like comes before them.
    chosen = sorted(_repositories(plan, request), key=lambda r: r.name in targets)
    return worst(map(walk.init, chosen))


def _snapshots(plan: Plan, walk: Walk, _brief: Brief, request: Message) -> int:
    return worst(map(walk.snapshots, _opened(plan, request)))


def _notify_test(plan: Plan, walk: Walk, _brief: Brief, request: Message) -> int:
    return walk.notify_test(_chosen(request, "channels", [n.name for n in plan.notify]))


def _leave_out(plan: Plan, walk: Walk, brief: Brief, request: Message) -> int:
    """What is left out is not missed: only who starts scheduled runs may say so."""
    if brief.peer_uid not in (0, brief.room.grant.uid):
        raise ProtocolError("only a schedule leaves out runs")
    job = _jobs(plan, request)[0]
    return walk.leave_out(job, _text(request, "kind"), _text(request, "why"))


def _save(plan: Plan, walk: Walk, brief: Brief, request: Message) -> int:
    """A part of a run, without what its hooks and dumps make of it: for who restores in place."""
    if brief.peer_uid not in (0, brief.room.grant.uid):
        raise ProtocolError("only who restores in place saves what was there")
    jobs = _jobs(plan, request)
    names = _chosen(request, "repositories", list(jobs[0].repositories))
    if len(jobs) != 1 or len(names) != 1:
        raise ProtocolError("name one job, and one of its repositories")
    return walk.save(jobs[0], names[0])


_ANSWERS: Final[dict[str, Callable[[Plan, Walk, Brief, Message], int]]] = {
    "run": _run,
    "check": _check,
    "init": _init,
    "snapshots": _snapshots,
    "notify-test": _notify_test,
    "leave-out": _leave_out,
    "save": _save,
    AFTER_PULLS: _after_pulls,
}


def _none(part: str) -> NoReturn:
    what = part if part.endswith("s") else f"a {part}"
    raise RefusedError(f"no job has {what}", hint=f"write [jobs.NAME.{part}], then capkeep apply")


def _jobs(plan: Plan, request: Message) -> list[Job]:
    if not plan.jobs:
        raise RefusedError(
            "no job of this host is run from here: servers come for its files", hint="run it there"
        )
    return [plan.job(name) for name in _chosen(request, "jobs", [j.name for j in plan.jobs])]


def _repositories(plan: Plan, request: Message) -> list[Repository]:
    known = [r.name for r in plan.repositories]
    return [plan.repository(name) for name in _chosen(request, "repositories", known)]


def _opened(plan: Plan, request: Message) -> list[Repository]:
    """The same, of those that have a keeper here. Raises RefusedError for another that is asked for."""
    found = _repositories(plan, request)
    kept = [repository for repository in found if repository.target_keeps_password]
    if kept and (request.get("repositories") or len(kept) == len(found)):
        text, hint = closed(kept[0].name)
        raise RefusedError(text, hint=hint)
    return [repository for repository in found if not repository.target_keeps_password]


def _chosen(request: Message, key: str, known: list[str]) -> list[str]:
    """The names asked for, each one known; all of them if none is named. Raises ProtocolError."""
    names = request.get(key, [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ProtocolError(f"{key} must be a list of names")
    names = [one for name in names for one in of_all(name, known)]
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ProtocolError(f"there is no {unknown[0]!r}; known {key}: {', '.join(known)}")
    return list(dict.fromkeys(names)) or known


def _flag(request: Message, key: str) -> bool:
    value = request.get(key, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{key} must be true or false")
    return value


def _text(request: Message, key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str) or len(value) > 64:
        raise ProtocolError(f"{key} must be a short text")
    return value


def worst(codes: Iterable[int]) -> int:
    """Of several runs' exit codes the one to end with: a failure before partial before complete."""
    codes = list(codes)
    failures = [c for c in codes if c not in (EXIT_COMPLETE, EXIT_PARTIAL)]
    if failures:
        return failures[0]
    return EXIT_PARTIAL if EXIT_PARTIAL in codes else EXIT_COMPLETE
