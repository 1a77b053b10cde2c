"""What was found in another program's configuration: tables of ours, and what is to be said."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from capkeep.values import SecretSource

Path = tuple[str, ...]  # of a table or a key of ours: ("jobs", "system", "check")
Value = str | int | bool | SecretSource | tuple[str, ...] | tuple[SecretSource, ...]


class Kind(StrEnum):
    """What a remark asks of whoever reads it."""

    LEFT = "left"  # the configuration that is written does not do this
    BY_HAND = "by-hand"  # it does, once a person has done something
    NOTE = "note"  # it does, in another way, or there is nothing to do


class Remark(NamedTuple):
    """One thing that is worth saying of what was read, and where it was."""

    kind: Kind
    file: str
    line: int  # from 1; 0 where there is none
    key: str
    problem: str
    hint: str = ""
    table: Path = ()  # of ours, beside which it is said; () at the beginning

    def sentence(self) -> str:
        """For people, in one or two lines."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        text = ": ".join(part for part in (where, self.key, self.problem) if part)
        return f"{text}\n    {self.hint}" if self.hint else text


@dataclass(frozen=True, kw_only=True)
class SecretText:
    """A secret that stood in what was read, and the file it is to be put into. Never printed."""

    path: str
    text: str = field(repr=False)


class Setting(NamedTuple):
    """One key of ours and its value."""

    key: Path  # ("options", "identity") is written options.identity
    value: Value


class Table(NamedTuple):
    """One table of ours."""

    path: Path
    settings: tuple[Setting, ...]


class Taken(NamedTuple):
    """All that was carried over, and all that is to be said of it."""

    tables: tuple[Table, ...]
    remarks: tuple[Remark, ...]
    secrets: tuple[SecretText, ...]

    @property
    def whole(self) -> bool:
        """Whether the configuration does the same as it stands."""
        return all(r.kind is Kind.NOTE for r in self.remarks)
