"""The one time that whoever may only add makes the repository: its one key, and after that its config.

Of a repository whose password its target keeps, whose keeper cannot make it. Only while it is asked to be
made, by one session at a time, and only until there is a config.
"""

import fcntl
import os
import threading
from typing import Final

from capkeep.errors import Failure
from capkeep.rooms.rest.names import CONFIG, KEYS, Name, is_hash
from capkeep.rooms.rest.store import Store, StoreError

BEGUN: Final = (
    "a key is there and no config: it was begun to be made before, or has lost its config; where nothing"
    " else is in it, remove that key at the repository's place"
)
LOCK: Final = "making"  # in the vaults' own directory: held by the session that makes it


class Making:
    """What of that a session may still do: nothing, until `begin`. Used by several threads at a time."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._lock = threading.Lock()
        self._held = -1
        self._key: Name | None = None  # the only one that may come
        self._there = False  # that one is
        self._config = False  # is on its way

    def begin(self) -> None:
        """From now on, unless another session is at it. The lock goes with this process, or by `close`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f"{self._folder}/{LOCK}", flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return
        with self._lock:
            self._held = fd

    def is_open(self) -> bool:
        """Whether there is still nothing that could be spoilt. Raises StoreError."""
        return self._held >= 0 and self._store.size(Name(CONFIG)) is None

    def admits(self, name: Name) -> bool:
        """Whether this object may be added. Raises StoreError.

        Whatever was once let begin may come in later: so the first key is the only one that ever may,
        and a config, after which there is no other, waits until that is there. Tell how it ended.
        """
        with self._lock:
            if not self.is_open():
                return False
            if name.kind == CONFIG:
                first, self._config = self._there and not self._config, self._there
                return first
            if name.kind != KEYS:
                return False
            if self._key is None and any(is_hash(item.name) for item in self._store.items(KEYS)):
                raise StoreError(Failure.REFUSED, BEGUN)
            self._key = self._key or name
            return name == self._key and not self._there

    def ended(self, name: Name, *, added: bool) -> None:
        """What was admitted is there, or has not come and may be tried again."""
        with self._lock:
            self._there = self._there or (added and name == self._key)
            self._config = self._config and name.kind != CONFIG

    def close(self) -> None:
        """Let others."""
        with self._lock:
            if self._held >= 0:
                os.close(self._held)
            self._held = -1
