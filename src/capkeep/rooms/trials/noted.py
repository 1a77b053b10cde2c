"""What a dumper has noted of a file, as it was read back: whoever wrote it may have written anything."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, NamedTuple

from capkeep.rooms.protocol import Message, is_file_name

DIGITS: Final = 20  # of a number of rows


class Unlike(ValueError):
    """A dump cannot be compared, and why in words that no server has chosen: ours, or the dumper's."""


class Item(NamedTuple):
    """One file of a dump."""

    file: str
    database: str
    counts: tuple[tuple[str, str, int], ...]  # schema, table, rows
    names: tuple[str, ...]  # of roles or users
    complete: bool  # whether counts were noted at all


def items(noted: Message) -> Iterator[Item]:
    """All files of a dump. Raises Unlike."""
    files = noted.get("files")
    for item in files if isinstance(files, list) else ():
        if not isinstance(item, dict) or not is_file_name(str(item.get("file"))):
            raise Unlike("a file without a name")
        counts, names = item.get("counts"), item.get("names")
        listed = counts if isinstance(counts, list) else []
        yield Item(
            str(item["file"]),
            str(item.get("database", "")),
            tuple(map(_count, listed)),
            tuple(map(str, names)) if isinstance(names, list) else (),
            isinstance(counts, list),
        )


@contextmanager
def opened(folder: str, item: Item) -> Iterator[BinaryIO]:
    """A file of a dump; whoever wrote the dump may have put a link there, or something that waits.

    What it leads to would be shown to a server that may tell of it. Raises Unlike.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(f"{folder}/{item.file}", flags)
    except OSError as error:
        raise Unlike(f"{item.file}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Unlike(f"{item.file} is no file")
    with open(fd, "rb") as file:
        yield file


def _count(row: object) -> tuple[str, str, int]:
    if isinstance(row, list) and len(row) == 3 and isinstance(row[2], int):
        return str(row[0]), str(row[1]), row[2]
    raise Unlike("a table without a number of rows")


def numbers(answer: bytes) -> list[int]:
    """A server's answer. Raises Unlike for one that is none."""
    words = answer.split()
    if not all(word.isdigit() and len(word) < DIGITS for word in words):
        raise Unlike("the server answers with something that is no number")
    return [int(word) for word in words]


def compared(
    item: Item, loaded: dict[tuple[str, str], int], more: frozenset[tuple[str, str]]
) -> tuple[int, str]:
    """How many tables are as they were noted, and the first that is not; `more` may hold more rows.

    Neither all that are not nor what was found instead: both are for the dump's own code to choose,
    which may have read what is not its own.
    """
    same, wrong = 0, ""
    for schema, table, rows in item.counts:
        name = f"{schema}.{table}" if schema else table
        found = loaded.get((schema, table))
        if found == rows or (found is not None and found > rows and (schema, table) in more):
            same += 1
        elif not wrong:
            there = "is missing" if found is None else f"{'fewer' if found < rows else 'more'} rows"
            wrong = f"table {name}: {there}; the dumper noted {rows} rows"
    return same, wrong
