"""Other programs' ways to write times: restic's and borg's spans, Go's durations, frequencies."""

import re
from typing import Final

from capkeep.values import format_duration

DAY: Final = 86400
_RESTIC: Final = {"y": 366 * DAY, "m": 31 * DAY, "d": DAY, "h": 3600}
_BORG: Final = {"y": 365 * DAY, "m": 31 * DAY, "w": 7 * DAY, "d": DAY, "H": 3600, "M": 60, "S": 1}
_GO: Final = {"h": 3600, "m": 60, "s": 1}
_WORDS: Final = {
    "second": 1, "minute": 60, "hour": 3600, "day": DAY, "week": 7 * DAY, "month": 30 * DAY,
    "year": 365 * DAY,
}  # fmt: skip


def _summed(text: str, units: dict[str, int]) -> int:
    parts = re.findall(r"(\d{1,9})([A-Za-z]+)", text)
    if not parts or "".join(n + u for n, u in parts) != text.strip():
        return 0
    return sum(int(n) * units[u] for n, u in parts) if all(u in units for _, u in parts) else 0


def restic_span(text: str) -> str:
    """`2y5m7d3h` as ours, months and years at their longest; "" if it is none."""
    seconds = _summed(text, _RESTIC)
    return format_duration(seconds) if seconds else ""


def borg_span(text: str) -> str:
    """`30d`, `2w`, `48H` as ours; "" if it is none."""
    seconds = _summed(text, _BORG)
    return format_duration(seconds) if seconds else ""


def go_duration(text: str) -> str:
    """`1h30m` as ours; "" if it is none."""
    seconds = _summed(text.replace(" ", ""), _GO)
    return format_duration(seconds) if seconds else ""


def frequency(text: str) -> int | None:
    """Seconds of `2 weeks`; 0 for `always`; None if it is none."""
    if text.strip().lower() in ("", "always"):
        return 0
    number, _, unit = text.strip().lower().partition(" ")
    factor = _WORDS.get(unit.removesuffix("s"))
    return int(number) * factor if factor and number.isdigit() and len(number) < 6 else None


def calendar_for(seconds: int) -> str:
    """A calendar expression that comes at least as often as every so many seconds."""
    steps = (
        (365 * DAY, "*-01-01 04:00"), (90 * DAY, "*-01,04,07,10-01 04:00"),
        (31 * DAY, "*-*-01 04:00"), (30 * DAY, "*-*-01 04:00"), (14 * DAY, "*-*-01,15 04:00"),
        (7 * DAY, "Sun 04:00"), (DAY, "04:00"),
    )  # fmt: skip
    return next((text for least, text in steps if seconds >= least), "")
