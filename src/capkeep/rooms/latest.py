"""Which snapshot is meant by "latest": never another host's, or another job's, unasked."""

from collections.abc import Iterable, Sequence
from typing import Final

from capkeep.engines.base import Snapshot
from capkeep.errors import Failure, StepError
from capkeep.plan.model import Job, job_tag

LATEST: Final = "latest"
NAMED: Final = 8  # families in a hint
LONG: Final = 64  # characters of a host's or a job's name there


def latest(listed: Sequence[Snapshot], jobs: Iterable[Job], paths: Sequence[str] = ()) -> Snapshot:
    """The newest of these (oldest first) that is meant; `jobs` are this host's own.

    Where none of them has made any, as on a new machine, it is whoever alone has. Raises StepError.
    """
    own = own_of(listed, jobs)
    if own:
        return newest(own, paths)
    if not listed:
        raise StepError(Failure.CONFLICT, "the repository holds no snapshot yet")
    families: dict[tuple[str, str], Snapshot] = {}
    for snapshot in listed:
        family = snapshot.host, _job_of(snapshot)
        # What dumps have streamed is not the job's files, and comes with them or without.
        if _is_of_files(snapshot) or not _is_of_files(families.get(family, snapshot)):
            families[family] = snapshot
    if len(families) == 1:
        return next(iter(families.values()))
    raise StepError(
        Failure.CONFLICT,
        "no job of this host has made a snapshot there, and several others have",
        hint=f"in the place of {LATEST} type {_candidates(families)}",
    )


def own_of(listed: Iterable[Snapshot], jobs: Iterable[Job]) -> list[Snapshot]:
    """Those that a host's own jobs have made of files, by its name and their tags."""
    made_by = {(job.host, job_tag(job.name)) for job in jobs}
    return [s for s in listed if any((s.host, tag) in made_by for tag in s.tags)]


def newest(own: Sequence[Snapshot], paths: Sequence[str]) -> Snapshot:
    """The last of the job that keeps the paths; of any, where that cannot be told."""
    keeping = [s for s in own if all(_keeps(s, path) for path in paths)]
    return (keeping or own)[-1]


def _keeps(snapshot: Snapshot, path: str) -> bool:
    """Whether the path was to be backed up; not every engine notes what was."""
    tops = (f"{top.rstrip('/')}/" for top in snapshot.paths)
    return not snapshot.paths or any(f"{path}/".startswith(top) for top in tops)


def _words(snapshot: Snapshot) -> tuple[str, ...]:
    """The parts of our tag, without its first: the job, and of a stream the dump; () for others."""
    first = job_tag("")
    found = (tag.removeprefix(first) for tag in snapshot.tags if tag.startswith(first))
    return tuple(next(found, "").split(":"))


def _job_of(snapshot: Snapshot) -> str:
    return _words(snapshot)[0]


def _is_of_files(snapshot: Snapshot) -> bool:
    return len(_words(snapshot)) == 1


def _candidates(families: dict[tuple[str, str], Snapshot]) -> str:
    """The newest of each family, with what tells it from the others."""
    found = sorted(families.items(), key=lambda item: item[1].time, reverse=True)
    words = [
        f"{s.id[:16]} ({job[:LONG] or 'no job'} of {host[:LONG] or 'no host'}, {s.time[:16]})"
        for (host, job), s in found[:NAMED]
    ]
    more = len(found) - NAMED
    return ", or ".join(words) + (f"; and {more} more" if more > 0 else "")
