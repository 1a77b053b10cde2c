"""What ssh is told of another host: keys, names and options that can be nothing else; pure.

All of it ends up in arguments of ssh(1) or in its files, one of them on another host, where a line
break, a leading "-" or an option in front of a key would mean something.

Sources: sshd(8), "AUTHORIZED_KEYS FILE FORMAT"; RFC 4253, section 6.6; ssh_config(5).
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from capkeep.config.mistakes import nearest
from capkeep.values import ValueMistake

# Kinds of public keys, and how many fields each has (RFC 4253, 5656, 8709; OpenSSH's PROTOCOL.u2f).
KEY_FIELDS: Final[Mapping[str, int]] = {
    "ssh-ed25519": 2,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "ssh-rsa": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}
ED25519_BYTES: Final = 32
MOST_BYTES: Final = 4096  # of a key: RSA with 16384 bits has 2073
_ALGORITHMS: Final = re.compile(r"[+^-]?[A-Za-z0-9@._*?!-]+(,[A-Za-z0-9@._*?!-]+)*")
OPTIONS: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "Compression": (re.compile(r"yes|no"), '"yes" or "no"'),
    "Ciphers": (_ALGORITHMS, '"aes128-gcm@openssh.com", or what `ssh -Q cipher` lists'),
    "MACs": (_ALGORITHMS, '"hmac-sha2-256-etm@openssh.com", or what `ssh -Q mac` lists'),
    "KexAlgorithms": (_ALGORITHMS, '"curve25519-sha256", or what `ssh -Q kex` lists'),
    "HostKeyAlgorithms": (_ALGORITHMS, '"ssh-ed25519", or what `ssh -Q key` lists'),
    "IPQoS": (re.compile(r"[A-Za-z0-9]{1,16}( [A-Za-z0-9]{1,16})?"), '"af21", "none", "cs1"'),
    "AddressFamily": (re.compile(r"any|inet6?"), '"any", "inet" or "inet6"'),
    "BindAddress": (re.compile(r"[0-9A-Za-z:][0-9A-Za-z.:-]{0,63}"), "an address of this host"),
    "ConnectTimeout": (re.compile(r"[1-9][0-9]{0,2}"), 'seconds, such as "20", at most "999"'),
}  # fmt: skip
_LABELS: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_.])?")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
NOT_IN_TAGS: Final = frozenset("{}\\")  # borg would put something in the place of braces
MOST_TAG: Final = 255  # characters
MOST_TAGS: Final = 63  # and capkeep's own
KEY_HINT: Final = 'write it as its file NAME.pub has it: "ssh-ed25519 AAAA…"'


def parse_key(text: str) -> str:
    """One public key, its kind, itself and perhaps a comment, with single blanks between.

    Raises ValueMistake for everything else: options, a host's name in front, a second line, a
    certificate, a key of another kind than it says. Never repeats the text, which may be a
    private key.
    """
    if not text.isascii() or not text.isprintable():
        said = "a public key is one line of plain ASCII"
        if "PRIVATE KEY" in text:
            said = "this is a private key, which must not be written in the configuration"
        raise ValueMistake(said, KEY_HINT)
    words = text.split()
    if not words:
        raise ValueMistake("is empty", KEY_HINT)
    if words[0] not in KEY_FIELDS:
        raise ValueMistake(*_no_kind(words))
    if len(words) < 2 or not _is_key(words[0], words[1]):
        raise ValueMistake(f"what follows {words[0]} is not such a public key", KEY_HINT)
    return " ".join(words)


def plain_key(text: str) -> str:
    """A key of `parse_key`'s without its comment."""
    return " ".join(text.split(" ", 2)[:2])


def _no_kind(words: list[str]) -> tuple[str, str]:
    """What is wrong with a text that does not begin with a kind of key."""
    after = next((i for i, word in enumerate(words) if word in KEY_FIELDS), 0)
    if after:
        return "something stands before the key", f'begin with "{words[after]} …"'
    if "-cert-v01@" in words[0]:
        return "a certificate is no key", KEY_HINT
    if "PRIVATE" in words:
        return "this is a private key, which must not be written in the configuration", KEY_HINT
    return "is no public ssh key", KEY_HINT


def _is_key(kind: str, blob: str) -> bool:
    """Whether the base64 text is a public key of that kind: its name, then all fields, no more."""
    try:
        raw = base64.b64decode(blob, validate=True)
    except (binascii.Error, ValueError):
        return False
    fields = _fields(raw)
    if fields is None or len(raw) > MOST_BYTES or len(fields) != KEY_FIELDS[kind]:
        return False
    if fields[0] != kind.encode() or not all(fields):
        return False
    if kind.startswith("ecdsa-") and fields[1] != kind.rpartition("-")[2].encode():
        return False
    return "ed25519" not in kind or len(fields[1]) == ED25519_BYTES


def _fields(raw: bytes) -> list[bytes] | None:
    """The strings of RFC 4251, section 5, that the bytes are made of; None if they are not."""
    found = []
    while raw:
        length = int.from_bytes(raw[:4], "big")
        if len(raw) < 4 + length:
            return None
        found.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return found


def check_host(text: str) -> None:
    """Raises ValueMistake for what is neither a host's name nor an address."""
    hint = 'write host = "web1.example.org", or an address'
    if "@" in text:
        raise ValueMistake(f"{text!r} is a login, not a host", f"{hint}; the login is user = …")
    if _is_address(text) or (_LABELS.fullmatch(text) and ".." not in text):
        return
    if text.count(":") == 1:
        raise ValueMistake(f"{text!r} is not a host", f"{hint}; the port is port = …")
    raise ValueMistake(f"{text!r} is not a host's name", hint)


def check_name(text: str) -> None:
    """Raises ValueMistake for what a target would not take for its name in a snapshot."""
    if not _LABELS.fullmatch(text):
        raise ValueMistake(f"{text!r} is not a host name", 'write host-name = "web1"')


def check_tag(text: str) -> None:
    """Raises ValueMistake for a tag that a target would not take."""
    if len(text) > MOST_TAG or not NOT_IN_TAGS.isdisjoint(text):
        said = f"a target takes no tag with {' or '.join(sorted(NOT_IN_TAGS))} in it"
        raise ValueMistake(f"{said}, or with more than {MOST_TAG} characters", "choose another")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # of a scope: ssh reads %-words in some places


def check_user(text: str) -> None:
    """Raises ValueMistake for what cannot be the name of a login."""
    if not _USER.fullmatch(text):
        raise ValueMistake(f"{text!r} is not a login", 'write user = "capkeep-answerer"')


class Jump(NamedTuple):
    """A host on the way."""

    user: str
    host: str
    port: int

    @property
    def text(self) -> str:
        """As ssh(1) takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


def parse_jump(text: str) -> Jump:
    """`user@host`, `user@host:port`, `user@[address]:port`. Raises ValueMistake."""
    hint = 'write jump = "user@gate.example.org:22"'
    if "," in text:
        raise ValueMistake("there can be one host on the way", hint)
    user, at, rest = text.rpartition("@")
    if not at:
        raise ValueMistake(f"{text!r} does not say whom to log in as there", hint)
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::([0-9]{1,5}))?", rest)
    port = int(found[3] or 22) if found else 0
    if not found or not 0 < port < 65536:
        raise ValueMistake(f"{text!r} is not user@host:port", hint)
    host = found[1] or found[2] or ""
    for check, word in ((check_user, user), (check_host, host)):
        try:
            check(word)
        except ValueMistake as mistake:
            raise ValueMistake(mistake.problem, hint) from mistake
    return Jump(user, host, port)


def check_option(name: str, value: str) -> None:
    """Raises ValueMistake for an option that cannot be set here, and for what it cannot be set to."""
    if name not in OPTIONS:
        guess = nearest(name, [known.lower() for known in OPTIONS])
        named = next((known for known in OPTIONS if known.lower() == guess), "")
        hint = f"did you mean {named}?" if named else f"known here: {', '.join(OPTIONS)}"
        raise ValueMistake("is no option of ssh's that can be set here", hint)
    pattern, example = OPTIONS[name]
    if not pattern.fullmatch(value):
        raise ValueMistake(f"{value!r} is not what {name} takes", f"write {example}")
