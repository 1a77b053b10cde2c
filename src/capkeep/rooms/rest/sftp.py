"""A repository on an sftp server, in the same layout and as safely as restic itself keeps it.

An object is written under another name and then renamed. In version 3 of the protocol a rename
fails where the new name exists (draft-ietf-secsh-filexfer-02, 6.5); OpenSSH's server does it with
link(2), so that nothing can be replaced in between (sftp-server.c, process_rename).
"""

import os
import stat
import struct
import time
from collections import deque
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure
from capkeep.rooms.rest import sftp_wire as sftp
from capkeep.rooms.rest.names import CONFIG, KINDS, Name
from capkeep.rooms.rest.sftp_wire import Answer, Attributes, LostError, Reader, SftpError, SftpWire
from capkeep.rooms.rest.ssh import Login, Ssh
from capkeep.rooms.rest.store import AlreadyThere, Blob, Item, NotThere, StoreError, Upload

HELLO_SECONDS: Final = 12
STALL_SECONDS: Final = 90
PATIENCE_SECONDS: Final = 60.0
BLOCK: Final = 32 << 10  # bytes of data that every server takes in one packet
WINDOW: Final = 64  # packets under way: 2 MiB
FILE_MODE: Final = 0o400
DIR_MODE: Final = 0o700
TMP: Final = "tmp"
TMP_SECONDS: Final = 2 * 24 * 3600  # what waits longer was left by a vault that was killed
FULL_BYTES: Final = 64 << 20  # with less than this free, a write that failed found the disk full
SHARDS: Final = tuple(f"{n:02x}" for n in range(256))


class SftpStore:
    """A repository below `root` on a server. Close it."""

    def __init__(self, login: Login, root: str, folder: str) -> None:
        self.patience = PATIENCE_SECONDS
        self._login = login
        self._root = root.rstrip("/") or "/"
        self._ssh = Ssh(login, folder)
        try:
            self.wire = SftpWire(self._ssh.start(), STALL_SECONDS)
        except BaseException:
            self._ssh.close()
            raise

    # -- Store

    def preflight(self) -> None:
        """Log in, and look whether the directory is there."""
        try:
            self.wire.hello(HELLO_SECONDS)
        except LostError as error:
            raise self._ssh.explain(str(error)) from error
        finally:
            self._ssh.forget_key()
        attributes = self._attributes(self._root)
        if attributes is None or not stat.S_ISDIR(attributes.mode):
            raise StoreError(
                Failure.NO_REPOSITORY,
                f"{self._login.host} has no directory {self._root}; is its disk mounted?",
            )
        self._sweep()

    def create(self) -> None:
        folders = [*KINDS, TMP, *(f"data/{s}" for s in SHARDS)]
        try:
            for part in (folders[: len(KINDS) + 1], folders[len(KINDS) + 1 :]):
                self.wire.ask_all((sftp.MKDIR, self._at(f) + _modes(DIR_MODE)) for f in part)
        except LostError as error:
            raise self.explain(error, "") from error
        if self._attributes(f"{self._root}/data/ff") is None:
            raise StoreError(Failure.DENIED, f"{self._root} cannot be written to by our user")

    def size(self, name: Name) -> int | None:
        attributes = self._attributes(self._path(name))
        return None if attributes is None else attributes.size

    def items(self, kind: str) -> list[Item]:
        folders = [f"{kind}/{s}" for s in SHARDS] if kind == "data" else [kind]
        try:
            found = self._list(folders)
        except LostError as error:
            raise self.explain(error, kind) from error
        return [Item(n, a.size) for n, a in found if stat.S_ISREG(a.mode)]

    def read(self, name: Name, offset: int, length: int | None) -> Blob:
        size = self.size(name)
        if size is None:
            raise NotThere(name.path)
        try:
            path = sftp.text(os.fsencode(self._path(name)))
            handle = self._handle(sftp.OPEN, path + struct.pack(">II", sftp.READING, 0))
        except SftpError as error:
            raise self.explain(error, name.path) from error
        except LostError as error:
            raise self.explain(error, name.path) from error
        return _Part(self, handle, size, offset, length)

    def write(self, name: Name, length: int) -> Upload:  # noqa: ARG002 nobody asks here
        path = self._path(name)
        if self._attributes(path) is not None:
            raise AlreadyThere(name.path)
        return _Upload(self, name, path, f"{self._root}/{TMP}/capkeep-{os.urandom(8).hex()}")

    def remove(self, name: Name) -> bool:
        try:
            self.wire.ask(sftp.REMOVE, sftp.text(os.fsencode(self._path(name))))
        except SftpError as error:
            if error.code == sftp.NO_SUCH_FILE:
                return False
            raise self.explain(error, name.path) from error
        except LostError as error:
            raise self.explain(error, name.path) from error
        return True

    def close(self) -> None:
        self.wire.close()
        self._ssh.close()

    # -- how

    def _at(self, relative: str) -> bytes:
        return sftp.text(os.fsencode(f"{self._root}/{relative}"))

    def _path(self, name: Name) -> str:
        if name.kind == CONFIG:
            return f"{self._root}/{CONFIG}"
        shard = f"{name.hash[:2]}/" if name.kind == "data" else ""
        return f"{self._root}/{name.kind}/{shard}{name.hash}"

    def _attributes(self, path: str) -> Attributes | None:
        try:
            answer = self.wire.ask(sftp.STAT, sftp.text(os.fsencode(path)))
        except SftpError as error:
            if error.code == sftp.NO_SUCH_FILE:
                return None
            raise self.explain(error, path) from error
        except LostError as error:
            raise self.explain(error, path) from error
        return Reader(answer.data).attributes()

    def _handle(self, kind: int, content: bytes) -> bytes:
        return sftp.text(Reader(self.wire.ask(kind, content).data).text())

    def open_new(self, path: str) -> bytes:
        """A handle for a file that was not there. Raises SftpError, LostError."""
        flags = struct.pack(">I", sftp.CREATE_NEW)
        return self._handle(
            sftp.OPEN, sftp.text(os.fsencode(path)) + flags + _modes(FILE_MODE | 0o200)
        )

    def make(self, relative: str) -> None:
        """Make a directory that may be there. Raises LostError."""
        with suppress(SftpError):
            self.wire.ask(sftp.MKDIR, self._at(relative) + _modes(DIR_MODE))

    def _list(self, folders: list[str]) -> list[tuple[str, Attributes]]:
        """Everything in some folders, all of them read at the same time. Raises LostError."""
        opened = self.wire.ask_all((sftp.OPENDIR, self._at(f)) for f in folders)
        handles = [sftp.text(Reader(a.data).text()) for a in opened if isinstance(a, Answer)]
        found: list[tuple[str, Attributes]] = []
        reading = handles
        while reading:
            answers = self.wire.ask_all((sftp.READDIR, h) for h in reading)
            pairs = zip(reading, answers, strict=True)
            reading = []
            for handle, answer in pairs:
                if isinstance(answer, Answer):
                    found += _names(answer.data)
                    reading.append(handle)
                elif answer.code != sftp.EOF:
                    raise LostError(f"a listing failed: {answer}")
        self.wire.ask_all((sftp.CLOSE, h) for h in handles)
        return found

    def _sweep(self) -> None:
        """Remove what vaults that were killed left waiting long ago."""
        with suppress(LostError):
            for entry, attributes in self._list([TMP]):
                old = attributes.mtime and attributes.mtime < time.time() - TMP_SECONDS
                if entry.startswith("capkeep-") and old:
                    self.wire.ask_all([(sftp.REMOVE, self._at(f"{TMP}/{entry}"))])

    def explain(self, error: SftpError | LostError, what: str) -> StoreError:
        """A failure with a name."""
        if isinstance(error, LostError):
            return self._ssh.explain(str(error))
        where = f"{self._login.host}: {what}"
        if error.code == sftp.DENIED:
            return StoreError(Failure.DENIED, f"{where}: {error}")
        if error.code == sftp.FAILURE and self._is_full():
            return StoreError(Failure.NO_SPACE, f"{where}: the server's disk is full")
        return StoreError(Failure.UNREACHABLE, f"{where}: {error}")

    def _is_full(self) -> bool:
        """The protocol has no word for a full disk: ask how much is free (OpenSSH's PROTOCOL)."""
        if sftp.STATVFS not in self.wire.extensions:
            return False
        try:
            answer = self.wire.ask(sftp.EXTENDED, sftp.text(sftp.STATVFS), self._at(""))
        except (SftpError, LostError):
            return False
        reader = Reader(answer.data)
        _, frsize, _, _, available = (reader.number(8) for _ in range(5))
        return frsize * available < FULL_BYTES


class _Part:
    """A part of a remote file, asked for ahead of its sending."""

    def __init__(
        self, store: SftpStore, handle: bytes, size: int, offset: int, length: int | None
    ) -> None:
        self._store = store
        self._handle = handle
        self.size = size
        rest = max(0, size - offset)
        self.length = rest if length is None else min(rest, length)
        self._asked = offset
        self._end = offset + self.length
        self._under_way: deque[tuple[int, int, sftp.Waiting]] = deque()
        self._begun = b""  # what has come and was not asked for here yet

    def read_into(self, buffer: memoryview) -> int:
        try:
            data = self._begun or self._next()
        except (SftpError, LostError) as error:
            raise self._store.explain(error, "reading") from error
        got = min(len(data), len(buffer))
        buffer[:got] = data[:got]
        self._begun = data[got:]
        return got

    def _next(self) -> bytes:
        """The next bytes of the file. Raises SftpError, LostError."""
        while self._asked < self._end and len(self._under_way) < WINDOW:
            want = min(BLOCK, self._end - self._asked)
            self._under_way.append((self._asked, want, self._ask(self._asked, want)))
            self._asked += want
        position, want, waiting = self._under_way.popleft()
        data = Reader(self._store.wire.wait(waiting).data).text()
        if not 0 < len(data) <= want:
            raise LostError("an answer of the wrong size")
        if len(data) < want:  # allowed: the rest is asked for again, before what follows
            position += len(data)
            want -= len(data)
            self._under_way.appendleft((position, want, self._ask(position, want)))
        return data

    def _ask(self, position: int, want: int) -> sftp.Waiting:
        return self._store.wire.send(sftp.READ, self._handle, struct.pack(">QI", position, want))

    def close(self) -> None:
        with suppress(LostError):
            self._store.wire.send(sftp.CLOSE, self._handle)


class _Upload:
    """A file under a temporary name."""

    pour = None

    def __init__(self, store: SftpStore, name: Name, path: str, temporary: str) -> None:
        self._store = store
        self._name = name
        self._path = path
        self._temporary = temporary
        self._position = 0
        self._under_way: deque[sftp.Waiting] = deque()
        self._open = True
        try:
            self._handle = self._begin()
        except (SftpError, LostError) as error:
            raise store.explain(error, name.path) from error

    def _begin(self) -> bytes:
        try:
            return self._store.open_new(self._temporary)
        except SftpError as error:
            if error.code != sftp.NO_SUCH_FILE:
                raise
            self._store.make(TMP)  # a repository that restic made has no such folder
            return self._store.open_new(self._temporary)

    def write(self, data: memoryview) -> None:
        wire = self._store.wire
        try:
            while data:
                part, data = data[:BLOCK], data[BLOCK:]
                head = self._handle + struct.pack(">Q", self._position)
                self._under_way.append(wire.send(sftp.WRITE, head, sftp.text(part)))
                self._position += len(part)
                while len(self._under_way) >= WINDOW:
                    wire.wait(self._under_way.popleft())
        except (SftpError, LostError) as error:
            raise self._store.explain(error, self._name.path) from error

    def commit(self) -> None:
        wire = self._store.wire
        try:
            while self._under_way:
                wire.wait(self._under_way.popleft())
            if sftp.FSYNC in wire.extensions:
                wire.ask(sftp.EXTENDED, sftp.text(sftp.FSYNC), self._handle)
            self._close()
            self._rename()
        except (SftpError, LostError) as error:
            raise self._store.explain(error, self._name.path) from error
        finally:
            self.abort()

    def _close(self) -> None:
        self._open = False
        self._store.wire.ask(sftp.CLOSE, self._handle)

    def _rename(self) -> None:
        """Give it its name, if that is free. Raises AlreadyThere, SftpError, LostError."""
        request = sftp.text(os.fsencode(self._temporary)) + sftp.text(os.fsencode(self._path))
        try:
            self._store.wire.ask(sftp.RENAME, request)
        except SftpError as error:
            if error.code == sftp.NO_SUCH_FILE and self._name.kind == "data":
                self._store.make(f"data/{self._name.hash[:2]}")
                self._store.wire.ask(sftp.RENAME, request)
            elif self._store.size(self._name) is not None:
                raise AlreadyThere(self._name.path) from None
            else:
                raise
        self._temporary = ""

    def abort(self) -> None:
        """What was begun is removed; what was committed has no temporary name any more."""
        with suppress(SftpError, LostError):
            if self._open:
                self._close()
            if self._temporary:
                path, self._temporary = self._temporary, ""
                self._store.wire.ask(sftp.REMOVE, sftp.text(os.fsencode(path)))


def _modes(mode: int) -> bytes:
    """Attributes of a new file or directory."""
    return struct.pack(">II", sftp.HAS_MODE, mode)


def _names(data: bytes) -> list[tuple[str, Attributes]]:
    """An answer to READDIR."""
    reader = Reader(data)
    found: list[tuple[str, Attributes]] = []
    for _ in range(reader.number()):
        name = os.fsdecode(reader.text())
        reader.text()  # as `ls -l` would show it
        found.append((name, reader.attributes()))
    return found
