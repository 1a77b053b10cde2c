"""Which store serves which location: one line per scheme."""

from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure
from capkeep.plan.model import Access, Brief
from capkeep.rooms.rest.store import Store, StoreError


def _directory(brief: Brief, location: str) -> Store:
    from capkeep.rooms.rest.directory import DirectoryStore

    # Whoever removes things must be able to do so on a full disk too.
    floor = 0 if brief.access is Access.ADMIN else brief.room.grant.limits.free_space_bytes
    return DirectoryStore(location.rstrip("/") or "/", floor)


STORES: Final[dict[str, Callable[[Brief, str], Store]]] = {
    "local": _directory,
}


def open_store(brief: Brief) -> Store:
    """The store of the brief's repository. Starts helpers, reaches nothing. Raises StoreError."""
    assert brief.repository is not None
    location = brief.repository.location
    if location.startswith("/"):
        return _directory(brief, location)
    scheme, _, rest = location.partition(":")
    opener = STORES.get(scheme)
    if opener is None:
        raise StoreError(Failure.REFUSED, f"no store serves locations that begin with {scheme}:")
    return opener(brief, rest)
