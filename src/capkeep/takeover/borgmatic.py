"""borgmatic's configuration: flat as it is since 1.8, or in sections as it was before."""

import os
import re
from collections.abc import Mapping
from typing import Final

from capkeep.takeover.borgmatic_job import BorgmaticJob
from capkeep.takeover.documents import parse, read_text
from capkeep.takeover.draft import Draft
from capkeep.takeover.model import Kind
from capkeep.takeover.nodes import Node, Section, broken

SECTIONS: Final = ("location", "storage", "retention", "consistency", "output", "hooks")
MAX_INCLUDES: Final = 32
_ENVIRONMENT: Final = re.compile(r"(\\?)\$\{([A-Za-z0-9_]+)(:?-[^}]*)?\}")


def read_borgmatic(path: str, draft: Draft) -> None:
    """One file is one job. Raises ConfigError, OSError."""
    root = included(parse(read_text(path), path), draft, [])
    flat = _flat(root, draft)
    constants = flat.pop("constants", Node({}, path, 0)).entries()
    whole = Node(flat, path, 0)
    BorgmaticJob(draft, Section(whole, "", draft, (), _Expander(constants)), path).read()


def looks_like(root: Node) -> bool:
    """Whether a tree is a configuration of borgmatic's."""
    keys = root.entries()
    return bool(
        {"source_directories", "patterns", "patterns_from", "location", "<<"} & set(keys)
    ) or ("repositories" in keys and isinstance(keys["repositories"].value, tuple))


def included(root: Node, draft: Draft, files: list[Node]) -> Node:
    """The tree with what `!include` names in its places; own settings go before included ones.

    `files` are those that were included so far, by whichever file. Raises ConfigError for too many.
    """
    if root.tag == "!include":
        trees = [_include(item, draft, files) for item in root._replace(tag="").items()]
        whole = trees[0] if trees else root
        for tree in trees[1:]:
            whole = deep(whole, tree)
        return whole
    if isinstance(root.value, tuple):
        return root._replace(value=tuple(included(n, draft, files) for n in root.value))
    if isinstance(root.value, Mapping):
        own = {k: included(n, draft, files) for k, n in root.value.items()}
        below = own.pop("<<", None)
        node = root._replace(value=own)
        return deep(below, node) if below else node
    return root


def _include(item: Node, draft: Draft, files: list[Node]) -> Node:
    files.append(item)
    if len(files) > MAX_INCLUDES:
        said = f"includes itself, or more than {MAX_INCLUDES} files"
        raise broken(item.file, item.line, said)
    name = os.path.expanduser(item.text() or "")
    path = os.path.join(os.path.dirname(os.path.abspath(item.file)), name)
    try:
        return included(parse(read_text(path), path), draft, files)
    except OSError as error:
        draft.say(Kind.LEFT, item, "!include", f"{path} cannot be read: {error.strerror}")
        return Node({}, item.file, item.line)


def deep(below: Node, above: Node) -> Node:
    """borgmatic's merge: tables are put together, lists one behind the other, the rest replaced."""
    if above.tag in ("!retain", "!omit"):
        return above  # told where it is read
    if isinstance(below.value, Mapping) and isinstance(above.value, Mapping):
        found = dict(below.value)
        for key, node in above.value.items():
            found[key] = deep(found[key], node) if key in found else node
        return above._replace(value=found)
    if isinstance(below.value, tuple) and isinstance(above.value, tuple):
        return above._replace(value=below.value + above.value)
    return above


def _flat(root: Node, draft: Draft) -> dict[str, Node]:
    """Without the sections of old files: what they hold stands where it would today."""
    flat = dict(root.entries())
    for name in SECTIONS:
        section = flat.get(name)
        if section is not None and (isinstance(section.value, Mapping) or section.value is None):
            del flat[name]
            flat.update(section.entries())
    if not isinstance(root.value, Mapping):
        draft.say(Kind.LEFT, root, "", "is not a configuration of borgmatic")
    return flat


class _Expander:
    """borgmatic's own constants are filled in; its environment is not this one's."""

    def __init__(self, constants: Mapping[str, Node]) -> None:
        self._constants = {k: n.text() or "" for k, n in constants.items()}

    def __call__(self, text: str) -> tuple[str, str]:
        for name, value in self._constants.items():
            text = text.replace(f"{{{name}}}", value)
        found = next((m for m in _ENVIRONMENT.finditer(text) if not m[1]), None)
        if found:
            return "", f"{found[2]} is a variable of its environment"
        return text.replace("\\${", "${"), ""
