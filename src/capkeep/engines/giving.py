"""What an engine must be able to tell of single files, for a giver: those that can, in a file of their own.

What decides about a file's reader must come from the engine with the file's access control list.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from capkeep.engines.base import Call, Command

Attributes = tuple[tuple[str, str], ...]  # name and value, in base64


class Node(NamedTuple):
    """An entry of a snapshot with all that is needed to give it to somebody."""

    kind: str  # as `Entry.kind`
    mode: int  # as st_mode without the file type
    uid: int
    gid: int
    size: int
    mtime: str  # ISO 8601, with nanoseconds and offset
    link: str  # of a symlink: where it leads
    attributes: Attributes
    below: str  # what to ask for, for the entries of a directory; "" of anything else


class Gives(Protocol):
    """What giving single files needs of an engine. Parsing raises ValueError for what is no output."""

    plain_files: bool  # of a file `content` is what it holds, not an archive
    kinds_in_archives: (
        bool  # what is no file, directory or link does not look like an empty file there
    )

    def tops(self, listed: bytes) -> dict[str, str]:
        """By snapshot's id, from the output of `snapshots`: what to ask for, for its first entries."""

    def above(self, top: str) -> Mapping[str, Node]:
        """By path, the directories above the sources, where a listing does not hold them."""

    def look(self, call: Call, below: str, folder: str, names: tuple[str, ...]) -> Command:
        """Print what tells of the first name in a directory, or of all, each in the one before."""

    def seen(self, printed: bytes, below: str, folder: str, names: tuple[str, ...]) -> list[Node]:
        """The entries of these names, as far as they are there and it was printed."""

    def folders(self, printed: bytes) -> Mapping[str, Node]:
        """By name, every directory in what was printed to look for one name."""

    def listed(self, call: Call, snapshot: str) -> Command:
        """Print a line for each entry, for the engine's `parse_ls_line` and `told`."""

    def told(self, line: bytes) -> Attributes | None:
        """An entry's attributes, if a listing's line tells them."""

    def content(self, call: Call, snapshot: str, path: str) -> Command:
        """Print what a file holds; of a directory, a tar archive of it and all that is below it."""
