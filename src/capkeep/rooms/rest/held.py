"""Removals that are held back until the keeper says that all went well.

So a check can go on while another engine decides what is not needed any more: until the end both see
everything, and if the check finds an error nothing has been removed. The lock of whoever wants to
remove stays as long, so that nobody else relies on what is about to go.
"""

import threading
from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure
from capkeep.rooms.rest.names import LOCKS, Name
from capkeep.rooms.rest.store import Store, StoreError

HANDS: Final = 4  # packs that are removed at a time
FIRST: Final = ("snapshots", "index", "keys", LOCKS)  # before the data that they are about


class Held:
    """What an engine was told is removed, and is not yet. Until `begin` nothing is held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._names: dict[Name, None] | None = None

    def begin(self) -> None:
        """From now on."""
        with self._lock:
            self._names = {} if self._names is None else self._names

    def takes(self, name: Name, *, lock: bool) -> bool:
        """Whether this removal is held back; a session's own lock is if others are."""
        with self._lock:
            if self._names is None or (lock and not self._names):
                return False
            if not lock:  # what is left of a session's own locks goes with its end
                self._names[name] = None
            return True

    def carry_out(self, locked: Callable[[], bool]) -> None:
        """Remove all of it: first what leads to the data. Raises StoreError, and goes no further.

        `locked` says whether the lock still stands that keeps others from relying on any of it.
        """
        with self._lock:
            names = list(self._names or ())
            self._names = None
        first = [[name for name in names if name.kind == kind] for kind in FIRST]
        for group in (*first, [name for name in names if name.kind not in FIRST]):
            if group and not locked():
                raise StoreError(
                    Failure.LOCKED, "somebody has taken away the lock that kept others out"
                )
            self._side_by_side(group)

    def _side_by_side(self, names: list[Name]) -> None:
        failed: list[Exception] = []

        def work() -> None:
            while names and not failed:
                try:
                    self._store.remove(names.pop())
                except IndexError:  # another hand took the last one
                    return
                except Exception as error:  # noqa: BLE001 - raised below
                    failed.append(error)

        hands = [threading.Thread(target=work, daemon=True) for _ in range(min(HANDS, len(names)))]
        for hand in hands:
            hand.start()
        for hand in hands:
            hand.join()
        if failed:
            raise failed[0]
