"""Write what a room gives, as the one who asked for it: with his rights and in his name.

Every name is opened from the directory above it, by descriptor and without following links, so that
nobody who can write there too leads anything elsewhere; and nothing is written into a directory that is
somebody else's, unless it is in place. What somebody else owned comes back for oneself alone.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from capkeep.errors import Failure, RefusedError, StepError
from capkeep.rooms.parcel import ATTRIBUTES, Item, content, items, names_of

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DRAFT: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What a filesystem says that cannot do it: vfat and exfat EPERM, others what they like.
_CANNOT: Final = frozenset((
    errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV,
))  # fmt: skip
CONFLICT: Final = "is there already"


class Problem(NamedTuple):
    """What could not be written, and why."""

    path: str
    why: str


class Unpacker:
    """Writes below a directory. A context: leaving it gives the directories their modes and times."""

    def __init__(self, top: int, *, in_place: bool, overwrite: bool) -> None:
        """`top`: a handle on the directory, the caller's. In place, directories may be anybody's."""
        self._top = top
        self._in_place, self._overwrite = in_place, overwrite
        self._made: list[Item] = []  # directories, which can be changed as long as more may come
        self._groups = {os.getegid(), *os.getgroups()}
        self.count = self.bytes = 0
        self.problems: list[Problem] = []

    def take(self, pipe: BinaryIO) -> None:
        """All that comes. Raises ProtocolError, and OSError where nothing more can be written."""
        for item in items(pipe):
            parts = content(pipe, item)
            try:
                with self._folder(names_of(item.path)[:-1]) as folder:
                    self._write(folder, item, parts)
                self.count += 1
                self.bytes += item.size
            except (
                FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError, RefusedError
            ) as error:  # fmt: skip
                self._note(item, error)
            for _ in parts:  # what was not taken
                pass
        self._finish()

    def _note(self, item: Item, error: Exception) -> None:
        why = error.strerror if isinstance(error, OSError) else str(error)
        self.problems.append(Problem(
            item.path, CONFLICT if isinstance(error, FileExistsError) else why or str(error)
        ))  # fmt: skip

    # -- the way there

    @contextlib.contextmanager
    def _folder(self, names: Iterable[str]) -> Iterator[int]:
        """A handle on the directory of these names, which are made where they are missing."""
        here = os.dup(self._top)
        try:
            for name in names:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=here)
                below = self._enter(here, name)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _enter(self, above: int, name: str) -> int:
        # In place the way may lead through directories that may only be searched.
        below = os.open(name, _FOLDER | (os.O_PATH if self._in_place else 0), dir_fd=above)
        if not self._in_place and os.fstat(below).st_uid != os.geteuid():
            os.close(below)
            raise RefusedError(f"{name} is there already, and is somebody else's directory")
        return below

    # -- the file itself

    def _write(self, folder: int, item: Item, parts: Iterator[bytes]) -> None:
        name = names_of(item.path)[-1]
        if item.kind == "dir":
            try:
                os.mkdir(name, 0o700, dir_fd=folder)
            except FileExistsError:
                os.close(self._enter(folder, name))  # or it is something else
            else:
                self._made.append(item)
        elif item.kind == "symlink":
            self._put(folder, name, lambda draft: os.symlink(item.link, draft, dir_fd=folder))
        else:
            if not self._overwrite and _there(folder, name):
                raise FileExistsError
            self._put(folder, name, lambda draft: self._file(folder, draft, item, parts))

    def _put(self, folder: int, name: str, make: Callable[[str], None]) -> None:
        """Make it under another name, and give it its own when it is whole."""
        draft = f".{secrets.token_hex(8)}.capkeep"
        try:
            make(draft)
            if self._overwrite:
                os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                _give_name(folder, draft, name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)

    def _file(self, folder: int, draft: str, item: Item, parts: Iterator[bytes]) -> None:
        fd = os.open(draft, _DRAFT, 0o600, dir_fd=folder)
        with open(fd, "wb") as file:
            file.writelines(parts)
            file.flush()
            self._dress(fd, item)
            written = os.fstat(fd).st_size
        if written != item.size:
            raise StepError(Failure.DAMAGED, f"{item.path} was not written whole")

    def _dress(self, fd: int, item: Item) -> None:
        """Mode, group, attributes, times: never more for others than there was."""
        for name, value in item.attributes:
            if name.startswith(ATTRIBUTES):
                with contextlib.suppress(OSError):  # not every filesystem has them
                    os.setxattr(fd, name, value)
        own = item.uid == os.geteuid() and item.gid in self._groups and not item.listed
        if own and os.fstat(fd).st_gid != item.gid:
            try:
                os.fchown(fd, -1, item.gid)
            except PermissionError:  # all that is on a FAT belongs to whom it was mounted for
                own = False
        if own:
            os.fchmod(fd, item.mode & 0o777)
        else:
            usable = 0o700 if item.kind == "dir" or item.mode & 0o111 else 0o600
            os.fchmod(fd, usable)
        os.utime(fd, ns=(item.mtime_ns, item.mtime_ns))

    def _finish(self) -> None:
        """The deepest first: what is in them does not change them any more."""
        for item in reversed(self._made):
            *above, name = names_of(item.path)
            with self._folder(above) as folder:
                fd = os.open(name, _FOLDER, dir_fd=folder)
                try:
                    if os.fstat(fd).st_uid == os.geteuid():
                        self._dress(fd, item)
                finally:
                    os.close(fd)


def _give_name(folder: int, draft: str, name: str) -> None:
    """Rename without replacing anything. Raises FileExistsError, OSError.

    FAT, SMB and some that FUSE serves have no hard links, and not all of those know another way
    without a gap: with the name taken first, only who takes that away again can lose what he puts there.
    """
    try:
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    else:
        return
    from capkeep.kernel.libc import rename_noreplace

    try:
        rename_noreplace(folder, draft, name)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    else:
        return
    os.close(os.open(name, _DRAFT, 0o600, dir_fd=folder))
    try:
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(name, dir_fd=folder)
        raise


def _there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
