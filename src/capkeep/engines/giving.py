"""How an engine tells, and hands out, single files of a snapshot: for those that can; pure.

What decides about a file's reader must come from the engine with the file's access control list.
restic tells that of trees only: the objects that hold a directory's entries (doc/design.rst).
"""

import json
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from capkeep.engines.base import Call, Command
from capkeep.engines.restic import ENGINE as RESTIC
from capkeep.engines.restic_listing import posix_mode


class Node(NamedTuple):
    """An entry of a snapshot with all that is needed to give it to somebody."""

    kind: str  # as `Entry.kind`
    mode: int  # as st_mode without the file type
    uid: int
    gid: int
    size: int
    mtime: str  # ISO 8601, with nanoseconds and offset
    link: str  # of a symlink: where it leads
    attributes: tuple[tuple[str, str], ...]  # name and value, in base64
    below: str  # what to ask for, for the entries of a directory; "" of anything else


class Gives(Protocol):
    """What giving single files needs of an engine. Parsing raises ValueError for what is no output."""

    def tops(self, listed: bytes) -> dict[str, str]:
        """By snapshot's id, from the output of `snapshots`: what to ask for, for its first entries."""

    def folder(self, call: Call, below: str) -> Command:
        """Print what a directory holds."""

    def entry(self, printed: bytes, name: str) -> Node | None:
        """The entry of that name in what was printed."""

    def folders(self, printed: bytes) -> dict[str, Node]:
        """By name, every directory in what was printed."""

    def content(self, call: Call, snapshot: str, path: str) -> Command:
        """Print what a file holds; of a directory, a tar archive of all that is below it."""


class _Restic:
    def tops(self, listed: bytes) -> dict[str, str]:
        found = json.loads(listed or b"[]")
        if not isinstance(found, list):
            raise ValueError("restic lists something that is not a list")  # noqa: TRY004
        return {_text(item, "id"): _text(item, "tree") for item in map(_object, found)}

    def folder(self, call: Call, below: str) -> Command:
        return _changed(RESTIC.version(call), "cat", "blob", below)

    def entry(self, printed: bytes, name: str) -> Node | None:
        wanted = os.fsencode(name)
        return next((_node(n) for n in _nodes(printed) if _name(n) == wanted), None)

    def folders(self, printed: bytes) -> dict[str, Node]:
        found = (n for n in _nodes(printed) if n.get("type") == "dir")
        return {os.fsdecode(_name(n)): _node(n) for n in found}

    def content(self, call: Call, snapshot: str, path: str) -> Command:
        return _changed(RESTIC.version(call), "dump", "--", snapshot, path)


GIVES: Final[dict[str, Gives]] = {"restic": _Restic()}

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
