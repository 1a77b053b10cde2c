"""Public ssh keys as values; pure.

Sources: sshd(8), "AUTHORIZED_KEYS FILE FORMAT"; ssh-keygen(1), -l.
"""

import base64
import hashlib
from typing import NamedTuple

from capkeep.config.ssh import parse_key
from capkeep.errors import CapkeepError
from capkeep.values import ValueMistake


class KeyTextError(CapkeepError):
    """A text that should be a public ssh key is none."""


class PublicKey(NamedTuple):
    """A public key, without options."""

    kind: str  # "ssh-ed25519"
    blob: str  # base64
    comment: str = ""

    @property
    def line(self) -> str:
        """As it is written in files of keys."""
        return " ".join(filter(None, self))

    @property
    def plain(self) -> str:
        """The same without its comment: what two of the same key have in common."""
        return f"{self.kind} {self.blob}"

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen(1) shows it: "SHA256:…"."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def parse(text: str) -> PublicKey:
    """One line with one key and perhaps a comment, and nothing in front of it. Raises KeyTextError."""
    try:
        words = parse_key(text).split(" ", 2)
    except ValueMistake as mistake:
        raise KeyTextError(f"no public ssh key: {mistake.problem}", hint=mistake.hint) from mistake
    return PublicKey(*words)
