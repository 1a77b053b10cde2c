"""Calendar expressions as systemd writes them (systemd.time(7)), and the times they stand for.

Computed here because records are judged, and containers scheduled, where no systemd is to be asked.
The same times as `systemd-analyze calendar` says, in whole seconds: a time that a change of the
clocks skips does not come, one that it repeats comes once, at first.
"""

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from capkeep.values import ValueMistake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import tzinfo

HINT: Final = 'write "03:00", "Mon..Fri 22:30", "*-*-01 04:00" or "hourly"; see systemd.time(7)'
FIRST_YEAR: Final = 1970
LAST_YEAR: Final = 2199
_LENGTH: Final = 200  # characters
_ENTRIES: Final = 240  # of a list, as systemd has it (CALENDARSPEC_COMPONENTS_MAX)
_NAMED: Final = {
    "minutely": "*-*-* *:*:00",
    "hourly": "*-*-* *:00:00",
    "daily": "*-*-* 00:00:00",
    "weekly": "Mon *-*-* 00:00:00",
    "monthly": "*-*-01 00:00:00",
    "quarterly": "*-01,04,07,10-01 00:00:00",
    "biannually": "*-01,07-01 00:00:00",
    "bi-annually": "*-01,07-01 00:00:00",
    "semiannually": "*-01,07-01 00:00:00",
    "semi-annually": "*-01,07-01 00:00:00",
    "yearly": "*-01-01 00:00:00",
    "annually": "*-01-01 00:00:00",
    "anually": "*-01-01 00:00:00",  # systemd knows it so, too
}
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class _Part(NamedTuple):
    """One entry of a list: from a start, in steps, to an end; -1 for no end of its own."""

    start: int
    stop: int = -1
    step: int = 0


class Calendar(NamedTuple):
    """When something comes again and again; no entries in a list: any value."""

    weekdays: frozenset[int]  # 0 is Monday
    years: tuple[int, ...]
    months: tuple[int, ...]
    days: tuple[_Part, ...]
    from_end: bool  # days are counted from the end of the month
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    zone: str  # "" for the machine's own


def parse(text: str) -> Calendar:
    """Read an expression. Raises ValueMistake for what systemd 252 would not take either.

    Fractions of a second, moments (`@…`) and abbreviations of time zones are not taken: no run
    needs the first two, and the last mean something else every half year.
    """
    if not text.isascii() or not text.isprintable() or len(text) > _LENGTH:
        raise ValueMistake(f"{text!r} is not a calendar expression", HINT)
    words = text.split()
    zone = ""
    if len(words) > 1 and _is_zone(words[-1]):
        zone = words.pop()
    if len(words) == 1:
        words = _NAMED.get(words[0].lower(), words[0]).split()
    try:
        return _read(words, zone)
    except ValueError as error:
        why = f": {error}" if error.args else ""
        raise ValueMistake(f"{text!r} is not a calendar expression{why}", HINT) from error


def _is_zone(word: str) -> bool:
    """Whether it names a time zone. Raises ValueMistake for one that nobody knows."""
    if word.upper() == "UTC":
        return True
    if "/" not in word or not word[:1].isalpha() or ":" in word:
        return False
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(word)
    except (OSError, ValueError, KeyError) as error:
        raise ValueMistake(
            f"{word!r} is not a time zone that is known here", 'write "Europe/Berlin" or UTC'
        ) from error
    return True


def _read(words: list[str], zone: str) -> Calendar:
    """Raises ValueError with a reason, or without one."""
    weekdays: frozenset[int] = frozenset()
    if words and words[0][:1].isalpha():
        weekdays = _weekdays(words.pop(0))
    elif not words:
        raise ValueError
    day, clock = "*-*-*", "00:00:00"
    if words and ":" not in words[0]:
        day = words.pop(0)
    if words:
        clock = words.pop(0)
    if words:
        raise ValueError
    years, months, days, from_end = _date(day)
    hours, minutes, seconds = _clock(clock)
    return Calendar(weekdays, years, months, days, from_end, hours, minutes, seconds, zone)


def _weekdays(word: str) -> frozenset[int]:
    found: set[int] = set()
    items = word.split(",")
    if len(items) > 1 and not items[-1]:
        items.pop()  # systemd allows a comma at the end
    for item in items:
        first, dots, last = item.partition(".." if ".." in item else "-")
        start = _weekday(first)
        end = _weekday(last) if dots else start
        if end < start:
            raise ValueError(f"{item} goes backwards")
        found.update(range(start, end + 1))
    return frozenset(found)


def _weekday(word: str) -> int:
    for number, name in enumerate(_DAYS):
        if word.lower() in (name, name[:3]):
            return number
    raise ValueError(f"{word!r} is no weekday")


def _date(
    word: str,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[_Part, ...], bool]:
    """Years, months and days of `YYYY-MM-DD`, `MM-DD`, or with `~` before the day."""
    from_end = "~" in word
    rest, mark, day = word.rpartition("~" if from_end else "-")
    if not mark or "~" in rest:
        raise ValueError
    year, dash, month = rest.rpartition("-")
    if not dash:
        year = "*"
    years = _values([_whole_years(p) for p in _parts(year)], FIRST_YEAR, LAST_YEAR)
    months = _values(_parts(month), 1, 12)
    days = tuple(_parts(day))
    for part in days:
        _check_days_from_end(part) if from_end else _check(part, 1, 31)
    return years, months, days, from_end


def _whole_years(part: _Part) -> _Part:
    """Two digits are of 1970 to 2069."""

    def whole(year: int) -> int:
        if year >= 100 or year < 0:
            return year
        return year + (1900 if year >= 70 else 2000)

    return part._replace(start=whole(part.start), stop=whole(part.stop))


def _clock(word: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    parts = word.split(":")
    if len(parts) == 2:
        parts.append("00")
    if len(parts) != 3:
        raise ValueError
    if "." in parts[2].replace("..", ""):
        raise ValueError("fractions of a second are not known here")
    hours, minutes = _values(_parts(parts[0]), 0, 23), _values(_parts(parts[1]), 0, 59)
    return hours, minutes, _values(_parts(parts[2]), 0, 59)


def _parts(word: str) -> list[_Part]:
    """A list's entries; none for `*`."""
    if word == "*":
        return []
    items = word.split(",")
    if len(items) > _ENTRIES:
        raise ValueError(f"more than {_ENTRIES} entries")
    return [_part(item) for item in items]


def _part(item: str) -> _Part:
    bounds, slash, step_text = item.partition("/")
    first, dots, last = bounds.partition("..")
    start, stop = _number(first), _number(last) if dots else -1
    step = _number(step_text) if slash else (1 if dots else 0)
    if slash and not step:
        raise ValueError("a step of 0 goes nowhere")
    if dots and stop < start:
        raise ValueError(f"{item} goes backwards")
    if dots and start + step > stop:
        return _Part(start)
    # To the last that a step hits: counted from the end of a month, it is where the count begins.
    return _Part(start, stop - (stop - start) % step if dots else stop, step)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{text!r} is no number")
    return int(text)


def _check(part: _Part, low: int, high: int) -> None:
    """Raises ValueError for what is outside, and for a step that leads outside at once."""
    numbers = [part.start] if part.stop < 0 else [part.start, part.stop]
    for number in numbers:
        if not low <= number <= high:
            raise ValueError(f"{number} is not from {low} to {high}")
    if part.step > high - low or (part.stop < 0 and part.start + part.step > high):
        raise ValueError(f"a step of {part.step} from {part.start} leads beyond {high}")


def _check_days_from_end(part: _Part) -> None:
    for number in [part.start] if part.stop < 0 else [part.start, part.stop]:
        if not 1 <= number <= 28:
            raise ValueError(f"{number} is not from 1 to 28 days before the end of a month")
    if part.stop < 0 and part.start - part.step < 1:
        raise ValueError(f"a step of {part.step} from {part.start} leads beyond the month")


def _values(parts: list[_Part], low: int, high: int) -> tuple[int, ...]:
    """All that a list stands for, in order; empty for any value."""
    found: set[int] = set()
    for part in parts:
        _check(part, low, high)
        stop = (high if part.step else part.start) if part.stop < 0 else part.stop
        found.update(range(part.start, stop + 1, part.step or 1))
    return tuple(sorted(found))


# -- the times


def after(calendar: Calendar, moment: float) -> int | None:
    """The first time after a moment, in seconds since 1970; None if it never comes."""
    start = int(moment // 1)
    wall = _wall(start, calendar.zone)
    for day in _days(calendar, wall.date()):
        for clock in _clocks(calendar, wall if day == wall.date() else None):
            found = _instant(datetime(day.year, day.month, day.day, *clock), calendar.zone)  # noqa: DTZ001
            if found is not None and found > moment:
                return found
    return None


def upcoming(calendars: tuple[Calendar, ...], moment: float, count: int) -> tuple[int, ...]:
    """The next times of several calendars together, each once."""
    found: list[int] = []
    while len(found) < count:
        times = [t for c in calendars if (t := after(c, moment)) is not None]
        if not times:
            break
        moment = min(times)
        found.append(int(moment))
    return tuple(found)


def before(calendar: Calendar, moment: float) -> int | None:
    """The last time up to and with a moment; None if there was none in forty years."""

    def comes(start: float) -> bool:
        found = after(calendar, start)
        return found is not None and found <= moment

    spans = (3600, 86400, 32 * 86400, 400 * 86400, 40 * 366 * 86400)
    start = next((moment - span for span in spans if comes(moment - span)), None)
    if start is None:
        return None
    end = moment
    while end - start >= 0.5:  # one comes after `start`, and none after `end`
        middle = (start + end) / 2
        start, end = (middle, end) if comes(middle) else (start, middle)
    return after(calendar, start)


def between(calendars: tuple[Calendar, ...], start: float, end: float) -> tuple[int, ...]:
    """The times of several calendars together, after `start` and up to and with `end`."""
    found: set[int] = set()
    for calendar in calendars:
        moment = start
        while (time_ := after(calendar, moment)) is not None and time_ <= end:
            found.add(time_)
            moment = time_
    return tuple(sorted(found))


def latest(calendars: tuple[Calendar, ...], moment: float) -> int | None:
    """The last time of several calendars together, up to and with a moment."""
    return max((t for c in calendars if (t := before(c, moment)) is not None), default=None)


def _days(calendar: Calendar, start: date) -> Iterator[date]:
    """Every day that fits, from a day on."""
    for year in calendar.years or range(start.year, LAST_YEAR + 1):
        for month in calendar.months or range(1, 13):
            if (year, month) < (start.year, start.month):
                continue
            for number in _month_days(calendar, year, month):
                day = date(year, month, number)
                if day >= start and (not calendar.weekdays or day.weekday() in calendar.weekdays):
                    yield day


def _month_days(calendar: Calendar, year: int, month: int) -> list[int]:
    following = date(year + month // 12, month % 12 + 1, 1)
    length = (following - timedelta(days=1)).day
    if not calendar.days:
        return list(range(1, length + 1))
    found: set[int] = set()
    for start, stop, step in calendar.days:
        if calendar.from_end:
            first = length + 1 - (start if stop < 0 else stop)
            last = length + 1 - start if stop >= 0 else (length if step else first)
        else:
            first = start
            last = stop if stop >= 0 else (length if step else start)
        found.update(range(first, min(last, length) + 1, step or 1))
    return sorted(found)


def _clocks(calendar: Calendar, beyond: datetime | None) -> Iterator[tuple[int, int, int]]:
    """Hour, minute and second of every time of a day; only those later than `beyond`."""
    least = (beyond.hour, beyond.minute, beyond.second) if beyond else (-1, -1, -1)
    for hour in calendar.hours or range(24):
        if hour < least[0]:
            continue
        for minute in calendar.minutes or range(60):
            if (hour, minute) < least[:2]:
                continue
            for second in calendar.seconds or range(60):
                if (hour, minute, second) > least:
                    yield hour, minute, second


def _wall(moment: int, zone: str) -> datetime:
    """What the clocks of a zone show."""
    if zone:
        return datetime.fromtimestamp(moment, _zone(zone)).replace(tzinfo=None)
    return datetime(*time.localtime(moment)[:6])  # noqa: DTZ001 - the machine's own, by its C library


def _instant(wall: datetime, zone: str) -> int | None:
    """When the clocks of a zone first show that; None if they skip it."""
    if zone:
        aware = wall.replace(tzinfo=_zone(zone))
        tries = [int(aware.replace(fold=fold).timestamp()) for fold in (0, 1)]
    else:
        fields = (*wall.timetuple()[:6], 0, 0)
        tries = [int(time.mktime((*fields, summer))) for summer in (1, 0, -1)]
    shown = [moment for moment in tries if _wall(moment, zone) == wall]
    return min(shown) if shown else None


def _zone(name: str) -> "tzinfo":
    if name.upper() == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)
