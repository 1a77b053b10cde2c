"""How much of a repository's data a check reads, as people write it."""

from typing import Final, NamedTuple

from capkeep.values import (
    ValueMistake,
    format_duration,
    parse_duration,
    parse_percent,
    parse_size,
)

HINT: Final = 'write "10%", "5G", "all", "rotate 30d", or "" for the structure alone'
ROTATE: Final = "rotate"
DAY: Final = 24 * 3600


class ReadData(NamedTuple):
    """`part` as an engine takes it ("", "10%", "5120M", "all"); with `rotate_seconds` the next one."""

    part: str = ""
    rotate_seconds: int = 0  # the time within which all data is to be read; 0: no rotation

    def written(self) -> str:
        """As it is written in the configuration."""
        if self.rotate_seconds:
            return f"{ROTATE} {format_duration(self.rotate_seconds)}"
        return self.part


def read_read_data(value: object) -> ReadData:
    """Raises ValueMistake."""
    if isinstance(value, ReadData):
        return value
    if not isinstance(value, str):
        raise ValueMistake("must be a text in quotes", HINT)
    text = value.strip()
    if text in ("", "all"):
        return ReadData(text)
    word, _, rest = text.partition(" ")
    if word == ROTATE:
        return ReadData(rotate_seconds=_rotation(rest))
    try:
        return ReadData(_percent(text) if text.endswith("%") else _size(text))
    except ValueMistake as mistake:
        raise ValueMistake(f"{text!r} is no part of a repository's data", HINT) from mistake


def _rotation(text: str) -> int:
    seconds = parse_duration(text)
    if seconds < DAY:
        raise ValueMistake("all data cannot be read more than once a day", 'write "rotate 30d"')
    return seconds


def _percent(text: str) -> str:
    percent = parse_percent(text)
    if not percent:
        raise ValueMistake("0% is nothing", HINT)
    return f"{percent}%"


def _size(text: str) -> str:
    """Whole megabytes: the engine's own sizes have fewer units than ours."""
    mebibytes = parse_size(text) >> 20
    if not mebibytes:
        raise ValueMistake("less than a megabyte is nothing", HINT)
    return f"{mebibytes}M"
