"""Root's own restore to where files were: what stands in its way, and the snapshot before it."""

import argparse
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from capkeep.errors import EXIT_COMPLETE, Failure, RefusedError, StepError, UsageError

if TYPE_CHECKING:
    from capkeep.plan.model import Plan, Repository
    from capkeep.rooms.protocol import Message

# What the restorer itself runs from, and what is no files.
NEVER: Final = (
    "/bin", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr",
)  # fmt: skip
HINT: Final = "--no-safety-snapshot restores without one"


def refuse_repository(plan: "Plan", repository: "Repository") -> None:
    """Raises RefusedError for files of another host, and where it is not known what would be written."""
    from capkeep.engines import ENGINES

    for job in plan.jobs:
        kept = (*job.repositories, *(job.copies.targets if job.copies else ()))
        if job.target and repository.name in kept:
            raise RefusedError(
                f"{repository.name} holds files of {job.target}, and in place they would replace"
                " this host's own",
                hint="--to DIR, and copy from there what that host needs",
            )
    if not ENGINES[repository.engine].traits.in_place:
        raise RefusedError(
            f"{repository.engine} restores to a directory of its own only",
            hint="--to DIR, and copy from there what you need",
        )


def place_of(args: argparse.Namespace, plan: "Plan") -> str:
    """The directory that must be writable for it. Raises RefusedError, UsageError."""
    if len(args.paths) != 1:
        raise UsageError("in place one path is restored at a time")
    path = str(args.paths[0])
    if os.path.normpath(path) != path or not path.startswith("/"):
        raise UsageError(f"{path} is not an absolute path as in the snapshot")
    for taken in (*NEVER, *_needed(plan)):
        if _meet(path, taken):
            raise RefusedError(
                f"{path} is not restored in place: {taken} is needed for restoring itself",
                hint="restore --to a directory of its own, or name what lies beside that",
            )
    top = path if _is_folder(path) else os.path.dirname(path)
    while not _is_folder(top):
        top = os.path.dirname(top)
    if top == "/":
        raise RefusedError(
            f"nothing is there above {path} but the root directory",
            hint=f"make the directory first: mkdir /{path.split('/')[1]}",
        )
    return top


def _needed(plan: "Plan") -> tuple[str, ...]:
    """What capkeep runs from and works with, also where links lead to it."""
    places = plan.places
    own = [places.config, places.state, places.cache, places.log, places.run]
    own += [plan.package, plan.interpreter, sys.prefix]
    for repository in plan.all_repositories:
        own += [repository.location, repository.program, repository.environment_folder]
        # Programs and what they need, but for what is of the other machine.
        own += [value for name, value in repository.options if name != "remote-path"]
    named = [path for path in own if path.startswith("/")]
    # The names of interpreters and programs are often links, of which each may be one.
    return tuple(dict.fromkeys((*named, *map(os.path.realpath, named))))


def _meet(one: str, two: str) -> bool:
    """Whether one of them is, or lies in, the other."""
    return f"{one}/".startswith(f"{two.rstrip('/')}/") or f"{two}/".startswith(
        f"{one.rstrip('/')}/"
    )


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def saved_before(args: argparse.Namespace, plan: "Plan", repository: str) -> str:
    """Back up what is about to be replaced; the snapshot to restore, by its id.

    What was the latest before is meant by that word. Raises RefusedError, StepError.
    """
    path = str(args.paths[0])
    snapshot = _holding(args, str(args.snapshot), path)
    if args.no_safety_snapshot or not os.path.lexists(path):
        return snapshot
    jobs = _keeping(plan, repository, path)
    if not jobs:
        raise RefusedError(
            f"no job keeps {path} in {repository}: it cannot be saved before", hint=HINT
        )
    for job in jobs:
        saved = _saved(args, job, repository)
        if not saved:
            raise RefusedError(f"what is at {path} now could not be saved before", hint=HINT)
        try:
            _holding(args, saved, path)
        except StepError as error:
            if error.failure is not Failure.CONFLICT:
                raise
        else:
            return snapshot
    raise RefusedError(
        f"{path} was not saved before: job {' and job '.join(jobs)} left it out", hint=HINT
    )


def _keeping(plan: "Plan", repository: str, path: str) -> list[str]:
    """The jobs that may keep a path there, the one that names it most closely first."""
    found = [
        (len(include), job.name)
        for job in plan.jobs
        if repository in job.repositories
        for include in job.include
        if f"{path}/".startswith(f"{include.rstrip('/')}/")
    ]
    return list(dict.fromkeys(name for _, name in sorted(found, key=lambda f: f[0], reverse=True)))


def _saved(args: argparse.Namespace, job: str, repository: str) -> str:
    """The snapshot of what is there now, or the beginning of its id; "" if it is not complete."""
    from capkeep.cli.run import ask

    found: list[str] = []

    def collect(message: "Message") -> None:
        if message.get("event") == "step-end" and message.get("repository") == repository:
            found.append(str(message.get("snapshot") or ""))

    request: Message = {"action": "save", "jobs": [job], "repositories": [repository]}
    code = ask(args, request, collect)
    return found[-1] if found and code == EXIT_COMPLETE else ""


def _holding(args: argparse.Namespace, snapshot: str, path: str) -> str:
    """The id of a snapshot that holds the path. Raises StepError."""
    from capkeep.cli.look import converse_with
    from capkeep.plan.model import RoomKind

    options: Message = {"snapshot": snapshot, "paths": [path]}
    result = converse_with(
        args, RoomKind.VIEWER, {"action": "holds", "options": options}, lambda _message: None
    )
    failure = result.get("failure")
    if failure is not None:
        raise StepError(
            Failure(str(failure)), str(result.get("text")), hint=str(result.get("hint") or ""),
            engine_words=str(result.get("engine_words") or ""),
        )  # fmt: skip
    summary = result.get("summary")
    return str(summary.get("snapshot")) if isinstance(summary, dict) else snapshot
