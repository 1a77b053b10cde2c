"""The line of every key and list element of a TOML text that tomllib has already accepted.

tomllib keeps no positions. The one library that does (spanned-toml) is a copy of tomllib without a
release since 2022, would be a second parser of a file that root acts on, and gives implied tables
no position. So tomllib alone decides what the text means, and this only walks it again, leniently,
to find lines; a wrong line is the worst that it can get wrong.
"""

import tomllib
from bisect import bisect_right
from collections.abc import Mapping

Path = tuple[str | int, ...]


def line_index(text: str) -> Mapping[Path, int]:
    """Line (from 1) of each key and list element, by its path; list elements by their index."""
    return _Walker(text).walk()


class _Walker:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(i + 1 for i, c in enumerate(text) if c == "\n")]
        self._lines: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}  # arrays of tables: how many so far

    def walk(self) -> Mapping[Path, int]:
        table: Path = ()
        while self._skip():
            if self._text.startswith("[[", self._at):
                table = self._header(2, array=True)
            elif self._text[self._at] == "[":
                table = self._header(1, array=False)
            else:
                self._pair(table)
        return self._lines

    def _note(self, path: Path, at: int) -> None:
        line = bisect_right(self._starts, at)
        for end in range(1, len(path) + 1):
            self._lines.setdefault(path[:end], line)

    def _skip(self, blanks: str = " \t\r\n") -> bool:
        """Past blanks and comments; whether anything is left."""
        text = self._text
        while self._at < len(text):
            if text[self._at] in blanks:
                self._at += 1
            elif text[self._at] == "#":
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            else:
                return True
        return False

    def _header(self, brackets: int, *, array: bool) -> Path:
        start = self._at
        self._at += brackets
        keys = self._keys()
        self._at += brackets
        path: Path = ()
        for number, key in enumerate(keys):
            path += (key,)
            last = number == len(keys) - 1
            if last and array:
                self._counts[path] = self._counts.get(path, 0) + 1
            if path in self._counts:
                path += (self._counts[path] - 1,)
        self._note(path, start)
        return path

    def _keys(self) -> list[str]:
        """A dotted key, up to the character that ends it."""
        keys = []
        while True:
            self._skip(" \t")
            start = self._at
            if self._text[start] in "\"'":
                self._string()
                keys.append(str(tomllib.loads("k=" + self._text[start : self._at])["k"]))
            else:
                while self._text[self._at] not in " \t.=]":
                    self._at += 1
                keys.append(self._text[start : self._at])
            self._skip(" \t")
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _pair(self, table: Path) -> None:
        start = self._at
        path = (*table, *self._keys())
        self._note(path, start)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(" \t")
        char = self._text[self._at]
        if char in "\"'":
            self._string()
        elif char == "[":
            self._list(path)
        elif char == "{":
            self._inline(path)
        else:
            while self._at < len(self._text) and self._text[self._at] not in ",]}\n#":
                self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        long = self._text.startswith(quote * 3, self._at)
        end = quote * 3 if long else quote
        self._at += len(end)
        while not self._text.startswith(end, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(end)
        while long and self._text.startswith(quote, self._at):  # up to two more belong to it
            self._at += 1

    def _list(self, path: Path) -> None:
        self._at += 1
        number = 0
        while self._skip() and self._text[self._at] != "]":
            self._note((*path, number), self._at)
            self._value((*path, number))
            number += 1
            if self._skip() and self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _inline(self, path: Path) -> None:
        self._at += 1
        while self._skip() and self._text[self._at] != "}":
            self._pair(path)
            if self._skip() and self._text[self._at] == ",":
                self._at += 1
        self._at += 1
