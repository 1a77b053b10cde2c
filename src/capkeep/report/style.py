"""Colour, where it is wanted and can be shown."""

import io
import os
from typing import Final, TextIO

from capkeep.records.judge import State
from capkeep.records.model import Outcome

_GOOD: Final = "32"
_WARN: Final = "33"
_BAD: Final = "31"
_COLOURS: Final[dict[str, str]] = {
    Outcome.COMPLETE: _GOOD,
    Outcome.PARTIAL: _WARN,
    Outcome.FAILED: _BAD,
    Outcome.MISSED: _BAD,
    Outcome.SKIPPED: _WARN,
    State.FRESH: _GOOD,
    State.LATE: _BAD,
    State.NEVER: _BAD,
    State.RUNNING: _WARN,
}
_DIFFERENCES: Final = {"+": _GOOD, "-": _BAD, "@": "36"}


class Style:
    """Wraps texts in colour, or leaves them as they are."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text

    def verdict(self, word: str) -> str:
        """An outcome or a state in its colour."""
        return self._wrap(_COLOURS.get(word, "1"), word)

    def bold(self, text: str) -> str:
        """What the eye should find first."""
        return self._wrap("1", text)

    def good(self, text: str) -> str:
        """All is as it should be."""
        return self._wrap(_GOOD, text)

    def bad(self, text: str) -> str:
        """What somebody must see to."""
        return self._wrap(_BAD, text)

    def dim(self, text: str) -> str:
        """What may be read later."""
        return self._wrap("2", text)

    def difference(self, line: str) -> str:
        """A line of a unified diff."""
        return self._wrap(_DIFFERENCES.get(line[:1], "2"), line)


PLAIN: Final = Style(colour=False)


def style_for(stream: TextIO) -> Style:
    """Colour on a terminal, unless NO_COLOR is set and not empty (https://no-color.org)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    return Style(colour=wanted and stream.isatty())


def never_fail(stream: TextIO) -> None:
    """Let a stream whose encoding lacks a character escape it: losing the report would be worse."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
