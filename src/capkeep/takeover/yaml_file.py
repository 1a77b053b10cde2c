"""YAML as a tree with lines: PyYAML's parser, with scalars read as YAML 1.2 has them.

Both programs read YAML 1.2 or nearly that (ruamel.yaml, go-yaml), where `12:30` and `yes` are texts;
PyYAML's own resolver makes 750 and true of them. So only its composer is used. Aliases are followed
with a bound on how much may come of them.
"""

import re
from collections.abc import Iterable
from typing import Final, Protocol

import yaml

from capkeep.takeover.nodes import Node, broken

MAX_NODES: Final = 50_000
MAX_DEPTH: Final = 64
MAX_OPEN: Final = 200  # brackets, those in texts too
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT: Final = re.compile(r"[-+]?[0-9]{1,17}\.[0-9]{1,17}")
_OWN: Final = "tag:yaml.org,2002:"
_MERGE: Final = "<<"


class _Mark(Protocol):
    line: int  # from 0


class _Found(Protocol):
    """A node of PyYAML's, which has no types of its own."""

    tag: str
    start_mark: _Mark
    value: object


def parse_yaml(text: str, path: str) -> Node:
    """The one document in a text. Raises ConfigError with the line of what is wrong."""
    _shallow(text, path)
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        said = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise broken(path, line, f"is not YAML: {said}") from error
    except yaml.YAMLError as error:
        raise broken(path, 0, f"is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise broken(path, 0, "is nested too deeply") from error
    return Node({}, path, 1) if root is None else _Builder(path).node(root, 0)


def _shallow(text: str, path: str) -> None:
    """Refuses depths for which the parser's time grows with their square: seconds for 5000."""
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        depth += sum(line.count(c) for c in "[{") - sum(line.count(c) for c in "]}")
        if depth > MAX_OPEN:
            raise broken(path, number, "is nested too deeply")


class _Builder:
    def __init__(self, path: str) -> None:
        self._path = path
        self._made = 0

    def node(self, found: _Found, depth: int) -> Node:
        """The tree below a node; one that an alias names again is made again."""
        self._made += 1
        line = found.start_mark.line + 1
        if self._made > MAX_NODES or depth > MAX_DEPTH:
            said = "comes to more than any configuration, by its aliases or its depth"
            raise broken(self._path, line, said)
        tag = "" if found.tag.startswith(_OWN) else str(found.tag)
        if isinstance(found, yaml.MappingNode):
            return Node(self._mapping(found.value, depth), self._path, line, tag)
        if isinstance(found, yaml.SequenceNode):
            parts = tuple(self.node(item, depth + 1) for item in found.value)
            return Node(parts, self._path, line, tag)
        return Node(_scalar(found), self._path, line, tag)

    def _mapping(self, pairs: Iterable[tuple[_Found, _Found]], depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in pairs:
            name = _text(str(key.value)) if isinstance(key, yaml.ScalarNode) else "?"
            line = key.start_mark.line + 1
            made = self.node(value, depth + 1)
            if name == _MERGE:
                for part in made.items():  # the first of several wins (YAML's merge type)
                    merged = {**part.entries(), **merged}
                    if not part.entries():  # an include, which is not YAML's own
                        own.setdefault(name, made)
                continue
            if name in own:
                raise broken(self._path, line, f"{name} is written twice", "write it once")
            # An empty value has the place where the next thing begins: the key's line is meant.
            own[name] = made if made.value is not None else made._replace(line=line)
        return {**merged, **own}


def _scalar(found: _Found) -> str | int | float | bool | None:
    text = _text(str(found.value))
    if getattr(found, "style", None) is not None:
        return text
    if text.lower() in ("", "~", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _text(text: str) -> str:
    """Without halves of characters, which an escape can make and no file can hold."""
    return text.encode("utf-8", "replace").decode()
