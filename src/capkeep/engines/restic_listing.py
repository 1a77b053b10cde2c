"""What restic lists as JSON: snapshots, their entries, matches, differences and keys."""

from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import Change, DiffTotals, Entry, Key, Match, Snapshot
from capkeep.engines.lines import as_int, as_object, as_text, as_texts

# Go's os.FileMode keeps these three apart from the permission bits (Go, io/fs).
_GO_BITS: Final = ((1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000))


def parse_snapshots(document: object) -> tuple[Snapshot, ...]:
    """Raises ValueError."""
    return tuple(_snapshot(_object(item)) for item in _list(document))


def _snapshot(item: dict[str, object]) -> Snapshot:
    summary = item.get("summary")
    counts = summary if isinstance(summary, dict) else {}
    identity = as_text(item.get("id"))
    if not identity:
        raise ValueError("restic lists a snapshot without an id")
    return Snapshot(
        id=identity,
        time=as_text(item.get("time")),
        host=as_text(item.get("hostname")),
        user=as_text(item.get("username")),
        paths=as_texts(item.get("paths")),
        tags=as_texts(item.get("tags")),
        parent=as_text(item.get("parent")),
        program=as_text(item.get("program_version")),
        files=as_int(counts.get("total_files_processed")),
        bytes=as_int(counts.get("total_bytes_processed")),
        original=as_text(item.get("original")),
        tree=as_text(item.get("tree")),
    )


def parse_keys(document: object) -> tuple[Key, ...]:
    """Raises ValueError."""
    return tuple(_key(_object(item)) for item in _list(document))


def _key(item: dict[str, object]) -> Key:
    identity = as_text(item.get("id"))
    if not identity:
        raise ValueError("restic lists a key without an id")
    return Key(
        id=identity,
        current=item.get("current") is True,
        user=as_text(item.get("userName")),
        host=as_text(item.get("hostName")),
        created=as_text(item.get("created")),
    )


def parse_find(document: object) -> Iterator[Match]:
    """Raises ValueError."""
    for item in map(_object, _list(document)):
        snapshot = as_text(item.get("snapshot"))
        for match in map(_object, _list(item.get("matches") or [])):
            yield Match(snapshot, _entry(match))


def parse_ls_line(line: bytes) -> Entry | None:
    """None for the snapshot's own line. Raises ValueError."""
    if not line.startswith(b"{"):
        return None
    item = as_object(line)
    if item is None:
        raise ValueError("restic lists something that is not JSON")
    return _entry(item) if item.get("struct_type") == "node" else None


def parse_diff_line(line: bytes) -> Change | DiffTotals | None:
    """None for lines that say neither. Raises ValueError."""
    item = as_object(line) if line.startswith(b"{") else None
    if item is None:
        return None
    match item.get("message_type"):
        case "change":
            return Change(as_text(item.get("path")), as_text(item.get("modifier")))
        case "statistics":
            added, removed = _object(item.get("added")), _object(item.get("removed"))
            return DiffTotals(
                changed_files=as_int(item.get("changed_files")),
                files_added=as_int(added.get("files")),
                files_removed=as_int(removed.get("files")),
                bytes_added=as_int(added.get("bytes")),
                bytes_removed=as_int(removed.get("bytes")),
            )
    return None


def _entry(item: dict[str, object]) -> Entry:
    path = as_text(item.get("path"))
    if not path:
        raise ValueError("restic lists an entry without a path")
    return Entry(
        path=path,
        kind=as_text(item.get("type")),
        size=as_int(item.get("size")),
        mode=posix_mode(as_int(item.get("mode"))),
        uid=as_int(item.get("uid")),
        gid=as_int(item.get("gid")),
        mtime=as_text(item.get("mtime")),
    )


def posix_mode(go_mode: int) -> int:
    """Permissions with setuid, setgid and sticky where stat(2) has them."""
    return go_mode & 0o777 | sum(bit for go, bit in _GO_BITS if go_mode & go)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("restic lists something that is not a list")  # noqa: TRY004
    return value


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("restic lists something that is not an object")  # noqa: TRY004
    return value
