"""borg's patterns as patterns of ours, which are restic's: exact where it can be, else refused.

What matches a path, and with it what it excludes, is told in `borg help patterns` (1.2, 1.4): paths
have no leading slash, a pattern begins at the first character of the path, and what is below a match
is excluded with it. restic's are in doc/040_backup.rst, "Excluding Files".
"""

import posixpath
from collections.abc import Iterator
from typing import Final

from capkeep.values import ValueMistake, check_exclude

MOST: Final = 8  # patterns of ours for one of borg's
STYLES: Final = ("fm", "sh", "re", "pp", "pf")


class Untranslatable(ValueError):
    """No pattern of ours says that; the message says why."""


def from_borg(pattern: str, default: str = "fm") -> tuple[str, ...]:
    """Patterns of ours that together exclude what borg's excludes. Raises Untranslatable."""
    style, colon, rest = pattern.partition(":")
    if not colon or style not in STYLES:
        style, rest = default, pattern
    if not rest.strip() or any(not c.isprintable() for c in rest):
        raise Untranslatable("it is empty, or holds what cannot be printed")
    if style == "re":
        raise Untranslatable("capkeep has no regular expressions")
    if style in ("pp", "pf"):
        return (posixpath.normpath("/" + escaped(rest).lstrip("/")),)
    translate = _fnmatch if style == "fm" else _shell
    found = tuple(dict.fromkeys(translate(rest)))
    if len(found) > MOST:
        raise Untranslatable("its stars may stand for directories in too many ways")
    for ours in found:
        try:
            check_exclude(ours)
        except ValueMistake as mistake:
            raise Untranslatable(mistake.problem) from mistake
    return found


def escaped(text: str) -> str:
    """A path in which nothing is special."""
    return "".join(f"\\{c}" if c in "\\*?[" else c for c in text)


def _names(pattern: str) -> list[str]:
    """The names between slashes; a slash at the end means all that is in there."""
    ends = pattern.endswith("/")
    clean = posixpath.normpath(pattern).lstrip("/")
    names = [n for n in clean.split("/") if n not in ("", ".")]
    return [*names, "*"] if ends else names


def _shell(pattern: str) -> Iterator[str]:
    """`sh:`: a star stays within a name, and `**/` is any number of directories."""
    if "{" in pattern:
        raise Untranslatable("{ means different things to versions of borg")
    if "!" in pattern.replace("[!", "") or pattern.count("[") != pattern.count("]"):
        raise Untranslatable("its brackets are not those of restic")
    names = _names(pattern)
    *inner, last = names or ["*"]
    if any("**" in n and n != "**" for n in inner):
        raise Untranslatable("** is part of a name")
    yield from _written([*map(_name, inner), _name(last.replace("**", "*"))])


def _fnmatch(pattern: str) -> Iterator[str]:
    """`fm:`: a star stands for anything, slashes too."""
    ways: list[list[str]] = [[]]
    names = _names(pattern)
    for i, name in enumerate(names):
        choices = list(_stars(_single(name), last=i == len(names) - 1))
        ways = [way + choice for way in ways for choice in choices]
        if len(ways) > MOST:
            raise Untranslatable("its stars may stand for directories in too many ways")
    for way in ways:
        yield from _written(way)


def _single(name: str) -> str:
    while "**" in name:
        name = name.replace("**", "*")
    return name


def _stars(name: str, *, last: bool) -> Iterator[list[str]]:
    """What one name of the pattern may be: itself, or spread over directories by its star."""
    plain = _name(name)
    if "*" not in name:
        yield [plain]
        return
    if name == "*":
        yield ["*"] if last else ["*", "**"]
        return
    if "[" in name:
        raise Untranslatable("it has both brackets and stars that may stand for slashes")
    first, *middle, end = name.split("*")
    if middle:
        trimmed = name.strip("*")
        if "*" in trimmed:
            raise Untranslatable("its stars may stand for directories in too many ways")
        # *text*: the text may be in any name of the way
        yield ["**", f"*{_name(trimmed)}*"]
        return
    if not first:
        yield ["**", plain]
    elif not end and last:
        yield [plain]
    else:
        yield [plain]
        yield [f"{_name(first)}*", "**", f"*{_name(end)}"]


def _written(names: list[str]) -> Iterator[str]:
    """As patterns of ours. In restic a second `**` is never no directory at all (0.14 to 0.19)."""
    merged = [n for i, n in enumerate(names) if n != "**" or i == 0 or names[i - 1] != "**"]
    later = [i for i, n in enumerate(merged) if n == "**"][1:]
    for some in range(1 << min(len(later), 8)):
        gone = {index for bit, index in enumerate(later) if some >> bit & 1}
        yield "/" + "/".join(n for i, n in enumerate(merged) if i not in gone)


def _name(name: str) -> str:
    """A name with fnmatch's brackets as Go has them, and its backslash as what it is there."""
    return name.replace("\\", "\\\\").replace("[!", "[^")
