"""One table against its model: every wrong key or type becomes a mistake, the rest goes on.

What is wrong is left out and the remainder validated again, so that the checks which need several
settings still run on everything that was right.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from capkeep.config.mistakes import Collector, Place, nearest
from capkeep.config.positions import Path
from capkeep.config.sources import Source
from capkeep.config.syntax import (
    SOURCE_HINT,
    Check,
    Copies,
    Options,
    Retention,
    Table,
    kebab,
    toml_kind,
)
from capkeep.values import ValueMistake

TableT = TypeVar("TableT", bound=Table)

_EXPECTED: Final = {
    "string_type": ("a text", 'put it in quotes: "…"'),
    "list_type": ("a list", 'write ["…", "…"]'),
    "bool_type": ("true or false", "write true or false, without quotes"),
    "int_type": ("a number", "write a whole number, without quotes"),
    "dict_type": ("a table", "write KEY.NAME = …, or a table [ … ]"),
    "model_type": ("a table", "write a table [ … ]"),
}


@dataclass(frozen=True, kw_only=True)
class Checked(Generic[TableT]):
    """A table that fits its model, what of it was written, and where."""

    model: TableT
    source: Source
    path: Path
    left_out: Mapping[str, tuple[int, ...]]  # list elements that were wrong, by their list's key

    def at(self, *path: str | int) -> Place:
        """Where a key of this table is; an element of a list by its index in the model."""
        if len(path) == 2 and isinstance(path[1], int):
            key, index = str(path[0]), path[1]
            for gone in self.left_out.get(key, ()):
                index += gone <= index
            path = (key, index)
        return self.source.at(*self.path, *path)

    def gives(self, field: str) -> bool:
        """Whether the table says anything of that field."""
        return field in self.model.model_fields_set


def check(
    kind: type[TableT], source: Source, path: Path, data: object, collector: Collector
) -> tuple[Checked[TableT], frozenset[str]]:
    """The right part of a table, and the keys that were wrong."""
    wrong: set[str] = set()
    left_out: dict[str, tuple[int, ...]] = {}
    remaining: object = copy.deepcopy(data)
    while True:
        try:
            model = kind.model_validate(remaining)
            checked = Checked(model=model, source=source, path=path, left_out=left_out)
            return checked, frozenset(wrong)
        except ValidationError as error:
            details = error.errors(include_url=False)
        for detail in details:
            _report(detail, kind, source, path, collector)
        places = {_reachable(remaining, d["loc"]) for d in details}
        wrong.update(str(p[0]) for p in places if p)
        if () in places:
            remaining = {}
        else:
            for place in sorted(places, key=lambda p: tuple(map(_order, p)), reverse=True):
                _remove(remaining, place)
                if len(place) == 2 and isinstance(place[1], int):
                    key = str(place[0])
                    left_out[key] = (place[1], *left_out.get(key, ()))


def _order(part: str | int) -> tuple[int, str]:
    return (part, "") if isinstance(part, int) else (-1, part)


def _reachable(data: object, location: Iterable[str | int]) -> Path:
    """The longest beginning of a location that is really in the data."""
    path: Path = ()
    for part in location:
        inner = _step(data, part)
        if inner is _ABSENT:
            break
        data = inner
        path += (part,)
    return path


_ABSENT: Final = object()


def _step(data: object, part: str | int) -> object:
    if isinstance(data, dict):
        return data.get(part, _ABSENT)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return _ABSENT


def _remove(data: object, path: Path) -> None:
    for part in path[:-1]:
        data = _step(data, part)
    if isinstance(data, dict):
        data.pop(path[-1], None)
    elif isinstance(data, list) and isinstance(path[-1], int):
        del data[path[-1]]


def _report(
    detail: ErrorDetails, kind: type[Table], source: Source, path: Path, collector: Collector
) -> None:
    problem, hint = _sentence(detail, kind)
    collector.mistake(source.at(*path, *detail["loc"]), problem, hint)


def _sentence(detail: ErrorDetails, kind: type[Table]) -> tuple[str, str]:
    """What is wrong and what to write; never repeats the value, which may be a secret."""
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, ValueMistake):
        return error.problem, error.hint
    if detail["type"] == "extra_forbidden":
        inner = _inner(kind, detail["loc"])
        return unknown_key(key, known_keys(inner), elsewhere(inner))
    if detail["type"] in _EXPECTED:
        what, hint = _EXPECTED[detail["type"]]
        if detail["loc"] and str(detail["loc"][0]) in ("credentials", "keeper-credentials"):
            hint = SOURCE_HINT
        return f"must be {what}, not {toml_kind(detail['input'])}", hint
    return _outside(detail)


def _inner(kind: type[Table], location: tuple[str | int, ...]) -> type[Table]:
    """The model of the table in which a key is."""
    inside: dict[str, type[Table]] = {
        "options": Options,
        "check": Check,
        "retention": Retention,
        "copies": Copies,
    }
    return inside.get(str(location[0]), Options) if len(location) > 1 else kind


def _outside(detail: ErrorDetails) -> tuple[str, str]:
    """A value of the right type that is outside of what is possible."""
    context = detail.get("ctx", {})
    if "ge" in context:
        return f"must be at least {context['ge']}", f"write {context['ge']} or more"
    if "le" in context:
        return f"must be at most {context['le']}", f"write {context['le']} or less"
    if "pattern" in context:
        return "cannot be a name here", "use a-z, 0-9, - and _, beginning with a letter"
    message = detail["msg"]
    return f"{message[:1].lower()}{message[1:]}", "see docs/reference/config.md"


def known_keys(kind: type[Table]) -> tuple[str, ...]:
    """The keys of a table as they are written."""
    return tuple(kebab(f) for f in kind.model_fields)


def elsewhere(kind: type[Table]) -> Mapping[str, str]:
    """Keys that are often looked for in this table, and where they really are."""
    if "location" in kind.model_fields:
        return {kebab(f): f"options.{kebab(f)}" for f in Options.model_fields}
    return {}


def unknown_key(key: str, known: Iterable[str], moved: Mapping[str, str]) -> tuple[str, str]:
    """The sentence and the hint for a key that nobody knows."""
    names = tuple(known)
    if key in moved:
        return "unknown key", f"write {moved[key]}"
    if guess := nearest(key, names):
        return "unknown key", f"did you mean {guess}?"
    return "unknown key", f"known here: {', '.join(names)}"
