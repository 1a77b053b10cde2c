"""The list of a repository's snapshots, without asking the engine where nothing is new.

A snapshot never changes, and its name is made from what it holds (restic, doc/design.rst). So what
was listed once stays true of all names that are still there.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from capkeep.engines.base import Snapshot
from capkeep.errors import Failure, StepError
from capkeep.plan import codec
from capkeep.plan.model import Job
from capkeep.rooms.calls import Caller, read_note, write_note
from capkeep.rooms.latest import LATEST, latest

NOTE: Final = "snapshots"
SECONDS: Final = 12 * 3600
LIMIT: Final = 16 << 20  # bytes


def remembered(
    caller: Caller, names: frozenset[str] | None, new: Iterable[Snapshot]
) -> "tuple[Snapshot, ...] | None":
    """The snapshots of these names, as listed before or as just made; None if one is not known."""
    if names is None:
        return None
    known: dict[str, Snapshot] = {}
    with suppress(ValueError, codec.DecodeError):
        noted = json.loads(read_note(_path(caller), LIMIT) or b"[]")
        for item in noted if isinstance(noted, list) else ():
            snapshot = codec.from_plain(Snapshot, item)
            known[snapshot.id] = snapshot
    for snapshot in new:
        known.setdefault(snapshot.id, snapshot)
    if names - known.keys():
        return None
    found = tuple(known[name] for name in names)
    remember(caller, found)
    return found


def remember(caller: Caller, snapshots: Iterable[Snapshot]) -> None:
    """Note what the engine has listed."""
    plain = [codec.to_plain(s._replace(parent="", user="")) for s in snapshots]
    write_note(_path(caller), json.dumps(plain, separators=(",", ":")).encode())


def word_for(caller: Caller, snapshot: str, paths: Sequence[str] = ()) -> str:
    """What the engine calls a snapshot that is asked for by id, its beginning, or "latest".

    Raises StepError where the repository has none or several of that name.
    """
    if caller.engine.traits.named_by_id and snapshot != LATEST:
        return snapshot
    return snapshot_for(caller, snapshot, paths).word


def snapshot_for(caller: Caller, snapshot: str, paths: Sequence[str] = ()) -> Snapshot:
    """The snapshot of that id, or the only one whose id begins so. Raises StepError.

    Of the latest ones it is that of a job that keeps the paths.
    """
    said = caller.output(caller.engine.snapshots(caller.call), SECONDS)
    return chosen(caller.engine.parse_snapshots(said), snapshot, caller.room.brief.jobs, paths)


def chosen(
    listed: Sequence[Snapshot], snapshot: str, jobs: Sequence[Job], paths: Sequence[str] = ()
) -> Snapshot:
    """One of these, which are oldest first; `jobs` are this host's own. Raises StepError."""
    if snapshot == LATEST:
        return latest(listed, jobs, paths)
    named = [s for s in listed if s.id.startswith(snapshot)]
    if len(named) != 1:
        many = "several snapshots" if named else "no snapshot"
        raise StepError(Failure.ENGINE, f"the repository holds {many} of that id")
    return named[0]


def _path(caller: Caller) -> str:
    return f"{caller.call.cache_dir}/{NOTE}"
