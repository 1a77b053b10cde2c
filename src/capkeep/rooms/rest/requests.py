"""A request's header fields, taken apart as strictly as restic allows (RFC 9113, 8.2 and 8.3).

Every restic from 0.14 to 0.19 tells the length of what it uploads. The empty body of its request
to create a repository comes without one, and so may others that are empty.
"""

import re
from typing import Final, NamedTuple

from capkeep.rooms.rest.hpack import Field

_METHOD: Final = re.compile(rb"[A-Z]{1,16}")
_PATH: Final = re.compile(rb"/[!-~]{0,255}")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]{1,64}")
_VALUE: Final = re.compile(rb"(?:[!-~](?:[ -~]{0,1022}[!-~])?)?")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_RANGE: Final = re.compile(rb"bytes=([0-9]{1,15})-([0-9]{1,15})?")
_PSEUDO: Final = (b":method", b":scheme", b":path", b":authority")
_FIELDS_LIMIT: Final = 32
# They are HTTP/1.1's, about connections; two ways to say where a request ends are the root of
# request smuggling.
_FOREIGN: Final = (
    b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te",
)  # fmt: skip


class Refusal(Exception):
    """A request that is answered with an error. `drain`: once its body has come in."""

    def __init__(self, status: int, text: str, *, drain: bool = True) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.drain = drain


class Request(NamedTuple):
    """A request's head."""

    method: str
    target: str
    length: int = 0  # of its body
    range: tuple[int, int | None] | None = None  # first and last byte
    accept: str = ""
    sized: bool = True  # or its body must prove to be empty


def parse_request(fields: list[Field], *, ended: bool) -> Request:
    """The fields of a request; `ended` if it has no body. Raises Refusal."""
    if len(fields) > _FIELDS_LIMIT:
        raise Refusal(431, "too many header fields", drain=False)
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in found:
            raise _bad("a header field twice")
        if name.startswith(b":"):
            if name not in _PSEUDO or len(found) >= len(_PSEUDO):
                raise _bad("an unknown or late pseudo-header field")
            if any(not other.startswith(b":") for other in found):
                raise _bad("a pseudo-header field after others")
        elif _NAME.fullmatch(name) is None or name in _FOREIGN:
            raise _bad("not a header field")
        if _VALUE.fullmatch(value) is None:
            raise _bad("not a header field's value")
        found[name] = value
    return _request(found, ended=ended)


def _bad(text: str) -> Refusal:
    return Refusal(400, text, drain=False)


def _request(fields: dict[bytes, bytes], *, ended: bool) -> Request:
    method, path = fields.get(b":method", b""), fields.get(b":path", b"")
    if _METHOD.fullmatch(method) is None or _PATH.fullmatch(path) is None:
        raise _bad("neither a method nor a path")
    if fields.get(b":scheme") != b"http" or not fields.get(b":authority"):
        raise _bad("no scheme or no authority")
    if b"expect" in fields:
        raise Refusal(417, "nothing is to be expected", drain=False)
    length = _content_length(fields.get(b"content-length"), ended=ended)
    if length != (0, True) and method != b"POST":
        raise _bad("only uploads have a body")
    accept = fields.get(b"accept", b"").decode()
    span = _byte_range(fields.get(b"range"))
    return Request(method.decode(), path.decode(), length[0], span, accept, length[1])


def _content_length(value: bytes | None, *, ended: bool) -> tuple[int, bool]:
    """The length of the body, and whether it was told."""
    if value is None:
        return 0, ended
    if _LENGTH.fullmatch(value) is None:
        raise _bad("not a length")
    if ended and int(value):
        raise _bad("a length without a body")
    return int(value), True


def _byte_range(value: bytes | None) -> tuple[int, int | None] | None:
    if value is None:
        return None
    match = _RANGE.fullmatch(value)
    if match is None:
        raise _bad("only one range from the start is served")
    first, last = int(match[1]), int(match[2]) if match[2] else None
    if last is not None and last < first:
        raise _bad("a range that ends before it begins")
    return first, last
