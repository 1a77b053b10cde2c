"""What a place that holds a repository can do. The policy is not in here: it is in `front`."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from capkeep.errors import CapkeepError
from capkeep.rooms.rest.names import Name
from capkeep.rooms.service import StoreError as StoreError


class AlreadyThere(CapkeepError):
    """An object of that name exists; nothing was changed."""


class NotThere(CapkeepError):
    """There is no such object, or no repository to put it into."""


class Item(NamedTuple):
    """One object in a listing."""

    name: str
    size: int  # bytes


class Blob(Protocol):
    """A part of an object, ready to be sent. Close it."""

    size: int  # bytes of the whole object
    length: int  # bytes of this part

    def read_into(self, buffer: memoryview) -> int:
        """The next bytes, at least one and as many as there is place for. Raises StoreError."""

    def close(self) -> None:
        """Gives back what it holds."""


class Upload(Protocol):
    """An object on its way in. Nobody sees it before `commit`. Commit it or abort it."""

    @property
    def pour(self) -> Callable[[int, int], int] | None:
        """Takes bytes out of a pipe as they are, where nobody has to look at them.

        It is told of a pipe that has something, and how much to take at most; it says how much
        that was, 0 if nothing more will come. Raises StoreError.
        """

    def write(self, data: memoryview) -> None:
        """Take the next bytes. Raises StoreError, AlreadyThere."""

    def commit(self) -> None:
        """Make it durable and visible under its name. Raises AlreadyThere, StoreError."""

    def abort(self) -> None:
        """Forget it; safe after commit, and safe to call again."""


class Store(Protocol):
    """A place that holds one repository. Used by several threads at a time."""

    patience: float  # seconds without one success after which it counts as unreachable

    def preflight(self) -> None:
        """Whether the place can be reached and used, told early. Raises StoreError."""

    def create(self) -> None:
        """Prepare an empty repository; changes nothing that is there. Raises StoreError."""

    def size(self, name: Name) -> int | None:
        """Bytes of an object, or None if there is none. Raises StoreError."""

    def items(self, kind: str) -> list[Item]:
        """All objects of a kind; may hold other names, which the caller drops. Raises StoreError."""

    def read(self, name: Name, offset: int, length: int | None) -> Blob:
        """A part of an object, at most up to its end. Raises NotThere, StoreError."""

    def write(self, name: Name, length: int) -> Upload:
        """Begin to add an object of `length` bytes. Raises NotThere, AlreadyThere, StoreError."""

    def remove(self, name: Name) -> bool:
        """Remove an object; False if there was none. Raises StoreError."""

    def close(self) -> None:
        """Gives back connections and ends helpers."""
