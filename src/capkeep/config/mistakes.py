"""A mistake in the configuration: where it is, what is wrong, and what to write."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from capkeep.errors import ConfigError


class Place(NamedTuple):
    """Where something is written."""

    file: str
    line: int  # from 1; 0 where there is no line to name
    key: str  # dotted, as in the file; "" for the whole file

    def where(self) -> str:
        """File and line, as editors and compilers write it."""
        return f"{self.file}:{self.line}" if self.line else self.file


class Mistake(NamedTuple):
    """One thing that is wrong, or (as a remark) that is worth saying."""

    file: str
    line: int
    key: str
    problem: str
    hint: str = ""

    def sentence(self) -> str:
        """For people, in one or two lines."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{where}: {self.key}: {self.problem}" if self.key else f"{where}: {self.problem}"
        return f"{text}\n    {self.hint}" if self.hint else text


class MistakesError(ConfigError):
    """The configuration has mistakes; the message lists every one."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes))
        count = len(self.mistakes)
        head = f"{count} mistake{'s' if count != 1 else ''} in the configuration"
        super().__init__("\n".join([head + ":", *(m.sentence() for m in self.mistakes)]))


class Collector:
    """Gathers mistakes, so that all are told at once."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.remarks: list[Mistake] = []

    def mistake(self, place: Place, problem: str, hint: str = "") -> None:
        """Something that must be put right before anything can be applied."""
        self._add(self.mistakes, place, problem, hint)

    def remark(self, place: Place, problem: str, hint: str = "") -> None:
        """Something that works, but perhaps not as meant."""
        self._add(self.remarks, place, problem, hint)

    def _add(self, where: list[Mistake], place: Place, problem: str, hint: str) -> None:
        found = Mistake(place.file, place.line, place.key, problem, hint)
        if found not in where:
            where.append(found)


def nearest(word: str, words: Iterable[str]) -> str:
    """The word that was most probably meant, or ""."""
    known = list(words)
    folded = word.lower().replace("_", "-")
    if folded in known:
        return folded
    return next(iter(get_close_matches(folded, known, n=1, cutoff=0.6)), "")


def dotted(path: Iterable[str | int]) -> str:
    """A path of keys as TOML writes it; list elements as [0]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part.isascii() and part.replace("-", "").replace("_", "").isalnum()
            text += ("." if text else "") + (part if bare else f'"{part}"')
    return text
