"""What a server may ask the reader of another host: four actions, with options of fixed types; pure.

Both sides put a request together anew from this vocabulary: the puller what its runner says, the
answerer what the server says.
"""

from collections.abc import Callable
from typing import Final

from capkeep.rooms.protocol import Message, ProtocolError

Check = Callable[[object], bool]
NUMBER_MOST: Final = 1 << 64
PATHS_MOST: Final = 1000
PATH_MOST: Final = 4096  # characters (PATH_MAX)
TAGS_MOST: Final = 64
RATES: Final = ("upload", "download")
NAME_MOST: Final = 255
NOT_IN_NAMES: Final = frozenset(",{}\\")  # borg would put something in the place of braces
PASSWORD_MOST: Final = 1 << 16


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    """A whole number of at most 64 bits, and a sign."""
    return type(value) is int and -NUMBER_MOST < value < NUMBER_MOST


def _is_nonce(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 64


def _is_paths(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= PATHS_MOST
        and all(isinstance(p, str) and len(p) <= PATH_MOST for p in value)
    )


ACTIONS: Final[dict[str, dict[str, Check]]] = {
    "backup": {
        "dry_run": _is_flag,
        **dict.fromkeys(("turn", "seconds", "files", "bytes"), _is_number),
    },
    "sums": {"paths": _is_paths, "nonce": _is_nonce, "before": _is_number},
    "init": {},
    "probe": {},
}


def request_of(said: Message) -> Message:
    """The request that this is, made anew. Raises ProtocolError for anything else.

    Its options, `password` and what is the snapshot's: `host`, `tags`, and `rates` (bytes a second).
    """
    action, options = said.get("action"), said.get("options", {})
    known = ACTIONS.get(action) if isinstance(action, str) else None
    if known is None or not isinstance(options, dict):
        raise ProtocolError("an unknown action")
    if said.keys() - {"action", "options", *_MORE}:
        raise ProtocolError("a request with more than a request has")
    for name, value in options.items():
        if name not in known or not known[name](value):
            raise ProtocolError(
                f"option {str(name)[:40]} is not one of that action's, or no such value"
            )
    made: Message = {"action": action, "options": {n: options[n] for n in known if n in options}}
    for name, fits in _MORE.items():
        if name in said:
            if not fits(said[name]):
                raise ProtocolError(f"{name} cannot be that")
            made[name] = said[name]
    return made


def _is_password(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= PASSWORD_MOST and "\0" not in value


def _is_tag(value: object) -> bool:
    return (
        isinstance(value, str) and 0 < len(value) <= NAME_MOST
        and value.isprintable() and value == value.strip() and NOT_IN_NAMES.isdisjoint(value)
    )  # fmt: skip


def _is_host(value: object) -> bool:
    return _is_tag(value) and not {" ", "/"} & {*str(value)} and not str(value).startswith("-")


def _is_tags(value: object) -> bool:
    return isinstance(value, list) and len(value) <= TAGS_MOST and all(map(_is_tag, value))


def _is_rates(value: object) -> bool:
    return isinstance(value, dict) and all(
        name in RATES and _is_number(rate) and rate >= 0 for name, rate in value.items()
    )


_MORE: Final[dict[str, Check]] = {
    "password": _is_password,
    "host": _is_host,
    "tags": _is_tags,
    "rates": _is_rates,
}
