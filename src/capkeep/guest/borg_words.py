"""What borg's client and server may say to each other: each call's words, each answer's kind.

Protocol: borg 1.2 and 1.4, borg/remote.py and borg/repository.py.
"""

import os
from collections import deque
from collections.abc import Callable
from typing import Any

ID_LENGTH = 32  # bytes
Kind = Callable[[Any], bool]


def is_id(value) -> bool:
    """Of what is stored."""
    return isinstance(value, bytes) and len(value) == ID_LENGTH


def _is_flag(value) -> bool:
    return value is None or isinstance(value, bool)


def _is_number(value) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 64)


def _is_share(value) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_seconds(value) -> bool:
    return value is None or (type(value) in (int, float) and value <= 3600)


def is_bytes(value) -> bool:
    """Of borg's texts too, which are sent without their encoding."""
    return isinstance(value, bytes)


# What may be said with each call, and of what kind it is; anything else is left out, as borg does.
_PAGE: dict[str, Kind] = {
    "limit": _is_number,
    "marker": lambda value: value is None or is_id(value),
}
WORDS_OF: dict[str, dict[str, Kind]] = {
    "__len__": {}, "rollback": {}, "load_key": {}, "get_free_nonce": {}, "break_lock": {},
    "get": {"id": is_id}, "delete": {"id": is_id}, "put": {"id": is_id, "data": is_bytes},
    "list": _PAGE, "scan": _PAGE, "save_key": {"keydata": is_bytes},
    "commit": {"save_space": _is_flag, "compact": _is_flag, "threshold": _is_share,
               "cleanup_commits": _is_flag},
    "commit_nonce_reservation": {"next_unreserved": _is_number, "start_nonce": _is_number},
    "check": {"repair": _is_flag, "save_space": _is_flag, "max_duration": _is_number},
    "open": {"path": is_bytes, "create": _is_flag, "lock_wait": _is_seconds, "lock": _is_flag,
             "exclusive": _is_flag, "append_only": _is_flag},
}  # fmt: skip
NEEDED = ("id", "data", "keydata", "path", "next_unreserved")


def _are_ids(value) -> bool:
    return isinstance(value, tuple) and all(map(is_id, value))


# What each is answered with; where nothing is said here, with nothing.
ANSWERS: dict[str, Kind] = {
    "__len__": lambda value: type(value) is int and value >= 0, "get": is_bytes, "list": _are_ids,
    "scan": _are_ids, "load_key": is_bytes, "get_free_nonce": _is_number, "open": is_id,
    "check": _is_flag,
}  # fmt: skip


class Waiting:
    """Bytes that are to be written to somebody who may be slow."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = 0
        self._parts: deque[memoryview] = deque()

    def add(self, data: bytes) -> None:
        self._parts.append(memoryview(data))
        self.size += len(data)

    def write(self) -> None:
        """As much as goes. Raises OSError."""
        try:
            while self._parts:
                part = self._parts[0]
                done = os.write(self.fd, part)
                self.size -= done
                if done < len(part):
                    self._parts[0] = part[done:]
                    return
                self._parts.popleft()
        except BlockingIOError:
            return
