"""Where a display writes: lines one below the other, or lines that are redrawn in place."""

import os
from typing import Final, Protocol, TextIO

from capkeep.report.progress import Progress
from capkeep.report.text import fit, fit_path, width

_USUAL_COLUMNS: Final = 80  # for a terminal that does not know its own width


class Screen(Protocol):
    """What a display needs of one."""

    interval: float  # seconds between two looks at the progress

    def line(self, text: str) -> None:
        """Print a line that stays."""

    def begin(self, progress: Progress) -> None:
        """A step has begun."""

    def show(self, progress: Progress, unreadable: int) -> None:
        """Show how far it is."""

    def erase(self) -> None:
        """Take back what does not stay."""


class PlainScreen:
    """For logs, mail and pipes: every line stays, so there are few."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.interval = 30.0

    def line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def begin(self, progress: Progress) -> None:
        self.line(f"  {progress.label} …")

    def show(self, progress: Progress, unreadable: int) -> None:
        self.line("  " + "  ".join(progress.parts(unreadable)))

    def erase(self) -> None:
        """Nothing can be taken back."""


class LiveScreen:
    """Two lines redrawn in place, each time in a single write, and never wider than the terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn = 0  # lines that will be overwritten
        self.interval = 0.1

    def line(self, text: str) -> None:
        self._out.write(self._above() + text + "\n")
        self._out.flush()

    def begin(self, progress: Progress) -> None:
        self._draw([fit(progress.label, self._columns())])

    def show(self, progress: Progress, unreadable: int) -> None:
        columns = self._columns()
        lines = [_fitting(progress.parts(unreadable), columns)]
        if progress.current:
            lines.append("  " + fit_path(progress.current, columns - 2))
        self._draw(lines)

    def erase(self) -> None:
        if self._drawn:
            self._out.write(self._above())
            self._out.flush()

    def _draw(self, lines: list[str]) -> None:
        # Overwrite, then clear the rest of each line: clearing first would flicker.
        up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
        shown = "\n".join(f"{line}\x1b[K" for line in lines)
        self._out.write(f"\r{up}{shown}\x1b[J")
        self._out.flush()
        self._drawn = len(lines)

    def _above(self) -> str:
        """To the first of the redrawn lines, and clear from there to the end of the screen."""
        up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
        drawn, self._drawn = self._drawn, 0
        return f"\r{up}\x1b[J" if drawn else ""

    def _columns(self) -> int:
        """One less than there are: a full line would wrap, and be two."""
        try:
            columns = os.get_terminal_size(self._out.fileno()).columns
        except OSError:
            columns = 0
        return max(1, (columns or _USUAL_COLUMNS) - 1)


def _fitting(parts: list[str], columns: int) -> str:
    """As many of the parts as have room, in their order; something of the first in any case."""
    line = fit(parts[0], columns)
    for part in parts[1:]:
        if width(line) + 2 + width(part) <= columns:
            line += "  " + part
    return line
