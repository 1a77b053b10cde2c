"""Which host keys a host shows, beside those that are pinned.

What is shown proves nothing by itself: whoever stands in between shows his own. So a fingerprint is
for a person to compare, and a difference to what is pinned is an alarm.

Sources: ssh-keyscan(1), ssh_config(5).
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.config.mistakes import Collector, MistakesError
from capkeep.config.sources import Owner, Reader
from capkeep.errors import Failure, StepError
from capkeep.host.admin_ssh import Way, on_terminal, scanning
from capkeep.host.commands import run_command
from capkeep.host.ssh_keys import KeyTextError, PublicKey, parse

KEYSCAN: Final = "/usr/bin/ssh-keyscan"
SECONDS: Final = 10
# By how good they are, each with the algorithm by which ssh asks for it.
KINDS: Final = {
    "ssh-ed25519": "ssh-ed25519", "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ssh-rsa": "rsa-sha2-512",
}  # fmt: skip


class Written(NamedTuple):
    """What the configuration says of a host, whether or not the rest of it is right."""

    host: str
    port: int = 22
    keys: tuple[str, ...] = ()
    jump: str = ""
    jump_keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Word(StrEnum):
    """What a key that is shown is, by what is pinned."""

    PINNED = "pinned"
    OTHER = "not pinned"  # of another kind than those that are
    CHANGED = "CHANGED"  # a key of that kind is pinned, and it is another one
    GONE = "NOT SHOWN"  # it is pinned, and no key of its kind is shown


class Seen(NamedTuple):
    """A key and what to think of it."""

    key: PublicKey
    word: Word


def written(directory: str, *, user_mode: bool = False) -> Mapping[str, Written]:
    """Every target of the configuration, by name, as far as it can be read.

    A target whose host key is not written yet is a mistake in a configuration, and the one for which
    this is needed. Raises MistakesError where a file cannot be read, and might pin a key.
    """
    collector = Collector()
    sources, all_read = Reader(directory, Owner(user_mode=user_mode), collector).sources()
    if not all_read and sources and collector.mistakes:
        raise MistakesError(collector.mistakes)
    found: dict[str, Written] = {}
    for source in sources:
        tables = source.data.get("targets")
        for name, table in tables.items() if isinstance(tables, dict) else ():
            if isinstance(table, dict):
                found[name] = _written(name, table)
    return found


def _written(name: str, table: Mapping[str, object]) -> Written:
    port = table.get("port")
    host, jump = table.get("host"), table.get("jump")
    return Written(
        host=host if isinstance(host, str) and host else name,
        port=port if isinstance(port, int) else 22,
        keys=_texts(table.get("host-key")),
        jump=jump if isinstance(jump, str) else "",
        jump_keys=_texts(table.get("jump-host-key")),
        groups=_texts(table.get("groups")),
    )


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, str))


def shown(host: str, port: int) -> tuple[PublicKey, ...]:
    """The keys that a host shows, the best first. Raises StepError where it shows none."""
    argv = (KEYSCAN, "-T", str(SECONDS), "-p", str(port), "-t", "ed25519,ecdsa,rsa", "--", host)
    try:
        _, said = run_command(argv, timeout=SECONDS * 3)
    except TimeoutError as error:
        raise _unreachable(host, port, str(error)) from error
    if found := best_first(_keys(said)):
        return found
    words = [line for line in said.split("\n") if line.strip() and line[0] != "#"]
    raise _unreachable(host, port, words[-1] if words else "no answer")


def _keys(said: str) -> Iterator[PublicKey]:
    """Of lines `HOST KIND KEY`; whatever else stands there is passed over."""
    for line in said.split("\n"):
        try:
            key = parse(line.partition(" ")[2])
        except KeyTextError:
            continue
        yield key._replace(comment="")


def best_first(keys: Iterable[PublicKey]) -> tuple[PublicKey, ...]:
    """Each once."""
    order = {kind: number for number, kind in enumerate(KINDS)}
    return tuple(sorted(dict.fromkeys(keys), key=lambda key: order.get(key.kind, len(order))))


def shown_behind(there: Way) -> tuple[PublicKey, ...]:
    """The same of a host behind another one, through which the caller's own ssh leads.

    Each kind costs a login there: those that are pinned are asked for, else the best that it has.
    Raises StepError.
    """
    wanted = [parse(key).kind for key in there.host_keys]
    found: list[PublicKey] = []
    with tempfile.TemporaryDirectory(prefix="capkeep-scan-") as folder:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            for kind in wanted or KINDS:
                known = f"{folder}/{kind}"
                argv = scanning(there, f"{folder}/pinned", known, KINDS.get(kind, kind))
                on_terminal(argv, null, null)
                if os.path.exists(known):
                    with open(known, encoding="utf-8", errors="replace") as file:
                        found += _keys(file.read())
                if found and not wanted:
                    break
        finally:
            os.close(null)
    if not found:
        host = there.login.rpartition("@")[2]
        raise _unreachable(host, there.port, f"nothing is shown through {there.jump}")
    return best_first(found)


def _unreachable(host: str, port: int, text: str) -> StepError:
    return StepError(
        Failure.UNREACHABLE, f"{host}, port {port}, shows no host key: {text}",
        hint="is its sshd running, and can it be reached from here?",
    )  # fmt: skip


def compare(found: Iterable[PublicKey], pinned: Iterable[str]) -> tuple[Seen, ...]:
    """What each key is, and each that is pinned and not shown. Raises KeyTextError."""
    keys = tuple(found)
    known = [parse(text) for text in pinned]
    plain = {key.plain for key in known}
    kinds = {key.kind for key in known}
    seen = [
        Seen(
            k, Word.PINNED if k.plain in plain else Word.CHANGED if k.kind in kinds else Word.OTHER
        )
        for k in keys
    ]
    kinds_shown = {key.kind for key in keys}
    return (*seen, *(Seen(k, Word.GONE) for k in known if k.kind not in kinds_shown))


def is_alarming(seen: Iterable[Seen]) -> bool:
    """Whether a host does not show what is pinned; of several kinds one is enough for ssh."""
    words = {one.word for one in seen}
    return Word.CHANGED in words or (Word.GONE in words and Word.PINNED not in words)
