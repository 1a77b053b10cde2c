"""Texts for a terminal: harmless, of known width, with numbers that people can read."""

import math
import time
from typing import Final

_SIZES: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_ESCAPE: Final = 0xDC00  # surrogate escapes are 0xDC80 … 0xDCFF (PEP 383)


def clean(text: str) -> str:
    """The text with everything escaped that a terminal or a reader could be deceived by.

    File names and what programs print may hold escape sequences, line breaks, marks that turn the
    direction of writing around, and bytes that are no text; none of them is printable (Unicode
    categories C and Z but the space). Spaces stay, backslashes too.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    number = ord(character)
    if _ESCAPE + 0x80 <= number <= _ESCAPE + 0xFF:
        return f"\\x{number - _ESCAPE:02x}"
    return character.encode("unicode_escape").decode("ascii")


def clean_lines(text: str) -> list[str]:
    """Several lines, each made harmless; tabs become spaces."""
    return [clean(line) for line in text.expandtabs().split("\n")]


def width(text: str) -> int:
    """Columns that a clean text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if character.isascii():
        return 1
    import unicodedata

    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def fit(text: str, columns: int) -> str:
    """The beginning of a clean text that has room in so many columns."""
    if width(text) <= columns:
        return text
    return _take(text, columns - 1) + "…" if columns > 0 else ""


def fit_path(path: str, columns: int) -> str:
    """The end of a clean path, which tells more than its beginning."""
    if width(path) <= columns:
        return path
    return "…" + _take(path[::-1], columns - 1)[::-1] if columns > 0 else ""


def _take(text: str, columns: int) -> str:
    for index, character in enumerate(text):
        columns -= _columns(character)
        if columns < 0:
            return text[:index]
    return text


def pad(text: str, columns: int) -> str:
    """The clean text with spaces up to a width."""
    return text + " " * (columns - width(text))


def size(count: float) -> str:
    """Bytes with binary units: 1.4 GiB."""
    if count < 1024:
        return f"{count:.0f} B"
    unit = min(int(math.log2(count) / 10), len(_SIZES))
    value = count / 1024**unit
    return f"{value:.{0 if value >= 100 else 1}f} {_SIZES[unit - 1]}"


def number(value: int) -> str:
    """A count with separated thousands."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """A span of time, in at most two units: 4 min 05 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def clock(seconds: float) -> str:
    """A span of time as on a stop-watch: 4:05, 2:03:04."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def age(seconds: float) -> str:
    """How long ago, in one unit: 3 h."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def moment(when: float) -> str:
    """A time in the reader's own time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def table(rows: list[list[str]]) -> list[str]:
    """Clean texts in columns; the first row is the heading."""
    columns = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(pad, row, columns)).rstrip() for row in rows]
