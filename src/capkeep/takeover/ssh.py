"""What a repository that is reached over ssh needs: its key, and the server's."""

import os
import shlex
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from capkeep.takeover.draft import Draft
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Node
from capkeep.values import SecretSource, parse_location

SSH_PORT: Final = 22
HARMLESS: Final = ("BatchMode", "ServerAliveInterval", "ServerAliveCountMax", "IdentitiesOnly")


def _server(location: str) -> str:
    """The server as known_hosts(5) has it: `host`, or `[host]:port`."""
    try:
        if location.startswith("ssh://"):
            parts = urlsplit(location)
            host, port = parts.hostname or "", parts.port
        else:
            place = parse_location(location)
            host, port = place.host, place.port
    except ValueError:
        return "HOST"
    return f"[{host}]:{port}" if port and port != SSH_PORT else host


def ssh_needs(draft: Draft, table: Path, location: str, place: tuple[Node, str]) -> None:
    """The key and the server's key: ssh took them from the user's own directory."""
    name, host = f"{draft.directory}/{table[-1]}-ssh", _server(location)
    if not draft.get(table, "identity", below="options"):
        draft.set(table, "identity", SecretSource(file=name), below="options")
        said = "the vault has no home: it needs the private key that ssh took from yours"
        hint = f"install -m 600 ~/.ssh/id_ed25519 {name}"
        draft.say(Kind.BY_HAND, *place, said, hint, table=table)
    if draft.get(table, "known-hosts", below="options"):
        return
    places = os.path.dirname(draft.directory) + "/known_hosts"
    draft.set(table, "known-hosts", places, below="options")
    hint = f"ssh-keygen -F {shlex.quote(host)} | grep -v '^#' >> {places}"
    said = f"the vault needs the host key of {host}"
    draft.say(Kind.BY_HAND, *place, said, hint, table=table)


def ssh_options(draft: Draft, table: Path, node: Node, key: str) -> None:
    """`ssh -i KEY -p PORT -o UserKnownHostsFile=…`: the options that we have, the others told."""
    try:
        program, *words = shlex.split(node.text() or "") or [""]
    except ValueError:
        program, words = "", []
    if os.path.basename(program) != "ssh":
        draft.say(Kind.LEFT, node, key, "is not ssh itself with plain options", table=table)
        return
    left = []
    for name, value in _options(words):
        if name in ("-i", "IdentityFile") and value.startswith("/"):
            draft.set(table, "identity", SecretSource(file=value), below="options")
        elif name in ("-p", "Port") and value.isdigit():
            draft.set(table, "port", int(value), below="options")
        elif name == "UserKnownHostsFile" and value.startswith("/"):
            draft.set(table, "known-hosts", value, below="options")
        elif name not in HARMLESS:
            left.append(f"{name} {value}".rstrip())
    if left:
        said = f"options of ssh: {' '.join(left)}"
        hint = "repositories know options.identity, options.port and options.known-hosts"
        draft.say(Kind.LEFT, node, key, said, hint, table=table)


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options with their values; of `-o NAME=VALUE` these two."""
    queue = list(words)
    while queue:
        name, value = queue.pop(0), ""
        if name in ("-i", "-p", "-o") and queue:
            value = queue.pop(0)
        elif name.startswith(("-i", "-p", "-o")):
            name, value = name[:2], name[2:]
        if name == "-o":
            name, _, value = value.partition("=")
        yield name, value
