"""What is in a dump, counted as it goes past: tables, their rows, and roles; pure.

These are the rows of the dump itself, and so of the one moment that it is of; the server is asked for
nothing more. Sources: pg_dump(1), COPY's text format, mariadb-dump(1).
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

HEADER_LIMIT: Final = 1 << 20  # bytes; names have 63, and a table 1600 columns at most
END: Final = b"\\.\n"
_NAME: Final = rb'("(?:[^"]|"")+"|[^"\s.(]+)'
_COPY: Final = re.compile(rb"COPY " + _NAME + rb"\." + _NAME + rb"[ (]")
_ROLE: Final = re.compile(rb"CREATE ROLE " + _NAME + rb";\n")
_TICKED: Final = rb"(`(?:[^`]|``)+`)"
_TABLE: Final = re.compile(rb"CREATE TABLE " + _TICKED + rb" \(")
_INSERT: Final = re.compile(rb"INSERT INTO " + _TICKED + rb" (?:\([^\n]*?\) )?VALUES ?")
_USER: Final = re.compile(
    rb"CREATE USER (?:IF NOT EXISTS )?(`(?:[^`]|``)*`|'(?:[^'\\]|\\.)*')@(`(?:[^`]|``)*`|'(?:[^'\\]|\\.)*')"
)
_STRING: Final = re.compile(rb"'(?:[^'\\]|\\.|'')*'", re.DOTALL)


class CopyCounter:
    """Counts the rows in what `pg_restore --data-only` prints."""

    def __init__(self) -> None:
        self.counts: list[tuple[str, str, int]] = []  # schema, table, rows
        self._left = b""  # the beginning of a line
        self._header = b""
        self._table: tuple[str, str] | None = None
        self._rows = 0
        self._inside = False  # a row, whose beginning is past

    def feed(self, part: bytes) -> None:
        """The next of it. Raises ValueError for what is none."""
        data, place = self._left + part, 0
        while place < len(data):
            step = self._skip if self._table is None else self._count
            after = step(data, place)
            if after < 0:
                break
            place = after
        self._left = data[place:]

    def _skip(self, data: bytes, place: int) -> int:
        """A line between the tables; -1 where its end is yet to come."""
        end = data.find(b"\n", place) + 1
        if not end:
            if len(data) - place > HEADER_LIMIT and not data.startswith(b"COPY ", place):
                raise ValueError("a line without end")
            return -1
        line = data[place:end]
        if self._header or line.startswith(b"COPY "):
            self._header += line
            if line.endswith(b" FROM stdin;\n"):
                if found := _COPY.match(self._header):
                    self._table = (_plain(found[1]), _plain(found[2]))
                self._header = b""
            if len(self._header) > HEADER_LIMIT:
                raise ValueError("a name without end")
        return end

    def _count(self, data: bytes, place: int) -> int:
        """Rows, each a line: whatever would end one is escaped in it."""
        assert self._table is not None, "asked before"
        if self._inside:
            end = data.find(b"\n", place) + 1
            self._rows += bool(end)
            self._inside = not end
            return end or len(data)
        if END.startswith(data[place : place + 3]):
            if len(data) - place < len(END):
                return -1
            self.counts.append((*self._table, self._rows))
            self._table, self._rows = None, 0
            return place + len(END)
        end = data.find(b"\n" + END, place) + 1 or data.rfind(b"\n", place) + 1
        if not end:
            self._inside = True
            return len(data)
        self._rows += data.count(b"\n", place, end)
        return end


def roles(lines: Iterable[bytes]) -> Iterator[str]:
    """The roles in what pg_dumpall has written."""
    for line in lines:
        if found := _ROLE.fullmatch(line):
            yield _plain(found[1])


def _plain(name: bytes) -> str:
    if name.startswith(b'"'):
        name = name[1:-1].replace(b'""', b'"')
    return name.decode(errors="surrogateescape")


def inserted(lines: Iterable[bytes]) -> dict[str, int]:
    """The tables in what mariadb-dump or mysqldump has written, and how many rows it inserts into each.

    Routines are passed over, which may say anything.
    """
    counts: dict[str, int] = {}
    table, routine = "", False
    for line in lines:
        if table:
            if line.startswith(b"("):
                counts[table] += 1
            table = "" if line.endswith(b";\n") else table
        elif line.startswith(b"DELIMITER "):
            routine = line != b"DELIMITER ;\n"
        elif routine:
            continue
        elif line.startswith(b"CREATE TABLE ") and (found := _TABLE.match(line)):
            counts.setdefault(_unticked(found[1]), 0)
        elif line.startswith(b"INSERT INTO ") and (found := _INSERT.match(line)):
            name = _unticked(found[1])
            counts.setdefault(name, 0)
            values = line[found.end() :]
            if values.startswith(b"("):  # all in one line
                counts[name] += _STRING.sub(b"", values).count(b"(")
            else:
                table = name
    return counts


def users(lines: Iterable[bytes]) -> Iterator[str]:
    """The users in what mariadb-dump has written, as NAME@HOST."""
    for line in lines:
        if found := _USER.match(line):
            yield "@".join(_unticked(part) for part in found.groups())


def _unticked(name: bytes) -> str:
    mark = name[:1]
    name = name[1:-1].replace(mark * 2, mark)
    if mark == b"'":
        name = re.sub(rb"\\(.)", rb"\1", name)
    return name.decode(errors="surrogateescape")
