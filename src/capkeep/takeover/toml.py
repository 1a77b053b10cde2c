"""Writes what was taken over as a configuration, with everything that is to be said beside it."""

import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

from capkeep.config.quoting import toml as in_toml
from capkeep.takeover.draft import one_line
from capkeep.takeover.model import Kind, Path, Remark, Setting, Taken, Value
from capkeep.values import SecretSource

WIDTH: Final = 100
WORDS: Final = {Kind.LEFT: "NOT CARRIED OVER", Kind.BY_HAND: "TO DO", Kind.NOTE: "note"}


def written(taken: Taken, sources: Iterable[str]) -> str:
    """The configuration as TOML. No secret is in it."""
    lines = [f"# Taken over from {one_line(', '.join(sources))}. After a change:"]
    lines += ["#   capkeep config check && capkeep plan && capkeep apply"]
    paths = [table.path for table in taken.tables]
    homeless = [r for r in taken.remarks if _home(r.table, paths) is None]
    lines += list(_comments(homeless))
    for table in taken.tables:
        own = [r for r in taken.remarks if _home(r.table, paths) == table.path]
        lines += ["", *_comments(own), f"[{'.'.join(table.path)}]"]
        lines += [line for setting in table.settings for line in _lines(setting)]
    return "\n".join(lines) + "\n"


def _home(path: Path, paths: list[Path]) -> Path | None:
    """The table beside which something is said: the one that it is about, or one around it."""
    return next((path[:end] for end in range(len(path), 0, -1) if path[:end] in paths), None)


def _comments(remarks: Iterable[Remark]) -> Iterator[str]:
    """Remarks as comments; a text of somebody else's never begins a line of its own."""
    for remark in sorted(remarks, key=lambda r: (list(Kind).index(r.kind), r.file, r.line)):
        place = f" (line {remark.line})" if remark.line else ""
        said = f"{WORDS[remark.kind]}: {remark.key}{place}: {remark.problem}".replace(": : ", ": ")
        for text, indent in ((said, "# "), (remark.hint, "#   ")):
            yield from textwrap.wrap(
                text, WIDTH, initial_indent=indent, subsequent_indent="#   ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip


def _lines(setting: Setting) -> Iterator[str]:
    key = ".".join(setting.key)
    line = f"{key} = {_value(setting.value)}"
    if len(line) <= WIDTH or not isinstance(setting.value, tuple) or _is_source(setting.value):
        yield line
        return
    yield f"{key} = ["
    yield from (f"  {_value(item)}," for item in setting.value)
    yield "]"


def _is_source(value: Value) -> bool:
    return isinstance(value, SecretSource)


def _value(value: Value) -> str:
    if isinstance(value, SecretSource):
        return in_toml({k: v for k, v in value._asdict().items() if v})
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return in_toml(value)
