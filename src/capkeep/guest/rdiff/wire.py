"""What the two halves of an rdiff-backup say to each other, and nothing else.

rdiff-backup's own remote protocol pickles objects and names functions to call, both ways: whoever
speaks it can run anything on the other side (pickle, Python's manual; measured in tests/attack). So it
is not spoken. Between the half that sees the files and the half that has the repository go frames of
JSON and of bytes, each half asks for what it needs from a fixed vocabulary, and whatever is not as
it should be ends the conversation.

A frame is a letter, four bytes of length, and so many bytes: J a value, D a piece of a file (an empty
one ends it), E why a file cannot be read to its end.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

VALUE_LIMIT: Final = 32 << 20  # bytes of a JSON value
PIECE: Final = (
    1 << 17
)  # bytes of a file at a time; rdiff-backup asks for as much (Globals.blocksize)
BUFFER: Final = 1 << 18  # bytes that are read ahead: each reading wakes whoever waits for room
BATCH: Final = 400  # entries of a listing in one value
NAME_BYTES: Final = 255
RESERVED: Final = b"rdiff-backup-data"
KINDS: Final = ("reg", "dir", "sym", "fifo", "sock", "dev")
ACL_TAGS: Final = frozenset("UuGgMO")
NUMBER_LIMIT: Final = 1 << 63
LINK_BYTES: Final = 4096
XATTR_BYTES: Final = 1 << 16
_HEX40: Final = re.compile(r"[0-9a-f]{40}")
# Of an extended attribute: what is others is read back otherwise, or breaks all after it.
_ATTRIBUTE: Final = re.compile(rb"[!-<>-\[\]-~]+")
# Of a user or group, as rdiff-backup's metadata can hold it: ASCII, without its own separators.
_NAME: Final = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")

Index = tuple[bytes, ...]
AclEntry = tuple[str, int, str, int]  # tag, id (-1 without), name ("" without), permissions


class Refused(Exception):
    """The other half said what it must not say."""


class Gone(Exception):
    """The other half has left."""


class Failed(Exception):
    """Something that has a name, of `errors.Failure`."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Meta(NamedTuple):
    """A file, directory or other node as both halves know it."""

    where: Index
    kind: str  # of KINDS
    perms: int = 0
    uid: int = 0
    gid: int = 0
    uname: str = ""
    gname: str = ""
    mtime: int = 0  # seconds: rdiff-backup keeps no more
    size: int = 0
    nlink: int = 1
    inode: int = 0
    device: int = 0
    link: bytes = b""
    numbers: tuple[str, int, int] = ("", 0, 0)  # of a device: "c" or "b", major, minor
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    acl: tuple[AclEntry, ...] = ()
    default_acl: tuple[AclEntry, ...] = ()
    sha1: str = ""


class End(Protocol):
    """Reads and writes bytes; a pair of pipes."""

    def read(self, size: int) -> bytes: ...
    def write(self, *parts: bytes) -> None: ...


class Pipes:
    """Two descriptors as one end. Every read and write is whole, or raises Gone."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._in, self._out = open(incoming, "rb", BUFFER, closefd=False), outgoing  # noqa: SIM115 closed never

    def read(self, size: int) -> bytes:
        """So many bytes. Raises Gone when the other half is gone."""
        data = self._in.read(size)
        if len(data) < size:
            raise Gone("the other half is gone")
        return data

    def write(self, *parts: bytes) -> None:
        """All of them, one behind the other. Raises Gone when the other half is gone."""
        try:
            written = os.writev(self._out, parts)
            for part in parts:
                view = memoryview(part)[written:]
                written = max(0, written - len(part))
                while view:
                    view = view[os.write(self._out, view) :]
        except BrokenPipeError:
            raise Gone("the other half is gone") from None


# -- frames


def send(end: End, value: object) -> None:
    """One JSON value. Raises Gone, ValueError for one that is too long."""
    data = json.dumps(value, separators=(",", ":")).encode()
    if len(data) > VALUE_LIMIT:
        raise ValueError(f"a value of {len(data)} bytes is too long for the wire")
    end.write(b"J" + len(data).to_bytes(4, "big") + data)


def receive(end: End) -> object:
    """One JSON value. Raises Gone, Refused."""
    kind, data = _frame(end)
    if kind != b"J":
        raise Refused("expected a value")
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused("expected JSON") from error
    return value


def receive_object(end: End) -> dict[str, object]:
    """One JSON object. Raises Gone, Refused."""
    value = receive(end)
    if not isinstance(value, dict):
        raise Refused("expected an object")
    return value


def send_piece(end: End, data: bytes) -> None:
    """A piece of a file, at most PIECE bytes; an empty one ends it. Raises Gone."""
    end.write(b"D" + len(data).to_bytes(4, "big"), data)


def send_error(end: End, number: int) -> None:
    """The file cannot be read (further): the kernel's error number. Raises Gone."""
    end.write(b"E" + (4).to_bytes(4, "big") + number.to_bytes(4, "big"))


def pieces(end: End) -> Iterator[bytes]:
    """A file's content. Raises Gone, Refused, and OSError as the other half met it."""
    while True:
        kind, data = _frame(end)
        if kind == b"E":
            number = int.from_bytes(data[:4], "big")
            raise OSError(number, os.strerror(number) if number < 4096 else "unknown")
        if kind != b"D" or len(data) > PIECE:
            raise Refused("expected a piece of a file")
        if not data:
            return
        yield data


def _frame(end: End) -> tuple[bytes, bytes]:
    header = end.read(5)
    size = int.from_bytes(header[1:], "big")
    if size > VALUE_LIMIT:
        raise Refused(f"a frame of {size} bytes")
    return header[:1], end.read(size) if size else b""


# -- nodes as JSON


def text(data: bytes) -> str:
    """Bytes of a path as JSON holds them exactly: what is not UTF-8 as lone surrogates (PEP 383)."""
    return data.decode("utf-8", "surrogateescape")


def to_plain(meta: Meta) -> dict[str, object]:
    """For JSON; what is as usual is left out."""
    fields = zip(Meta._fields, meta, strict=True)
    plain = {n: v for n, v in fields if n != "where" and v != Meta._field_defaults.get(n)}
    plain["path"] = text(b"/".join(meta.where))
    if meta.link:
        plain["link"] = text(meta.link)
    if meta.xattrs:
        plain["xattrs"] = [[text(n), base64.b64encode(v).decode()] for n, v in meta.xattrs]
    return plain


def from_plain(value: object) -> Meta:
    """Raises Refused for anything that no half of ours would have sent."""
    if not isinstance(value, dict):
        raise Refused("expected a node")
    try:
        return _from_plain(value)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Refused(f"a node that makes no sense: {error}") from error


def _from_plain(value: dict[str, object]) -> Meta:
    if value.keys() - {"path", *Meta._fields[1:]}:
        raise ValueError("an unknown field")
    kind = _text(value["kind"])
    if kind not in KINDS:
        raise ValueError("an unknown kind")
    link = _bytes(value.get("link", ""))
    if (kind == "sym") != bool(link) or len(link) > LINK_BYTES or b"\0" in link:
        raise ValueError("a link to nowhere")
    numbers = value.get("numbers", ("", 0, 0))
    char, major, minor = numbers if isinstance(numbers, list | tuple) else ("", 0, 0)
    if (kind == "dev") != (char in ("c", "b")):
        raise ValueError("a device without numbers")
    sha1 = _text(value.get("sha1", ""))
    if sha1 and not _HEX40.fullmatch(sha1):
        raise ValueError("a digest that is none")
    return Meta(
        where=index_of(value["path"]), kind=kind, link=link, sha1=sha1,
        perms=_number(value.get("perms", 0), 0o10000),
        uid=_number(value.get("uid", 0), 1 << 32), gid=_number(value.get("gid", 0), 1 << 32),
        uname=_user(value.get("uname", "")), gname=_user(value.get("gname", "")),
        mtime=_number(value.get("mtime", 0), NUMBER_LIMIT, -NUMBER_LIMIT),
        size=_number(value.get("size", 0)), nlink=_number(value.get("nlink", 1)),
        inode=_number(value.get("inode", 0), 1 << 64),
        device=_number(value.get("device", 0), 1 << 64),
        numbers=(_text(char), _number(major, 1 << 32), _number(minor, 1 << 32)),
        xattrs=_xattrs(value.get("xattrs", ())),
        acl=_acl(value.get("acl", ())), default_acl=_acl(value.get("default_acl", ())),
    )  # fmt: skip


def index_of(value: object) -> Index:
    """A path below the root as rdiff-backup's index. Raises ValueError for any that leads elsewhere."""
    path = _bytes(value)
    if not path:
        return ()
    index = tuple(path.split(b"/"))
    for name in index:
        if name in (b"", b".", b"..") or b"\0" in name or len(name) > NAME_BYTES:
            raise ValueError("a path that leads elsewhere")
    if index[0] == RESERVED:
        raise ValueError(f"{text(RESERVED)} at the root is rdiff-backup's own")
    return index


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def _bytes(value: object) -> bytes:
    return _text(value).encode("utf-8", "surrogateescape")


def _number(value: object, below: int = NUMBER_LIMIT, least: int = 0) -> int:
    if type(value) is not int or not least <= value < below:
        raise ValueError("a number out of range")
    return value


def is_user_name(name: str) -> bool:
    """Whether rdiff-backup's metadata can hold it."""
    return bool(_NAME.fullmatch(name)) and not {":", "#"} & set(name) and name != "None"


def is_attribute_name(name: bytes) -> bool:
    """Whether rdiff-backup's metadata can hold it: in ASCII, without spaces, "=" and backslashes."""
    return len(name) <= NAME_BYTES and bool(_ATTRIBUTE.fullmatch(name))


def _user(value: object) -> str:
    name = _text(value)
    if name and not is_user_name(name):
        raise ValueError("a user or group that cannot be")
    return name


def _xattrs(value: object) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for name, data in value if isinstance(value, list | tuple) else ():
        key = _bytes(name)
        if not is_attribute_name(key):
            raise ValueError("an attribute without a name")
        content = base64.b64decode(_text(data), validate=True)
        if len(content) > XATTR_BYTES:
            raise ValueError("an attribute that no kernel holds")
        found.append((key, content))
    return tuple(found)


def _acl(value: object) -> tuple[AclEntry, ...]:
    found = []
    for tag, number, name, perms in value if isinstance(value, list | tuple) else ():
        if tag not in ACL_TAGS:
            raise ValueError("an entry of an access list that is none")
        found.append((tag, _number(number, 1 << 32, -1), _user(name), _number(perms, 8)))
    return tuple(found)


class Tree:
    """Sees that nodes come as a walk gives them: in order, each below a directory that came before.

    So nobody gets through a symbolic link, and the repository's metadata, which are compared line by
    line with the session before, stay in the order that they must have.
    """

    def __init__(self) -> None:
        self._last: Index | None = None
        self._folders: list[Index] = []

    def add(self, meta: Meta) -> Meta:
        """The same node. Raises Refused."""
        index = meta.where
        if self._last is None:
            if index or meta.kind != "dir":
                raise Refused("the root must come first")
        elif index <= self._last:
            raise Refused("a node out of order")
        while self._folders and self._folders[-1] != index[: len(self._folders[-1])]:
            self._folders.pop()
        if index and (not self._folders or self._folders[-1] != index[:-1]):
            raise Refused("a node that lies in no directory")
        if meta.kind == "dir":
            self._folders.append(index)
        self._last = index
        return meta
