"""Reads the files that other programs are configured by: YAML, TOML, JSON and settings of units."""

import json
import os
import stat
import tomllib
from typing import Final

from capkeep.config.positions import line_index
from capkeep.config.sources import open_at_once
from capkeep.takeover.nodes import Node, as_node, broken

MAX_BYTES: Final = 1 << 20  # no configuration that a person wrote is larger
TOML_ENDINGS: Final = (".toml", ".conf")  # resticprofile takes .conf for TOML


def read_text(path: str) -> str:
    """A file's text. Raises ConfigError for what is no text, OSError."""
    with open(path, "rb", opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise broken(path, 0, "is not a regular file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise broken(path, 0, "is longer than any configuration", "name a smaller file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise broken(path, line, "is not UTF-8", f"iconv -f latin1 -t utf8 {path}") from error


def parse(text: str, path: str) -> Node:
    """The tree that a text says, by the ending of its file's name. Raises ConfigError."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".hcl":
        said = "HCL is not read here"
        raise broken(path, 0, said, "write the same in YAML or TOML, or the few jobs by hand")
    if ending in TOML_ENDINGS:
        return _toml(text, path)
    return _json(text, path) if ending == ".json" else _yaml(text, path)


def _toml(text: str, path: str) -> Node:
    try:
        data = tomllib.loads(text)
        return as_node(data, path, line_index(text))
    except tomllib.TOMLDecodeError as error:
        raise broken(path, 0, f"is not TOML: {error}") from error
    except RecursionError as error:
        raise broken(path, 0, "is nested too deeply") from error


def _json(text: str, path: str) -> Node:
    try:
        return as_node(json.loads(text), path, {})
    except json.JSONDecodeError as error:
        raise broken(path, error.lineno, f"is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise broken(path, 0, "is nested too deeply") from error


def _yaml(text: str, path: str) -> Node:
    try:
        from capkeep.takeover.yaml_file import parse_yaml
    except ModuleNotFoundError as error:
        hint = "apt-get install python3-yaml, or pip install 'capkeep[import]'"
        raise broken(path, 0, "reading YAML needs PyYAML, which is not here", hint) from error
    return parse_yaml(text, path)
