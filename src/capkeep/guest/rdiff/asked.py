"""What the half that has the repository answers, beside backups."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Final

from capkeep.guest.rdiff.backup import counts
from capkeep.guest.rdiff.library import NEW, Contents, Repository, session_id, stamp
from capkeep.guest.rdiff.wire import (
    BATCH,
    PIECE,
    RESERVED,
    Failed,
    Gone,
    Meta,
    Pipes,
    Refused,
    index_of,
    send,
    send_piece,
    text,
    to_plain,
)

DAMAGED_TOLD: Final = 1000
LATEST: Final = "latest"


def init(end: Pipes, path: bytes, _request: dict[str, object]) -> None:
    """Make an empty repository, all at once. Raises Failed where something else is."""
    os.makedirs(path, 0o700, exist_ok=True)
    data = os.path.join(path, RESERVED)
    if os.path.lexists(data):
        raise Failed("engine", f"{os.fsdecode(path)} is a repository already")
    if set(os.listdir(path)) - {RESERVED + NEW}:
        raise Failed(
            "engine", f"{os.fsdecode(path)} is not empty, and no repository of rdiff-backup"
        )
    shutil.rmtree(data + NEW, ignore_errors=True)  # of one that did not come to its end
    os.makedirs(data + NEW + b"/increments", 0o700)
    for name in (b"chars_to_quote", b"special_escapes"):  # none: rdiff-backup itself looks for them
        with open(os.path.join(data + NEW, name), "wb"):
            pass
    os.rename(data + NEW, data)
    send(end, {"end": {}})


def sessions(end: Pipes, path: bytes, _request: dict[str, object]) -> None:
    """All sessions, oldest first."""
    repository = Repository(path, write=False)
    owner = repository.owner()
    for when in repository.sessions():
        found = counts(repository, when)
        send(end, {"session": {
            "id": session_id(when), "time": stamp(when), "host": owner.get("host", ""),
            "tags": owner.get("tags", []), "files": found.get("total_files", 0),
            "bytes": found.get("bytes_processed", 0),
        }})  # fmt: skip
    send(end, {"end": {}})


def _when(repository: Repository, name: object) -> int:
    """The session of that name. Raises Failed, Refused."""
    known = repository.sessions()
    if name == LATEST and known:
        return known[-1]
    if not isinstance(name, str) or not name:
        raise Refused("a session without a name")
    found = [when for when in known if session_id(when).startswith(name)]
    if len(found) != 1:
        raise Failed(
            "engine", f"there {'are several snapshots' if found else 'is no snapshot'} {name}"
        )
    return found[0]


def _batched(end: Pipes, items: Iterator[dict[str, object]]) -> None:
    batch: list[dict[str, object]] = []
    for item in items:
        batch.append(item)
        if len(batch) >= BATCH:
            send(end, {"entries": batch})
            batch = []
    send(end, {"entries": batch})


def _lean(meta: Meta) -> dict[str, object]:
    return to_plain(meta._replace(xattrs=(), acl=(), default_acl=()))


def ls(end: Pipes, path: bytes, request: dict[str, object]) -> None:
    """The nodes of a session: all, or what lies directly in some directories."""
    repository = Repository(path, write=False)
    folders = _indices(request)
    when = _when(repository, request.get("session"))
    _batched(end, (
        _lean(meta) for meta in repository.nodes(when)
        if not folders or meta.where in folders or meta.where[:-1] in folders
    ))  # fmt: skip
    send(end, {"end": {}})


def find(end: Pipes, path: bytes, request: dict[str, object]) -> None:
    """Nodes by name, or by path if the pattern begins with a slash."""
    repository = Repository(path, write=False)
    pattern, names = request.get("pattern"), request.get("sessions")
    if not isinstance(pattern, str):
        raise Refused("a search for nothing")
    chosen = [_when(repository, n) for n in names] if isinstance(names, list) and names else []
    for when in chosen or repository.sessions():
        _batched(end, (
            {"session": session_id(when), **_lean(meta)} for meta in repository.nodes(when)
            if _matches(meta, pattern)
        ))  # fmt: skip
    send(end, {"end": {}})


def _matches(meta: Meta, pattern: str) -> bool:
    if pattern.startswith("/"):
        return fnmatchcase("/" + text(b"/".join(meta.where)), pattern)
    return bool(meta.where) and fnmatchcase(text(meta.where[-1]), pattern)


def diff(end: Pipes, path: bytes, request: dict[str, object]) -> None:
    """What differs between two sessions, by their metadata, which hold every file's digest."""
    repository = Repository(path, write=False)
    old = repository.nodes(_when(repository, request.get("old")))
    new = repository.nodes(_when(repository, request.get("new")))
    metadata = request.get("metadata") is True
    totals = {"changed": 0, "added": 0, "removed": 0, "bytes_added": 0, "bytes_removed": 0}

    def changes() -> Iterator[dict[str, object]]:
        for before, after in _side_by_side(old, new):
            modifier = _modifier(before, after, metadata=metadata)
            _count(totals, before, after, modifier)
            either = after or before
            if modifier and either:
                slash = "/" if either.kind == "dir" and either.where else ""
                yield {"path": "/" + text(b"/".join(either.where)) + slash, "modifier": modifier}

    _batched(end, changes())
    send(end, {"end": {"totals": totals}})


def _side_by_side(
    old: Iterator[Meta], new: Iterator[Meta]
) -> Iterator[tuple[Meta | None, Meta | None]]:
    left, right = next(old, None), next(new, None)
    while left or right:
        if right is None or (left and left.where < right.where):
            yield left, None
            left = next(old, None)
        elif left is None or right.where < left.where:
            yield None, right
            right = next(new, None)
        else:
            yield left, right
            left, right = next(old, None), next(new, None)


def _modifier(old: Meta | None, new: Meta | None, *, metadata: bool) -> str:
    if old is None:
        return "+"
    if new is None:
        return "-"
    if old.kind != new.kind:
        return "T"
    if (old.size, old.sha1, old.link, old.numbers) != (
        new.size,
        new.sha1,
        new.link,
        new.numbers,
    ) and (old.kind != "dir"):
        return "M"
    same = old._replace(inode=0, device=0, nlink=1) == new._replace(inode=0, device=0, nlink=1)
    return "" if same or not metadata else "U"


def _count(totals: dict[str, int], old: Meta | None, new: Meta | None, modifier: str) -> None:
    sizes = [m.size if m and m.kind == "reg" else 0 for m in (old, new)]
    is_file = any(m and m.kind != "dir" for m in (old, new))
    for sign, key in (("+", "added"), ("-", "removed"), ("M", "changed")):
        totals[key] += is_file and modifier == sign
    if modifier in ("+", "M", "T"):
        totals["bytes_added"] += sizes[1]
    if modifier in ("-", "M", "T"):
        totals["bytes_removed"] += sizes[0]


def check(end: Pipes, path: bytes, request: dict[str, object]) -> None:
    """Read the metadata of the newest session and of the oldest; their content too, or that of all."""
    repository = Repository(path, write=False)
    known = repository.sessions()
    amount = request.get("read_data")
    read = set(known) if amount == "all" else {known[0], known[-1]} if amount and known else set()
    gone = set(repository.told_of()) - set(known)
    damaged = [f"{stamp(when)}: its metadata are gone" for when in sorted(gone)]
    # The oldest one's metadata are put together from all that came after it.
    ends = sorted({known[0], known[-1]}) if known else []
    for when in known if amount == "all" else ends:
        try:
            _check_one(repository, when, damaged, read=when in read)
        except (Gone, MemoryError):
            raise
        except Exception as error:
            kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
            damaged.append(f"{stamp(when)}: {kind}{error}")
        send(end, {"checked": session_id(when)})
    for words in damaged[:DAMAGED_TOLD]:
        send(end, {"damaged": words})
    send(end, {"end": {"errors": len(damaged), "sessions": len(known)}})


def _check_one(repository: Repository, when: int, damaged: list[str], *, read: bool) -> None:
    if not read:
        # To their end: the beginning of what was cut off is whole.
        if not sum(1 for _ in repository.nodes(when)):
            raise Failed("damaged", "the metadata are empty")
        if when == repository.mirror_time():
            gone = (text(b"/".join(index)) for index in repository.missing_files(when))
            damaged += [f"{stamp(when)}: /{path}: it is not there" for path in gone]
        return
    contents = Contents(repository, when)
    digests: dict[tuple[int, int], str] = {}
    for meta, rorp in contents.nodes():
        if meta.kind != "reg":
            continue
        wanted = meta.sha1 or digests.get((meta.inode, meta.device), "")
        if meta.nlink > 1 and meta.sha1:
            digests[meta.inode, meta.device] = meta.sha1
        found = _digest(contents.open(meta, rorp))
        if wanted and found != wanted:
            damaged.append(
                f"{stamp(when)}: /{text(b'/'.join(meta.where))}: its content has changed"
            )
    contents.close()


def _digest(file: io.BufferedIOBase) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    while piece := file.read(PIECE):
        digest.update(piece)
    file.close()
    return digest.hexdigest()


def remove(end: Pipes, path: bytes, request: dict[str, object]) -> None:
    """Remove the oldest of these sessions: each is the change from the next, so none goes from between."""
    names = request.get("sessions")
    if not isinstance(names, list):
        raise Refused("expected the names of sessions")
    repository = Repository(path, write=True)
    try:
        known = repository.sessions()
        gone: list[int] = []
        for when in known[:-1]:
            if session_id(when) not in names:
                break
            gone.append(when)
        if gone:
            repository.shadow.remove_increments_older_than(repository.data, known[len(gone)])
        left = len(set(names) & set(map(session_id, repository.sessions())))
        send(end, {"end": {"removed": [session_id(w) for w in gone], "left": left}})
    finally:
        repository.close()


def restore(end: Pipes, path: bytes, request: dict[str, object]) -> None:
    """Nodes with all that is known of them, each file followed by its content."""
    repository = Repository(path, write=False)
    chosen = frozenset(_indices(request))  # there may be thousands
    above = frozenset(where[:depth] for where in chosen for depth in range(len(where)))
    contents = Contents(repository, _when(repository, request.get("session")))
    first: dict[tuple[int, int], str] = {}
    sums: dict[tuple[int, int], str] = {}  # kept beside a file's first name alone
    for meta, rorp in contents.nodes():
        where, file = meta.where, (meta.inode, meta.device)
        if meta.nlink > 1 and meta.sha1:
            sums[file] = meta.sha1
        inside = not chosen or any(where[:depth] in chosen for depth in range(len(where) + 1))
        if not inside and not (where in above and meta.kind == "dir"):
            continue
        twin = first.get(file) if meta.nlink > 1 else None
        if meta.kind == "reg" and meta.nlink > 1 and twin is None:
            first[file] = text(b"/".join(where))
            meta = meta._replace(sha1=meta.sha1 or sums.get(file, ""))  # noqa: PLW2901
        send(end, {"node": to_plain(meta), "same": twin or "", "chosen": inside})
        if meta.kind == "reg" and not twin:
            _pour(end, contents.open(meta, rorp))
    contents.close()
    send(end, {"end": {}})


def _pour(end: Pipes, file: io.BufferedIOBase) -> None:
    while piece := file.read(PIECE):
        send_piece(end, piece)
    send_piece(end, b"")
    file.close()


def _indices(request: dict[str, object]) -> list[tuple[bytes, ...]]:
    paths = request.get("paths") or []
    if not isinstance(paths, list):
        raise Refused("expected paths")
    try:
        return [index_of(p.strip("/")) for p in paths]
    except (AttributeError, ValueError, TypeError) as error:
        raise Refused(f"expected paths: {error}") from error


ACTIONS: Final[dict[str, Callable[[Pipes, bytes, dict[str, object]], None]]] = {
    "init": init, "sessions": sessions, "ls": ls, "find": find, "diff": diff, "check": check,
    "restore": restore,
}  # fmt: skip
