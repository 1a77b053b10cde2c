"""Which lock files belong to whom, so that a killed engine or vault leaves none behind.

Every vault notes the locks it is about to store in a file of its own that it holds locked
(flock(2)) as long as it lives. A starting vault takes the files that nobody holds, removes the
locks they name, then the files.
"""

import fcntl
import os
import threading
from contextlib import suppress
from typing import Final

from capkeep.rooms.rest.names import LOCKS, Name, is_hash
from capkeep.rooms.rest.store import Store, StoreError

PREFIX: Final = "session-"
NOTE_LIMIT: Final = 1 << 20  # bytes of notes of one session: 8,000 locks, made and removed


class Session:
    """The lock files of one vault's life. Owns its notes; end it."""

    def __init__(self, folder: str) -> None:
        self._lock = threading.Lock()
        self._own: set[str] = set()
        self._noted = 0
        os.makedirs(folder, 0o700, exist_ok=True)
        self._path, self._fd = _claim(folder)

    def owns(self, name: str) -> bool:
        """Whether this session stored that lock."""
        with self._lock:
            return name in self._own

    def note(self, name: str) -> bool:
        """Remember a lock, on disk, before it is stored. False if there are too many."""
        with self._lock:
            if self._noted > NOTE_LIMIT:
                return False
            self._write(f"{name}\n")
            os.fsync(self._fd)
            self._own.add(name)
            return True

    def forget(self, name: str) -> None:
        """The lock was not stored by us, or is gone."""
        with self._lock:
            self._own.discard(name)
            self._write(f"-{name}\n")

    def _write(self, line: str) -> None:
        os.write(self._fd, line.encode())
        self._noted += len(line)

    def stands(self, store: Store) -> bool:
        """Whether a lock of ours is still in the store. Raises StoreError."""
        with self._lock:
            own = tuple(self._own)
        return any(store.size(Name(LOCKS, name)) is not None for name in own)

    def end(self, store: Store) -> None:
        """Remove what is left of our locks. Raises StoreError; the notes stay then."""
        with self._lock:
            _remove_locks(store, self._own)
            self._own.clear()
            os.unlink(self._path)
            os.close(self._fd)


def _claim(folder: str) -> tuple[str, int]:
    """A new file that is ours: a starting vault may take it before we have locked it."""
    while True:
        path = f"{folder}/{PREFIX}{os.urandom(8).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return path, fd
        os.close(fd)


def clean(folder: str, store: Store) -> int:
    """Remove the locks of vaults that died. Returns how many. Raises StoreError."""
    removed = 0
    try:
        entries = os.listdir(folder)
    except FileNotFoundError:
        return 0
    for entry in entries:
        if entry.startswith(PREFIX):
            removed += _clean_one(f"{folder}/{entry}", store)
    return removed


def _clean_one(path: str, store: Store) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed = _remove_locks(store, _left(os.read(fd, 2 * NOTE_LIMIT)))
        with suppress(FileNotFoundError):
            os.unlink(path)
        return removed
    except BlockingIOError:
        return 0
    finally:
        os.close(fd)


def _left(notes: bytes) -> set[str]:
    """The locks that were noted and not taken back."""
    left: set[str] = set()
    for line in notes.decode("ascii", "replace").split("\n"):
        if line.startswith("-"):
            left.discard(line[1:])
        elif is_hash(line):
            left.add(line)
    return left


def _remove_locks(store: Store, names: set[str]) -> int:
    removed = 0
    failed: StoreError | None = None
    for name in sorted(names):
        try:
            removed += store.remove(Name(LOCKS, name))
        except StoreError as error:
            failed = error
    if failed is not None:
        raise failed
    return removed
