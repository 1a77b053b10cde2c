"""How a run is shown while it goes on: live on a terminal, in plain lines, or as JSON.

Nothing that came from outside is printed without `clean`: a file's name must not steer a terminal.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from capkeep.records.model import FindingKind
from capkeep.report.progress import Progress
from capkeep.report.screen import LiveScreen, PlainScreen, Screen
from capkeep.report.story import Listener, text_of
from capkeep.report.style import Style, never_fail, style_for
from capkeep.report.summary import summary
from capkeep.report.text import clean
from capkeep.rooms.protocol import Message


class Display(Protocol):
    """Takes the runner's messages."""

    def handle(self, message: Message) -> None:
        """Take one message."""

    def close(self) -> None:
        """Leave the terminal tidy; nothing comes after this."""


def display(*, as_json: bool, full_proof: bool = False) -> Display:
    """The one that fits what standard output is."""
    out = sys.stdout
    if as_json:
        return JsonDisplay(out)
    never_fail(out)
    live = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    screen = LiveScreen(out) if live else PlainScreen(out)
    return PeopleDisplay(screen, style_for(out), full_proof=full_proof)


class JsonDisplay:
    """Every message as one line of JSON; all that is not ASCII is escaped."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def handle(self, message: Message) -> None:
        """Take one message."""
        self._out.write(json.dumps(message, separators=(",", ":")) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing to tidy."""


class PeopleDisplay:
    """A line at the begin of every step, the progress as the screen wants it, and the summary."""

    def __init__(
        self,
        screen: Screen,
        style: Style,
        *,
        full_proof: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen = screen
        self._style = style
        self._full_proof = full_proof
        self._now = now
        self._listener: Listener | None = None
        self._progress: Progress | None = None
        self._shown = 0.0

    def handle(self, message: Message) -> None:
        """Take one message."""
        event = text_of(message, "event")
        if event == "run":
            self._listener = Listener(message)
            self._screen.line(self._heading(message))
        elif event == "end":
            self._end(message)
        elif self._listener is not None:
            self._listener.take(message)
            self._event(event, message, self._listener)
        elif event == "message":  # while a run waits for its turn
            self._screen.line(f"  {clean(text_of(message, 'text'))}")

    def close(self) -> None:
        """Take back what does not stay on the screen."""
        self._screen.erase()

    def _heading(self, message: Message) -> str:
        job = clean(text_of(message, "job"))
        what = clean(text_of(message, "action")) + (f" of {job}" if job else "")
        return self._style.bold(what) + self._style.dim(f"  [run {clean(text_of(message, 'run'))}]")

    def _event(self, event: str, message: Message, listener: Listener) -> None:
        now = self._now()
        if event == "step":
            self._progress = Progress(message, now)
            self._shown = now
            self._screen.begin(self._progress)
        elif event == "progress" and self._progress is not None:
            self._progress.take(message, now)
            if now - self._shown >= self._screen.interval:
                self._shown = now
                self._screen.show(self._progress, listener.counts.get(FindingKind.UNREADABLE, 0))
        elif event == "message":
            self._screen.line(f"  {clean(text_of(message, 'text'))}")
        elif event == "step-end":
            self._progress = None
            self._screen.erase()

    def _end(self, message: Message) -> None:
        self._progress = None
        self._screen.erase()
        if self._listener is None:
            _refused(message)
            return
        story = self._listener.end(message)
        self._listener = None
        for line in summary(story, self._style, full_proof=self._full_proof):
            self._screen.line(line)


def _refused(message: Message) -> None:
    """The request ended before there was a run."""
    text, hint = clean(text_of(message, "text")), clean(text_of(message, "hint"))
    sys.stderr.write(f"capkeep: {text}\n" + (f"  hint: {hint}\n" if hint else ""))
    sys.stderr.flush()
