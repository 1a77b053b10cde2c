"""Public ssh keys as text; pure.

Sources: sshd(8), "AUTHORIZED_KEYS FILE FORMAT"; RFC 4253, section 6.6; ssh-keygen(1), -l.
"""

import base64
import binascii
import hashlib
import struct
from typing import NamedTuple

from capkeep.errors import CapkeepError


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
    """One line with one key and perhaps a comment. Raises KeyTextError.

    The kind that is written must be the one in the key itself, so nothing that is put into a file of
    keys is read as anything else there.
    """
    kind, _, rest = text.strip(" ").partition(" ")
    blob, _, comment = rest.strip(" ").partition(" ")
    if not text.isprintable():
        raise KeyTextError("a public key is one line of text")
    try:
        raw = base64.b64decode(blob, validate=True)
        (length,) = struct.unpack(">I", raw[:4])
        named = raw[4 : 4 + length].decode("ascii")
    except (binascii.Error, struct.error, UnicodeDecodeError, ValueError) as error:
        raise KeyTextError(f"this is no public ssh key: {text[:60]}") from error
    if not kind or named != kind:
        raise KeyTextError(f"this is no public ssh key: {text[:60]}")
    return PublicKey(kind, blob, comment.strip(" "))
