"""How restic tells, and hands out, single files of a snapshot; pure.

It tells access control lists of trees only: the objects that hold a directory's entries (doc/design.rst).
"""

import json
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import Call, Command
from capkeep.engines.giving import Gives, Node
from capkeep.engines.restic import ENGINE as RESTIC
from capkeep.engines.restic_listing import posix_mode


class _Restic:
    plain_files = True
    kinds_in_archives = False

    def tops(self, listed: bytes) -> dict[str, str]:
        found = json.loads(listed or b"[]")
        if not isinstance(found, list):
            raise ValueError("restic lists something that is not a list")  # noqa: TRY004
        return {_text(item, "id"): _text(item, "tree") for item in map(_object, found)}

    def above(self, top: str) -> dict[str, Node]:
        return {}

    def look(self, call: Call, below: str, folder: str, names: tuple[str, ...]) -> Command:
        return _changed(RESTIC.version(call), "cat", "blob", below)

    def seen(self, printed: bytes, below: str, folder: str, names: tuple[str, ...]) -> list[Node]:
        wanted = os.fsencode(names[0])
        return [_node(n) for n in _nodes(printed) if _name(n) == wanted][:1]

    def folders(self, printed: bytes) -> dict[str, Node]:
        found = (n for n in _nodes(printed) if n.get("type") == "dir")
        return {os.fsdecode(_name(n)): _node(n) for n in found}

    def listed(self, call: Call, snapshot: str) -> Command:
        return RESTIC.ls(call, snapshot)

    def told(self, line: bytes) -> None:
        return None

    def content(self, call: Call, snapshot: str, path: str) -> Command:
        return _changed(RESTIC.version(call), "dump", "--", snapshot, path)


GIVES: Gives = _Restic()

_ESCAPE: Final = re.compile(rb'\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([abfnrtv\\"]))')
_SHORT: Final = dict(zip(b'abfnrtv\\"', b'\a\b\f\n\r\t\v\\"', strict=True))


def _changed(command: Command, *words: str) -> Command:
    """Another command of restic's in place of `version`, which stands last."""
    return command._replace(argv=(*command.argv[:-1], *words))


def _nodes(printed: bytes) -> Iterator[dict[str, object]]:
    nodes = _object(json.loads(printed)).get("nodes") or []
    if not isinstance(nodes, list):
        raise ValueError("restic's tree has no list of nodes")  # noqa: TRY004
    return map(_object, nodes)


def _name(item: dict[str, object]) -> bytes:
    """A name's bytes: restic writes them as Go quotes text (strconv.Quote)."""

    def plain(found: re.Match[bytes]) -> bytes:
        byte, short, long, letter = found.groups()
        if byte:
            return bytes([int(byte, 16)])
        if letter:
            return bytes([_SHORT[letter[0]]])
        return chr(int(short or long, 16)).encode("utf-8", "surrogatepass")

    return _ESCAPE.sub(plain, _text(item, "name").encode("utf-8", "surrogatepass"))


def _node(item: dict[str, object]) -> Node:
    raw = item.get("linktarget_raw")
    text = str(item.get("linktarget") or "")
    link = os.fsdecode(b64decode(raw)) if isinstance(raw, str) else text
    found = item.get("extended_attributes") or []
    if not isinstance(found, list):
        raise ValueError("restic's node has no list of attributes")  # noqa: TRY004
    attributes = [(_text(a, "name"), str(a.get("value") or "")) for a in map(_object, found)]
    return Node(
        kind=_text(item, "type"), mode=posix_mode(_number(item, "mode", 0)),
        uid=_number(item, "uid"), gid=_number(item, "gid"), size=_number(item, "size", 0),
        mtime=_text(item, "mtime"), link=link, attributes=tuple(attributes),
        below=str(item.get("subtree") or ""),
    )  # fmt: skip


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("restic shows something that is not an object")  # noqa: TRY004
    return value


def _text(item: dict[str, object], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise ValueError(f"restic shows no {key}")  # noqa: TRY004
    return value


def _number(item: dict[str, object], key: str, default: int | None = None) -> int:
    """Who owns a file is never guessed: what must be there is there, or nothing is given."""
    value = item.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"restic shows no {key}")  # noqa: TRY004
    return value
