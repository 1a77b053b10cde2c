"""HPACK, the packing of header fields in HTTP/2, as much as a vault and a room of its host need (RFC 7541).

Decoding is whole, its dynamic table included: Go's client packs its first requests before it has
heard what we would like, and before 2022 did not listen at all. Only text is let through: a string
with anything but visible ASCII is refused, so the code of no other character is needed. What we
send is left unpacked. Written here because a vault imports nothing that is not Python's own.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

Field = tuple[bytes, bytes]

TABLE_LIMIT: Final = 4096  # bytes of the dynamic table, which nobody is told to change
ENTRY_OVERHEAD: Final = 32  # RFC 7541, 4.1
LIST_LIMIT: Final = 8 << 10  # bytes of all fields of a request, counted in the same way
_INTEGER_LIMIT: Final = 1 << 16

# RFC 7541, Appendix A.
_STATIC_FIELDS: Final = (
    ":authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https"
    " :status=200 :status=204 :status=206 :status=304 :status=400 :status=404 :status=500"
    " accept-charset accept-encoding=gzip,deflate accept-language accept-ranges accept"
    " access-control-allow-origin age allow authorization cache-control content-disposition"
    " content-encoding content-language content-length content-location content-range"
    " content-type cookie date etag expect expires from host if-match if-modified-since"
    " if-none-match if-range if-unmodified-since last-modified link location max-forwards"
    " proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie"
    " strict-transport-security transfer-encoding user-agent vary via www-authenticate"
)
_STATIC: Final[tuple[Field, ...]] = tuple(
    (name.encode(), value.replace(",", ", ").encode())
    for name, _, value in (field.partition("=") for field in _STATIC_FIELDS.split())
)

# RFC 7541, Appendix B: the code is canonical, so the characters of each length say all of it. The
# lengths that no visible character has come after these, but for the null byte of the first 13 bits.
_LENGTHS: Final = (
    (5, "012aceiost"), (6, " %-./3456789=A_bdfghlmnpru"), (7, ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, "&*,;XZ"), (10, '!"()?'), (11, "'+|"), (12, "#>"), (13, "\0$@[]~"), (14, "^}"),
    (15, "<`{"), (19, "\\"),
)  # fmt: skip


def _huffman() -> dict[tuple[int, int], int]:
    """(bits, code) to character."""
    codes: dict[tuple[int, int], int] = {}
    code = previous = 0
    for bits, characters in _LENGTHS:
        code <<= bits - previous
        previous = bits
        for character in characters.encode():
            codes[bits, code] = character
            code += 1
    return codes


_CODES: Final = _huffman()
_LONGEST: Final = _LENGTHS[-1][0]


class PackingError(Exception):
    """What cannot be unpacked: nothing after it can be understood either."""


class Decoder:
    """Unpacks the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._table: deque[Field] = deque()  # the newest first
        self._size = 0
        self._limit = TABLE_LIMIT

    def decode(self, block: bytes) -> list[Field]:
        """All fields of a block. Raises PackingError."""
        found: list[Field] = []
        size = position = 0
        try:
            while position < len(block):
                field, position = self._next(block, position, first=not found)
                if field is None:
                    continue
                size += _size(field)
                if size > LIST_LIMIT:
                    raise PackingError("too many header fields")
                found.append(field)
        except IndexError:
            raise PackingError("a header block that ends early") from None
        return found

    def _next(self, block: bytes, position: int, *, first: bool) -> tuple[Field | None, int]:
        """A field and where the next one begins; None for a new size of the table."""
        kind = block[position]
        if kind & 0x80:
            index, position = _integer(block, position, 7)
            return self._at(index), position
        if kind & 0xE0 == 0x20:
            limit, position = _integer(block, position, 5)
            if limit > TABLE_LIMIT or not first:
                raise PackingError("not a size for the table, or not the place for it")
            self._limit = limit
            self._evict()
            return None, position
        keep = kind & 0xC0 == 0x40
        index, position = _integer(block, position, 6 if keep else 4)
        if index:
            name = self._at(index)[0]
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        if keep:
            self._table.appendleft((name, value))
            self._size += _size((name, value))
            self._evict()
        return (name, value), position

    def _at(self, index: int) -> Field:
        if 1 <= index <= len(_STATIC):
            return _STATIC[index - 1]
        place = index - len(_STATIC) - 1
        if not 0 <= place < len(self._table):
            raise PackingError("a field that is in no table")
        return self._table[place]

    def _evict(self) -> None:
        while self._size > self._limit:
            self._size -= _size(self._table.pop())


def _size(field: Field) -> int:
    return len(field[0]) + len(field[1]) + ENTRY_OVERHEAD


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """RFC 7541, 5.1, up to what anything here can be. Raises PackingError, IndexError."""
    full = (1 << bits) - 1
    value = block[position] & full
    position += 1
    shift = 0
    while value >= full or shift:
        part = block[position]
        position += 1
        value += (part & 0x7F) << shift
        shift += 7
        if value > _INTEGER_LIMIT or shift > 28:
            raise PackingError("a number that is too large")
        if not part & 0x80:
            break
    return value, position


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """RFC 7541, 5.2, of visible characters and spaces alone. Raises PackingError, IndexError."""
    packed = block[position] & 0x80
    length, position = _integer(block, position, 7)
    data = block[position : position + length]
    if len(data) != length:
        raise PackingError("a string that ends early")
    text = bytes(_unpack(data)) if packed else data
    if not all(0x20 <= c < 0x7F for c in text):
        raise PackingError("a string that is no text")
    return text, position + length


def _unpack(data: bytes) -> Iterator[int]:
    """Characters of a Huffman-coded string. Raises PackingError."""
    code = bits = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            bits += 1
            character = _CODES.get((bits, code)) if bits >= 5 else None
            if character is not None:
                yield character
                code = bits = 0
            elif bits >= _LONGEST:
                raise PackingError("a string that is no text")
    if bits > 7 or code != (1 << bits) - 1:
        raise PackingError("a string with a wrong end")


_AUTHORITY, _METHOD, _PATH, _SCHEME = 1, 2, 4, 6
_STATUS, _CONTENT_LENGTH, _CONTENT_RANGE, _CONTENT_TYPE = 8, 28, 30, 31
_NO_TABLE: Final = b"\x20"  # a dynamic table of size 0: no peer has to keep one for us


def encode(status: int, kind: str, length: int, content_range: str = "") -> bytes:
    """An answer's header block; every field literally, and none to be remembered."""
    fields = [
        (_STATUS, str(status)), (_CONTENT_TYPE, kind), (_CONTENT_LENGTH, str(length)),
        *([(_CONTENT_RANGE, content_range)] if content_range else []),
    ]  # fmt: skip
    return _packed(fields)


def encode_request(method: str, path: str, length: int) -> bytes:
    """A request's header block, packed in the same way."""
    fields = [
        (_METHOD, method), (_SCHEME, "http"), (_AUTHORITY, "capkeep"), (_PATH, path),
        (_CONTENT_LENGTH, str(length)),
    ]  # fmt: skip
    return _packed(fields)


def _packed(fields: list[tuple[int, str]]) -> bytes:
    return _NO_TABLE + b"".join(_literal(name, value.encode()) for name, value in fields)


def _literal(name: int, value: bytes) -> bytes:
    """RFC 7541, 6.2.2, with a name of the static table and a value of at most 126 bytes."""
    assert len(value) < 0x7F
    index = bytes([name]) if name < 0x0F else bytes([0x0F, name - 0x0F])
    return index + bytes([len(value)]) + value
