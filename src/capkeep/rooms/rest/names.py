"""The names of a repository's objects, and the request targets that mean them.

restic's REST backend, https://restic.readthedocs.io/en/stable/REST_backend.html; what a name is:
restic's doc/design.rst ("the filename is the SHA-256 hash of the file's contents"; `config` is the
only exception). Nothing but these targets exists, so there is no path to escape with.
"""

import re
from typing import Final, NamedTuple

CONFIG: Final = "config"
KEYS: Final = "keys"
LOCKS: Final = "locks"
KINDS: Final = ("data", "index", KEYS, LOCKS, "snapshots")

_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TARGET: Final = re.compile(rf"/({'|'.join(KINDS)})/([0-9a-f]{{64}})?", re.ASCII)


class Name(NamedTuple):
    """An object: its kind, and the sha256 of its content (empty for the config)."""

    kind: str
    hash: str = ""

    @property
    def path(self) -> str:
        """Its path in restic's REST protocol."""
        return f"{self.kind}/{self.hash}" if self.hash else self.kind


class Target(NamedTuple):
    """What a request is about: an object, the list of a kind, or the creation of a repository."""

    name: Name | None = None
    listing: str = ""
    create: bool = False


def is_hash(text: str) -> bool:
    """Whether this can be the name of an object other than the config."""
    return _HASH.fullmatch(text) is not None


def parse_target(target: str) -> Target | None:
    """What a request target means, or None if there is no such thing."""
    if target == "/" + CONFIG:
        return Target(name=Name(CONFIG))
    if target == "/?create=true":
        return Target(create=True)
    match = _TARGET.fullmatch(target)
    if match is None:
        return None
    kind, name = match.groups()
    return Target(name=Name(kind, name)) if name else Target(listing=kind)
