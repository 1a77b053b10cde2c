"""How a room hands files to its caller: over a pipe, each as one line of JSON and its content.

The room writes no file of the caller's, and the caller's own program, with the caller's own rights,
writes what comes. It believes neither names nor sizes.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple

from capkeep.rooms.protocol import ProtocolError

LINE_LIMIT: Final = 1 << 20  # bytes: a path, where a link leads, and attributes
# Each attribute may have 64 KiB, and how many there are only their names limit (xattr(7)).
ATTRIBUTES_LIMIT: Final = LINE_LIMIT // 2  # bytes of a line
PART: Final = 1 << 18
GIVEN_KINDS: Final = frozenset(("file", "dir", "symlink"))
ATTRIBUTES: Final = "user."  # the only ones that anybody may set on his own files (xattr(7))


class Item(NamedTuple):
    """What a file, directory or link was in the snapshot."""

    path: str  # absolute
    kind: str  # of GIVEN_KINDS
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0  # of a file: as many bytes follow
    link: str = ""
    listed: bool = False  # whether an access control list decided about it, too
    attributes: tuple[tuple[str, bytes], ...] = ()


END: Final = b'{"end":true}\n'


def head(item: Item) -> bytes:
    """The line that announces it."""
    plain = item._asdict()
    plain["attributes"] = [[name, b64encode(v).decode()] for name, v in item.attributes]
    return json.dumps(plain, separators=(",", ":")).encode() + b"\n"


def fitted(item: Item) -> Item:
    """The same with as many of its attributes, the first ones, as a line can hold."""
    kept, room = [], ATTRIBUTES_LIMIT
    for name, value in item.attributes:
        room -= len(json.dumps(name)) + (len(value) + 2) // 3 * 4 + len('[,""],')
        if room < 0:
            break
        kept.append((name, value))
    return item._replace(attributes=tuple(kept))


def items(pipe: BinaryIO) -> Iterator[Item]:
    """Each item; the content of a file is to be read to its end before the next one.

    Raises ProtocolError for anything else, and when it ends without its last word.
    """
    while line := pipe.readline(LINE_LIMIT):
        if line == END:
            return
        yield _item(line)
    raise ProtocolError("what was given ends in the middle")


def content(pipe: BinaryIO, item: Item) -> Iterator[bytes]:
    """What a file holds. Raises ProtocolError where there is less."""
    left = item.size
    while left:
        part = pipe.read(min(left, PART))
        if not part:
            raise ProtocolError(f"{item.path} ends {left} bytes too early")
        left -= len(part)
        yield part


def names_of(path: str) -> list[str]:
    """A path's names, none of which leads elsewhere. Raises ProtocolError."""
    names = path.split("/")[1:]
    if not path.startswith("/") or "\0" in path or any(n in ("", ".", "..") for n in names):
        raise ProtocolError("a path must be absolute, without . and .., and without a last /")
    return names


def _item(line: bytes) -> Item:
    try:
        plain = json.loads(line)
        item = Item(**{
            **plain,
            "attributes": tuple((str(n), b64decode(v)) for n, v in plain["attributes"]),
        })  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProtocolError("what was given is no file") from error
    numbers = (item.mode, item.uid, item.gid, item.mtime_ns, item.size)
    if item.kind not in GIVEN_KINDS or item.size < 0 or not all(type(n) is int for n in numbers):
        raise ProtocolError("what was given is no file")
    if type(item.path) is not str or type(item.link) is not str:
        raise ProtocolError("what was given has no name")
    names_of(item.path)
    return item


Send = Callable[[bytes], None]
