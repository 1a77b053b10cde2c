"""Trees of what a file says, every value with its file and line, whatever the format was."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from capkeep.errors import ConfigError
from capkeep.takeover.model import Kind, Path

if TYPE_CHECKING:
    from capkeep.takeover.draft import Draft

ENDLESS: Final = 1_000_000  # snapshots that a rule keeps: one every hour for a century
Expand = Callable[[str], tuple[str, str]]  # a text → what it stands for, or "" and why not


class Node(NamedTuple):
    """A value and where it stands."""

    value: "str | int | float | bool | tuple[Node, ...] | Mapping[str, Node] | None"
    file: str
    line: int
    tag: str = ""  # a tag of its own, as YAML has them: "!include"

    def entries(self) -> "Mapping[str, Node]":
        """What a mapping holds; nothing if it is none."""
        return self.value if isinstance(self.value, Mapping) else {}

    def table(self) -> "Node":
        """The mapping that it is; an empty one if it is a plain value, which may stand for one."""
        return self if isinstance(self.value, Mapping) else self._replace(value={})

    def items(self) -> "tuple[Node, ...]":
        """The elements of a list; a single value is a list of one, and nothing is none."""
        if isinstance(self.value, tuple):
            return self.value
        return () if self.value is None else (self,)

    def text(self) -> str | None:
        """A scalar as text; None if it is none."""
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        return str(self.value) if isinstance(self.value, str | int | float) else None


def broken(file: str, line: int, problem: str, hint: str = "") -> ConfigError:
    """An error for what cannot be read at all."""
    where = f"{file}:{line}" if line else file
    return ConfigError(f"{where}: {problem}", hint=hint)


def as_node(value: object, file: str, lines: Mapping[tuple[str | int, ...], int]) -> Node:
    """A tree of what a parser made that knows no positions itself; `lines` are by path."""

    def build(value: object, path: tuple[str | int, ...], line: int) -> Node:
        line = lines.get(path, line)
        if isinstance(value, dict):
            found = {str(k): build(v, (*path, str(k)), line) for k, v in value.items()}
            return Node(found, file, line)
        if isinstance(value, list):
            parts = tuple(build(v, (*path, i), line) for i, v in enumerate(value))
            return Node(parts, file, line)
        if isinstance(value, int | float) or value is None:
            return Node(value, file, line)
        # Halves of characters, which JSON can escape and no file can hold, become question marks.
        return Node(str(value).encode("utf-8", "replace").decode(), file, line)

    return build(value, (), 0)


def plainly(text: str) -> tuple[str, str]:
    """Takes every text as it stands."""
    return text, ""


class Section:
    """One mapping that is being read: what is asked for is taken away, and the rest is told."""

    def __init__(
        self, node: Node, name: str, draft: "Draft", table: Path, expand: Expand = plainly
    ) -> None:
        self.node = node
        self.table = table
        self._name = name
        self._draft = draft
        self.expander = expand
        self._entries = dict(node.entries())
        if not isinstance(node.value, Mapping) and node.value is not None:
            self.say(Kind.LEFT, "", "must be a table", node=node)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def left(self) -> tuple[str, ...]:
        """What has not been taken yet."""
        return tuple(self._entries)

    def take(self, key: str) -> Node | None:
        """The value of a key, which is not told as left any more."""
        return self._entries.pop(key, None)

    def put(self, key: str, node: Node) -> None:
        """Has a key read as if it stood here."""
        self._entries[key] = node

    def say(
        self, kind: Kind, key: str, problem: str, hint: str = "", *, node: Node | None = None,
        table: Path | None = None,
    ) -> None:  # fmt: skip
        """A remark about a key of this mapping."""
        place = node or self._entries.get(key) or self.node
        named = ".".join(part for part in (self._name, key) if part)
        where = self.table if table is None else table
        self._draft.say(kind, place, named, problem, hint, table=where)

    def text(self, key: str) -> str:
        """A text; "" if there is none, or none that can be carried over."""
        node = self.take(key)
        return "" if node is None else self.text_of(node, key)

    def text_of(self, node: Node, key: str) -> str:
        """What a scalar stands for; "" with a remark if that cannot be known."""
        text = node.text()
        if text is None or node.tag:
            if node.value is not None:
                said = f"the tag {node.tag} is not understood" if node.tag else "must be one text"
                self.say(Kind.LEFT, key, said, node=node)
            return ""
        found, problem = self.expander(text)
        if problem:
            self.say(Kind.LEFT, key, problem, "write what it stands for", node=node)
        return found

    def texts(self, key: str) -> tuple[tuple[str, Node], ...]:
        """A text or a list of them, each with its place; nothing that is empty."""
        node = self.take(key)
        found = [(self.text_of(item, key), item) for item in node.items()] if node else []
        return tuple((text, item) for text, item in found if text)

    def flag(self, key: str) -> bool | None:
        """True or false; None if it is not said."""
        node = self.take(key)
        if node is None or node.value is None:
            return None
        if isinstance(node.value, bool):
            return node.value
        if isinstance(node.value, int) or node.value in ("true", "false"):
            return node.value not in (0, "false")
        self.say(Kind.LEFT, key, "must be true or false", node=node)
        return None

    def number(self, key: str) -> int | None:
        """A whole number from 0; None if it is not said, or false."""
        node = self.take(key)
        if node is None or node.value is None or node.value is False:
            return None
        text = (node.text() or "").strip()
        if text.isascii() and text.isdigit() and len(text) < 16:
            return int(text)
        self.say(Kind.LEFT, key, "is not a whole number", node=node)
        return None

    def kept(self, key: str) -> int | None:
        """How many snapshots a rule keeps: 0 if it is not said, None if it cannot be known.

        Negative is without an end for borg, and so is `unlimited`, or -1, for restic.
        """
        node = self._entries.get(key)
        text = (node.text() or "").strip().lower() if node else ""
        if text == "unlimited" or re.fullmatch(r"-[0-9]+", text):
            self.take(key)
            return ENDLESS
        number = self.number(key)
        said = node is not None and node.value is not None and node.value is not False
        return number if number is not None or said else 0

    def section(self, key: str, table: Path | None = None) -> "Section":
        """The mapping below a key; an empty one if there is none."""
        node = self.take(key) or Node({}, self.node.file, self.node.line)
        name = ".".join(part for part in (self._name, key) if part)
        where = self.table if table is None else table
        return Section(node, name, self._draft, where, self.expander)

    def rest(self, left: Mapping[str, str], noted: Mapping[str, str], *, ignore: str = "") -> None:
        """Tells all that has not been taken; what is not known at all is said to be so."""
        for key in self.left():
            if key in left:
                problem, _, hint = left[key].partition(" | ")
                self.say(Kind.LEFT, key, problem, hint)
            elif key in noted:
                self.say(Kind.NOTE, key, noted[key])
            elif not ignore or not key.startswith(ignore):
                said = "is not understood"
                self.say(Kind.LEFT, key, said, "look up what it does, and whether you need it")
            self.take(key)


def not_all(section: Section) -> None:
    """Says that no rule of retention is carried over, since not all of them can be."""
    said = "with only a part of its rules less would be kept than before: nothing is removed"
    hint = f"write [{'.'.join(section.table)}] with rules that keep as much"
    section.say(Kind.LEFT, "", said, hint)


def keyed(text: Iterable[str], reason: str) -> dict[str, str]:
    """Many keys with one reason."""
    return dict.fromkeys(text, reason)
