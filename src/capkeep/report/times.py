"""When what is scheduled comes next, as text and as JSON."""

import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from capkeep import calendars
from capkeep.plan.timetable import Timetable
from capkeep.report.text import clean
from capkeep.values import format_duration

SHOWN: Final = 5


class NextTimes(NamedTuple):
    """A timetable and its next times, in seconds since 1970; the spread comes on top."""

    table: Timetable
    times: tuple[int, ...]


def next_times(
    tables: Iterable[Timetable], now: float, count: int = SHOWN
) -> tuple[NextTimes, ...]:
    """The next times of each."""
    return tuple(
        NextTimes(t, calendars.upcoming(tuple(map(calendars.parse, t.calendar)), now, count))
        for t in tables
    )


def plain_times(found: Iterable[NextTimes]) -> list[dict[str, object]]:
    """As JSON values."""
    return [
        {
            "job": table.job,
            "kind": table.kind,
            "calendar": list(table.calendar),
            "spread_seconds": table.spread_seconds,
            "next": list(times),
        }
        for table, times in found
    ]


def times_lines(found: Iterable[NextTimes]) -> list[str]:
    """A heading for each schedule, a line for each time."""
    lines: list[str] = []
    for table, times in found:
        later = (
            f", up to {format_duration(table.spread_seconds)} later" if table.spread_seconds else ""
        )
        calendar = ", ".join(table.calendar)
        lines.append(clean(f"{table.kind} of {table.job} ({calendar}){later}:"))
        lines += [f"  {weekday_and_time(moment)}" for moment in times]
        if not times:
            lines.append("  never again")
    return lines


def weekday_and_time(moment: float) -> str:
    """In the machine's own time, with the zone, as there may be two hours of the same name."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(moment))
