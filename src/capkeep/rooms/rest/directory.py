"""A repository in a local directory, in restic's own layout (restic, doc/design.rst).

An object becomes visible under its name by link(2) or renameat2(2) with RENAME_NOREPLACE, which
the kernel does at once or not at all: two writers of a name cannot both win, and none can replace.
"""

import ctypes
import errno
import fcntl
import os
import re
import stat
import threading
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure
from capkeep.rooms.rest.names import CONFIG, KINDS, Name, is_hash
from capkeep.rooms.rest.store import AlreadyThere, Blob, Item, NotThere, StoreError, Upload
from capkeep.rooms.service import explain
from capkeep.values import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.rooms.rest.uncached import Uncached

FILE_MODE: Final = 0o400  # restic's: local backend, since 0.12 (internal/backend/local)
DIR_MODE: Final = 0o700
TMP: Final = "tmp"  # where objects wait on filesystems without O_TMPFILE
RENAME_NOREPLACE: Final = 1
AT_FDCWD: Final = -100
BLOCK: Final = 4096  # bytes in which most filesystems give space
LEAST_FILES: Final = 1000  # that must still find a place (inodes)

_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_SHARD: Final = re.compile(r"[0-9a-f]{2}", re.ASCII)


class DirectoryStore:
    """A repository below `root`. The root itself is never made: it may be an unmounted disk."""

    def __init__(self, root: str, floor: int, quota: int = 0) -> None:
        """`floor`: bytes that must stay free; `quota`: bytes that it may all have, 0 for any number."""
        self.root = root
        self.patience = 0.0
        self.anonymous = True  # whether files may wait without a name (O_TMPFILE)
        self._floor = floor
        self._quota = quota
        self._there = -1  # bytes that it has; counted only where there is a quota
        self._lock = threading.Lock()
        self._reserved = 0  # bytes announced by uploads under way

    # -- Store

    def preflight(self) -> None:
        """The directory must be there, and ours to read and write."""
        try:
            mode = os.stat(self.root).st_mode
        except FileNotFoundError:
            raise StoreError(
                Failure.NO_REPOSITORY, f"{self.root} does not exist; is its disk mounted?"
            ) from None
        except OSError as error:
            raise explain(error, self.root) from error
        if not stat.S_ISDIR(mode):
            raise StoreError(Failure.NO_REPOSITORY, f"{self.root} is not a directory")
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreError(Failure.DENIED, f"{self.root} is not readable and writable for us")
        if os.path.isdir(f"{self.root}/{TMP}"):
            self._sweep()

    def create(self) -> None:
        """restic's directories, the 256 shards of data included."""
        shards = [f"data/{n:02x}" for n in range(256)]
        try:
            for folder in (*KINDS, *shards):
                with suppress(FileExistsError):
                    os.mkdir(f"{self.root}/{folder}", DIR_MODE)
            _sync(f"{self.root}/data")
            _sync(self.root)
        except OSError as error:
            raise explain(error, self.root) from error

    def size(self, name: Name) -> int | None:
        try:
            status = os.stat(self._path(name), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explain(error, name.path) from error
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def items(self, kind: str) -> list[Item]:
        try:
            if kind != "data":
                return _items(f"{self.root}/{kind}")
            found: list[Item] = []
            for shard in os.listdir(f"{self.root}/{kind}"):
                if _SHARD.fullmatch(shard):
                    found += _items(f"{self.root}/{kind}/{shard}")
            return found
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain(error, kind) from error

    def read(self, name: Name, offset: int, length: int | None) -> Blob:
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise NotThere(name.path) from None
        except OSError as error:
            raise explain(error, name.path) from error
        return _FilePart(fd, name, offset, length)

    def write(self, name: Name, length: int) -> Upload:
        path = self._path(name)
        if os.path.lexists(path):
            raise AlreadyThere(name.path)
        self._reserve(length)
        try:
            return self._open(name, path, length)
        except BaseException:
            self.release(length)
            raise

    def remove(self, name: Name) -> bool:
        path = self._path(name)
        try:
            os.unlink(path)
            _sync(os.path.dirname(path))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise explain(error, name.path) from error
        return True

    def close(self) -> None:
        """Nothing is held."""

    # -- how

    def _path(self, name: Name) -> str:
        if name.kind == CONFIG:
            return f"{self.root}/{CONFIG}"
        shard = f"{name.hash[:2]}/" if name.kind == "data" else ""
        return f"{self.root}/{name.kind}/{shard}{name.hash}"

    def _reserve(self, length: int) -> None:
        """Refuse an upload that would leave less free than the floor, others' counted in."""
        try:
            state = os.statvfs(self.root)
        except OSError as error:
            raise explain(error, self.root) from error
        with self._lock:
            if self._quota:
                self._refuse_beyond_quota(length)
            if state.f_files and state.f_favail < LEAST_FILES:
                text = f"no more than {state.f_favail} files find a place where {self.root} is"
                raise StoreError(Failure.NO_SPACE, text)
            if state.f_bavail * state.f_frsize - self._reserved - length < self._floor:
                raise StoreError(
                    Failure.NO_SPACE,
                    f"less than {self._floor >> 20} MiB would stay free where {self.root} is",
                )
            self._reserved += length

    def _refuse_beyond_quota(self, length: int) -> None:
        if self._there < 0:
            self._there = sum(_takes(item.size) for kind in KINDS for item in self.items(kind))
        if self._there + _takes(self._reserved + length) > self._quota:
            raise StoreError(
                Failure.NO_SPACE,
                f"the repository may have {format_size(self._quota)}, and would have more: it is full",
            )

    def release(self, length: int, *, stored: bool = False) -> None:
        """An upload of that length has ended."""
        with self._lock:
            self._reserved -= length
            self._there += _takes(length) if stored and self._there >= 0 else 0

    def _open(self, name: Name, path: str, length: int) -> "_FileUpload":
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            self._make_shard(name, folder)
        try:
            fd, temporary = self._open_waiting(folder)
        except OSError as error:
            raise explain(error, name.path) from error
        return _FileUpload(self, fd, temporary, path, length)

    def _make_shard(self, name: Name, folder: str) -> None:
        """A shard may be missing; a kind's folder may not, or this is no repository."""
        if name.kind != "data":
            raise NotThere("there is no repository")
        try:
            os.mkdir(folder, DIR_MODE)
            _sync(os.path.dirname(folder))
        except FileExistsError:
            return
        except FileNotFoundError:
            raise NotThere("there is no repository") from None
        except OSError as error:
            raise explain(error, folder) from error

    def _open_waiting(self, folder: str) -> tuple[int, str]:
        """A file that nobody sees, and its waiting name where it must have one."""
        flags = os.O_WRONLY | os.O_CLOEXEC
        if self.anonymous:
            try:
                return os.open(folder, flags | os.O_TMPFILE, FILE_MODE), ""
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                self.anonymous = False  # this filesystem has none: NFS, SMB, FAT, FUSE
        return self._open_named(flags)

    def _open_named(self, flags: int) -> tuple[int, str]:
        """A waiting file, locked while its writer lives, so that `_sweep` can tell."""
        with suppress(FileExistsError):
            os.mkdir(f"{self.root}/{TMP}", DIR_MODE)
        path = f"{self.root}/{TMP}/capkeep-{os.urandom(8).hex()}"
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with suppress(OSError):  # some network filesystems have no locks: then nothing is swept
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd, path

    def _sweep(self) -> None:
        """Remove what vaults that were killed left waiting."""
        with suppress(OSError):
            for entry in os.listdir(f"{self.root}/{TMP}"):
                if not entry.startswith("capkeep-"):
                    continue
                path = f"{self.root}/{TMP}/{entry}"
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                except BlockingIOError:
                    continue
                finally:
                    os.close(fd)


class _FilePart:
    """A part of a file."""

    def __init__(self, fd: int, name: Name, offset: int, length: int | None) -> None:
        self._file = open(fd, "rb", buffering=0)  # noqa: SIM115 closed by `close`
        self._name = name
        self.size = os.fstat(fd).st_size
        self._offset = offset
        rest = max(0, self.size - offset)
        self.length = rest if length is None else min(rest, length)

    def read_into(self, buffer: memoryview) -> int:
        try:
            got = os.preadv(self._file.fileno(), [buffer], self._offset)
        except OSError as error:
            raise explain(error, self._name.path) from error
        if not got:
            raise StoreError(Failure.DAMAGED, f"{self._name.path} became shorter while it was read")
        self._offset += got
        return got

    def close(self) -> None:
        self._file.close()


class _FileUpload:
    """A file without a name (O_TMPFILE, open(2)), or with a temporary one where need be."""

    def __init__(
        self, store: DirectoryStore, fd: int, temporary: str, path: str, length: int
    ) -> None:
        self._store = store
        self._fd = fd
        self._temporary = temporary
        self._path = path
        self._length = length
        self._stored = False
        self._uncached: Uncached | None = None  # of what comes out of a pipe

    def write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise explain(error, self._path) from error

    def pour(self, pipe: int, count: int) -> int:
        """From the pipe to the disk."""
        try:
            if self._uncached is None:
                # Loaded when the first pack comes: every run waits for the start of its vault.
                from capkeep.rooms.rest.uncached import Uncached

                self._uncached = Uncached(self._fd, self._length)
            return self._uncached.pour(pipe, count)
        except OSError as error:
            raise explain(error, self._path) from error

    def commit(self) -> None:
        """File first, then its name, then the folder that holds the name."""
        try:
            if self._uncached:
                self._uncached.finish()
            os.fsync(self._fd)
            self._name_it()
            _sync(os.path.dirname(self._path))
            self._stored = True
        except FileExistsError:
            raise AlreadyThere(self._path) from None
        except OSError as error:
            raise explain(error, self._path) from error
        finally:
            self.abort()

    def _name_it(self) -> None:
        if not self._temporary:
            # A descriptor for the folder makes CPython use linkat(2), which follows the link.
            folder = os.open(os.path.dirname(self._path), os.O_PATH | os.O_DIRECTORY)
            try:
                os.link(
                    f"/proc/self/fd/{self._fd}", os.path.basename(self._path),
                    dst_dir_fd=folder, follow_symlinks=True,
                )  # fmt: skip
            finally:
                os.close(folder)
            return
        try:
            os.link(self._temporary, self._path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            rename_noreplace(self._temporary, self._path)
            self._temporary = ""

    def abort(self) -> None:
        if self._fd < 0:
            return
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary)
        os.close(self._fd)
        self._fd = -1
        self._store.release(self._length, stored=self._stored)


def _takes(size: int) -> int:
    """Bytes of the disk that a file of that size takes, itself included: many small ones take much."""
    return -(-size // BLOCK) * BLOCK + BLOCK


def _items(folder: str) -> list[Item]:
    with os.scandir(folder) as entries:
        return [
            Item(e.name, e.stat(follow_symlinks=False).st_size)
            for e in entries
            if is_hash(e.name) and e.is_file(follow_symlinks=False)
        ]


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network filesystems cannot, restic accepts it too
            raise
    finally:
        os.close(fd)


def rename_noreplace(old: str, new: str) -> None:
    """renameat2(2): FAT and SMB have no hard links, but this. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.renameat2(
        AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), RENAME_NOREPLACE
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)
