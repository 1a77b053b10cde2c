"""Past runs as a table, and the lines of a run's log."""

import time
from typing import Final

from capkeep.records.logs import LogLine
from capkeep.records.model import Run, elapsed
from capkeep.report.story import number_of, text_of
from capkeep.report.style import Style
from capkeep.report.text import clean, duration, moment, table

_TOLD: Final = frozenset(("time", "event", "room"))


def history_lines(runs: tuple[Run, ...], style: Style, now: float) -> list[str]:
    """One row a run, the last one first."""
    if not runs:
        return ["nothing has run yet"]
    rows = [["run", "job", "action", "outcome", "started", "took", "by"]]
    lines = table(rows + [_row(run, now) for run in runs])
    for index, run in enumerate(runs, start=1):
        if run.outcome is not None:
            lines[index] = lines[index].replace(
                f" {run.outcome} ", f" {style.verdict(run.outcome)} "
            )
    return [style.dim(lines[0]), *lines[1:]]


def _row(run: Run, now: float) -> list[str]:
    outcome = str(run.outcome or "running")
    took = "?"
    if run.seconds is not None or run.outcome is None:
        took = duration(elapsed(run.started, run.ended, run.seconds, now))
    return [
        clean(run.id), clean(run.job) or "-", clean(run.action),
        f"{outcome} ({run.failure})" if run.failure else f"{outcome} ", moment(run.started), took,
        clean(run.trigger_user) or str(run.trigger_uid),
    ]  # fmt: skip


def log_line(message: LogLine) -> str:
    """A logged message in one line: time, event, and what it says."""
    when = time.strftime("%H:%M:%S", time.localtime(number_of(message, "time")))
    event, room = clean(text_of(message, "event")), clean(text_of(message, "room"))
    if event == "proof":
        said = text_of(message, "process") + ": kernel facts (capkeep log --proof)"
    else:
        said = " ".join(
            _said(key, value)
            for key, value in message.items()
            if key not in _TOLD and value not in (None, "", [], {})
        )
    return "  ".join(part for part in (when, event, room, clean(said)) if part)


def _said(key: str, value: object) -> str:
    return str(value) if key in ("text", "path") else f"{key}={value}"
