"""How things are written in unit files; pure.

Sources: systemd.syntax(7), systemd.unit(5) ("Specifiers"), systemd.service(5) ("Command Lines").
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

MADE_BY: Final = "# Made by `capkeep apply`; changes are overwritten."


class Unit(NamedTuple):
    """A unit file."""

    name: str
    text: str


def text(lines: Iterable[str]) -> str:
    """A whole file."""
    return "\n".join((MADE_BY, *lines, ""))


def plain(value: str) -> str:
    """A value that takes up the rest of its line: a description, one path."""
    return value.replace("%", "%%")


def word(value: str) -> str:
    """One of several values on a line, such as a path in a list or a part of a pair."""
    return _quoted(plain(value), " \t\"'\\:")


def bind(source: str, target: str) -> str:
    """A pair for BindPaths= and BindReadOnlyPaths=."""
    return f"{word(source)}:{word(target)}"


def command(words: Iterable[str]) -> str:
    """A command line. A semicolon by itself would end it, and a dollar sign stands for a variable."""
    return " ".join(_quoted(plain(w).replace("$", "$$"), " \t'\";\\") for w in words)


def _quoted(value: str, special: str) -> str:
    if value and not any(c in value for c in special):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
