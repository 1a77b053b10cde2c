"""Plan values to JSON and back, driven by their annotations."""

import json
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import TypeVar, cast, get_args, get_origin, get_type_hints

from capkeep.errors import CapkeepError

T = TypeVar("T")
type_hints = cache(get_type_hints)


class DecodeError(CapkeepError):
    """JSON that does not have the shape of the value asked for."""


def to_plain(value: object) -> object:
    """Named tuples become objects, tuples become lists; everything else stays."""
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return {f: to_plain(getattr(value, f)) for f in value._fields}
        return [to_plain(v) for v in value]
    return value


def from_plain(kind: type[T], plain: object) -> T:
    """Build a `kind` from plain JSON values. Raises DecodeError where they do not fit."""
    return cast(T, _build(kind, plain, kind.__name__))


def dumps(value: object) -> str:
    """One line of JSON."""
    return json.dumps(to_plain(value), ensure_ascii=True, separators=(",", ":"))


def loads(kind: type[T], text: str | bytes) -> T:
    """Parse JSON into a `kind`. Raises DecodeError."""
    try:
        return from_plain(kind, json.loads(text))
    except (ValueError, RecursionError) as error:  # the latter: it is nested too deeply
        raise DecodeError(f"not JSON: {error}") from error


def _build(kind: object, plain: object, where: str) -> object:
    origin = get_origin(kind)
    if origin is UnionType:
        options = get_args(kind)
        if plain is None and NoneType in options:
            return None
        return _build(next(o for o in options if o is not NoneType), plain, where)
    if origin is tuple:
        return _build_tuple(get_args(kind), plain, where)
    if isinstance(kind, type):
        if hasattr(kind, "_fields"):
            return _build_record(kind, plain, where)
        if issubclass(kind, StrEnum):
            if plain not in list(kind):
                raise DecodeError(f"{where}: {plain!r} is not one of {', '.join(kind)}")
            return kind(str(plain))
        if type(plain) is kind or (kind is float and type(plain) is int):
            return plain
    raise DecodeError(f"{where}: {plain!r} does not fit {kind}")


def _build_tuple(args: tuple[object, ...], plain: object, where: str) -> object:
    if not isinstance(plain, list):
        raise DecodeError(f"{where}: {plain!r} is not a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(plain))
    if len(args) != len(plain):
        raise DecodeError(f"{where}: expected {len(args)} items, found {len(plain)}")
    pairs = zip(args, plain, strict=True)
    return tuple(_build(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(pairs))


def _build_record(kind: type, plain: object, where: str) -> object:
    if not isinstance(plain, dict):
        raise DecodeError(f"{where}: {plain!r} is not an object")
    hints = type_hints(kind)
    unknown = plain.keys() - hints.keys()
    if unknown:
        raise DecodeError(f"{where}: unknown {', '.join(sorted(unknown))}")
    try:
        return kind(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in plain.items()})
    except TypeError as error:
        raise DecodeError(f"{where}: {error}") from error
