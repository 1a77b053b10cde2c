"""What borg lists: archives, their entries, and differences. Its times are UTC here, without a zone."""

import base64
import json
from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import Above, Change, DiffTotals, Entry, Key, Match, Snapshot
from capkeep.engines.lines import as_int, as_object, as_text, as_texts

COMMENT: Final = "capkeep1:"  # before what we say of an archive in its comment
LISTED: Final = "{type}{mode}{uid}{gid}{size}{isomtime}{path}{source}"

_KINDS: Final = {
    "-": "file", "d": "dir", "l": "symlink", "p": "fifo", "c": "chardev", "b": "dev",
    "s": "socket",
}  # fmt: skip


def parse_snapshots(document: object) -> tuple[Snapshot, ...]:
    """Oldest first, and each once, however many names it is listed by. Raises ValueError."""
    archives = document.get("archives") if isinstance(document, dict) else None
    if not isinstance(archives, list):
        raise ValueError("borg lists no archives")  # noqa: TRY004
    found = (_snapshot(item) for item in archives if isinstance(item, dict))
    once = {one.id: one for one in found}
    return tuple(sorted(once.values(), key=lambda one: one.time))


def parse_keys(document: object) -> tuple[Key, ...]:
    """The one that there is, by the repository's id. Raises ValueError."""
    repository = document.get("repository") if isinstance(document, dict) else None
    identity = as_text(repository.get("id")) if isinstance(repository, dict) else ""
    if not identity:
        raise ValueError("borg does not say which repository that is")
    return (Key(identity, current=True, user="", host="", created=""),)


def _snapshot(item: dict[str, object]) -> Snapshot:
    identity = as_text(item.get("id"))
    if not identity:
        raise ValueError("borg lists an archive without an id")
    said = _said(as_text(item.get("comment")))
    return Snapshot(
        id=identity,
        time=utc(as_text(item.get("time"))),
        host=as_text(said.get("host")) or as_text(item.get("hostname")),
        user=as_text(item.get("username")),
        paths=as_texts(said.get("paths")),
        tags=as_texts(said.get("tags")),
        name=as_text(item.get("name")),
    )


def _said(comment: str) -> dict[str, object]:
    """What we say of an archive; nothing in those that others made."""
    if not comment.startswith(COMMENT):
        return {}
    try:
        return as_object(base64.b64decode(comment.removeprefix(COMMENT))) or {}
    except ValueError:
        return {}


def above_of(comment: str) -> tuple[Above, ...]:
    """The directories above an archive's sources, as far as its comment tells them."""
    told = _said(comment).get("above")
    found = (
        (_above(item) for item in told if isinstance(item, list)) if isinstance(told, list) else ()
    )
    return tuple(one for one in found if one is not None)


def _above(item: list[object]) -> Above | None:
    match item:
        case [str(path), int(mode), int(uid), int(gid), list(attributes)]:
            pairs = [(as_text(n), as_text(v)) for n, v in map(_pair, attributes)]
            return Above(path, mode, uid, gid, tuple(pairs))
    return None


def _pair(value: object) -> tuple[object, object]:
    match value:
        case [name, content]:
            return name, content
    return "system.", ""  # some list, of which nobody knows more


def utc(time: str) -> str:
    """A time with its zone; borg 1.4 writes it itself in some places."""
    return time if not time or time.endswith("Z") or "+" in time else f"{time}+00:00"


def parse_find(output: bytes) -> Iterator[Match]:
    """In the one archive that was searched. Raises ValueError."""
    for line in output.splitlines():
        if entry := parse_ls_line(line):
            yield Match("", entry)


def parse_ls_line(line: bytes) -> Entry | None:
    """Raises ValueError."""
    if not line.startswith(b"{"):
        return None
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ValueError("borg lists something that is not JSON") from error
    if not isinstance(item, dict) or "path" not in item or "mode" not in item:
        return None
    path = as_text(item.get("path"))
    mode = as_text(item.get("mode"))[1:]
    kind = _KINDS.get(as_text(item.get("type")), "")
    linked = kind == "file" and as_text(item.get("source"))
    return Entry(
        path="/" + ("" if path == "." else path.lstrip("/")),
        kind=kind,
        size=-1 if linked else as_int(item.get("size")),
        mode=posix_mode(mode),
        uid=as_int(item.get("uid")),
        gid=as_int(item.get("gid")),
        mtime=utc(as_text(item.get("isomtime"))),
    )


def posix_mode(text: str) -> int:
    """Permissions as stat(2) has them, from the nine characters that ls(1) shows."""
    mode = 0
    for place, char in enumerate(text[:9]):
        if char in "rwxst":
            mode |= 0o400 >> place
        if char in "sStT":
            mode |= 0o4000 >> (place // 3)
    return mode


_MODIFIERS: Final = {
    "added": "+", "added directory": "+", "added link": "+", "removed": "-",
    "removed directory": "-", "removed link": "-", "modified": "M", "changed link": "M",
    "mode": "U", "owner": "U", "mtime": "U", "ctime": "",
}  # fmt: skip


def _modifier(change: dict[str, object]) -> str:
    """borg also calls a file modified that has the same chunks, if anything else of it has changed."""
    kind = as_text(change.get("type"))
    if kind == "modified" and change.get("added") == 0 == change.get("removed"):
        return "U"
    return _MODIFIERS.get(kind, "M")


def parse_diff_line(line: bytes) -> Change | DiffTotals | None:
    """None for lines that say no change. Raises ValueError."""
    item = as_object(line) if line.startswith(b"{") else None
    changes = item.get("changes") if item else None
    if item is None or not isinstance(changes, list):
        return None
    told = [c for c in changes if isinstance(c, dict)]
    kinds = [as_text(c.get("type")) for c in told]
    found = {_modifier(c) for c in told} - {""}
    if not found:
        return None
    modifier = next(m for m in "+-TMU" if m in found)
    slash = "/" if any(kind.endswith("directory") for kind in kinds) else ""
    return Change(f"/{as_text(item.get('path')).lstrip('/')}{slash}", modifier)
