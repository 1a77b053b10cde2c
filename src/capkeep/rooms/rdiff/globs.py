"""rdiff-backup's patterns (its manual, "FILE SELECTION").

`**`, `*`, `?`, `[…]`, `ignorecase:`, and a backslash before a character that is to mean itself. A
pattern stands for what it matches and for all that is below it.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

IGNORE_CASE: Final = "ignorecase:"


def matcher(patterns: Iterable[str]) -> Callable[[bytes], bool]:
    """Whether a path, or a directory above it, is meant by one of the patterns."""
    compiled = [_compiled(pattern) for pattern in patterns]
    return lambda path: any(one.match(path) for one in compiled)


def _compiled(pattern: str) -> re.Pattern[bytes]:
    flags = re.DOTALL
    if pattern.lower().startswith(IGNORE_CASE):
        pattern, flags = pattern[len(IGNORE_CASE) :], flags | re.IGNORECASE
    pattern = pattern.rstrip("/") or "/"
    source = _expression(pattern).encode("utf-8", "surrogateescape")
    return re.compile(source + rb"(?:$|/)", flags)


def _expression(pattern: str) -> str:
    """The pattern as a regular expression; an unfinished class is a bracket."""
    at, found = 0, []
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "\\" and at < len(pattern):
            found.append(re.escape(pattern[at]))
            at += 1
        elif char == "*" and pattern[at : at + 1] == "*":
            found.append(".*")
            at += 1
        elif char == "*":
            found.append("[^/]*")
        elif char == "?":
            found.append("[^/]")
        elif (
            char == "[" and (end := pattern.find("]", at + 1 + (pattern[at : at + 1] in "!^"))) > 0
        ):
            inside = pattern[at:end].replace("\\", r"\\")
            found.append("[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]")
            at = end + 1
        else:
            found.append(re.escape(char))
    return "".join(found)
