"""Reading an engine's lines: JSON where it is JSON, text where it is not, and a bounded tail."""

import json
from math import isfinite
from typing import Final

from capkeep.engines.base import TAIL_LINES, TAIL_WIDTH

WORDS_KEPT: Final = 100  # of what a check found; more are counted only


class Tail:
    """The last lines of trouble; the same line twice in a row counts once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @property
    def lines(self) -> tuple[str, ...]:
        """Oldest first."""
        return tuple(self._lines)

    def add(self, text: str) -> None:
        """Note a message, which may have several lines."""
        for line in text.split("\n"):
            short = line.strip()[:TAIL_WIDTH]
            if short and (not self._lines or self._lines[-1] != short):
                self._lines.append(short)
        del self._lines[:-TAIL_LINES]


class LineReader:
    """What the readers of all engines have in common: the last words of trouble."""

    def __init__(self) -> None:
        self._tail = Tail()

    @property
    def tail(self) -> tuple[str, ...]:
        """Oldest first."""
        return self._tail.lines


def as_object(line: bytes) -> dict[str, object] | None:
    """A line as a JSON object; None when it is not one."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def as_int(value: object) -> int:
    """A count or size; 0 when it is missing or not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if isinstance(value, int) or isfinite(value) else 0


def as_text(value: object) -> str:
    """A text; "" when it is missing or not one."""
    return value if isinstance(value, str) else ""


def as_texts(value: object) -> tuple[str, ...]:
    """A list of texts; empty when it is missing, null or not one."""
    return tuple(map(as_text, value)) if isinstance(value, list) else ()
