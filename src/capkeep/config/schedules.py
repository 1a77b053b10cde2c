"""When jobs run, and how soon a run that did not happen is missed: what the model alone cannot check."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from capkeep import calendars
from capkeep.config import syntax
from capkeep.config.mistakes import Collector
from capkeep.config.model import WatchConfig
from capkeep.config.validate import Checked
from capkeep.values import ValueMistake, format_duration

if TYPE_CHECKING:
    from capkeep.config.jobs import JobTable

_SOME_TIME: Final = 0  # of 1970: what never comes after that never comes
_MOST_SPREAD: Final = 24 * 3600
_LEAST: Final = {"every": 1, "grace": 1}
_MOST: Final = {"every": 3600, "grace": 24 * 3600}


def check_calendar(text: str) -> None:
    """Raises ValueMistake for what is no calendar expression, or is one that never comes."""
    if calendars.after(calendars.parse(text), _SOME_TIME) is None:
        raise ValueMistake(f"{text!r} never comes", "there is no such day in any year")


def check_spread(table: "JobTable", collector: Collector) -> None:
    """Runs that begin more than a day later would meet those of the day after."""
    if table.written("spread") and table.model.spread > _MOST_SPREAD:
        said = "is longer than a day"
        collector.mistake(table.at("spread"), said, 'write "30m", or several times in schedule')


def watch(fields: Mapping[str, Checked[syntax.Watch]], collector: Collector) -> WatchConfig:
    """How runs that did not happen are found; with a mistake for what would find none."""
    values = {}
    for field in ("every", "grace"):
        table = fields.get(field)
        value: int = getattr(table.model if table else syntax.Watch(), field)
        values[field] = value
        if table and not _LEAST[field] <= value <= _MOST[field]:
            most = format_duration(_MOST[field])
            said = f"{format_duration(value)} is not from {_LEAST[field]}s to {most}"
            collector.mistake(table.at(field), said, f'write "{format_duration(600)}"')
    return WatchConfig(every_seconds=values["every"], grace_seconds=values["grace"])
