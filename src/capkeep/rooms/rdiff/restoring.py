"""The half that sees the files, where a session comes back: a restorer's.

What comes over the wire is looked at as in the other direction: nothing lies outside the target, or
behind a symbolic link that came before it.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from capkeep.guest.rdiff.acl import ACL, DEFAULT_ACL, acl_value
from capkeep.guest.rdiff.wire import (
    AclEntry,
    Index,
    Meta,
    Pipes,
    Refused,
    Tree,
    from_plain,
    index_of,
    pieces,
    receive_object,
    send,
    text,
)

NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MANY: Final = 10_000  # complaints
BUFFER: Final = 64 << 10  # bytes


class Say(Protocol):
    """Tells whoever started this."""

    def __call__(self, **event: object) -> None: ...


def restore(spec: dict[str, object], end: Pipes, say: Say, failed: Callable[[object], int]) -> int:
    """Raises Gone, Refused."""
    target = os.fsencode(str(spec.pop("target")))
    send(end, {k: spec[k] for k in ("do", "session", "paths")})
    writer = _Writer(target, end, say)
    while True:
        message = receive_object(end)
        if "failed" in message:
            return failed(message["failed"])
        if "end" in message:
            writer.finish()
            say(end={"files": writer.files, "bytes": writer.bytes, "trouble": writer.trouble})
            if writer.damaged:
                why = f"the content of {writer.damaged} files is not what was kept"
                return failed({"kind": "damaged", "text": why})
            return 0 if not writer.trouble else 3
        writer.take(message)


class _Writer:
    def __init__(self, target: bytes, end: Pipes, say: Say) -> None:
        self._target, self._end, self._say = target, end, say
        self._tree = Tree()
        self._several: set[Index] = set()  # files that may have another name, as they were written
        self._folders: list[Meta] = []  # whose attributes are set when all in them is there
        self._coming = False  # content of the node at hand, which has not been taken yet
        self.files = self.bytes = self.trouble = self.damaged = 0

    def take(self, message: dict[str, object]) -> None:
        """A node, and its content."""
        meta = self._tree.add(from_plain(message.get("node")))
        same, chosen = message.get("same"), message.get("chosen") is True
        while (
            self._folders and self._folders[-1].where != meta.where[: len(self._folders[-1].where)]
        ):
            self._end_folder()
        self._coming = meta.kind == "reg" and not same
        try:
            self._make(meta, same, chosen=chosen)
        except OSError as error:
            self._complain(meta, error)
            if self._coming:
                self._drain()
        else:
            self.files += 1

    def finish(self) -> None:
        """The attributes of the directories that are left."""
        while self._folders:
            self._end_folder()

    def _end_folder(self) -> None:
        meta = self._folders.pop()
        try:
            self._dress(meta, self._place(meta))
        except OSError as error:
            self._complain(meta, error)

    def _place(self, meta: Meta) -> bytes:
        return b"/".join((self._target, *meta.where))

    def _make(self, meta: Meta, same: object, *, chosen: bool) -> None:
        place = self._place(meta)
        if meta.kind == "dir":
            self._folder(meta, place, chosen=chosen)
            return
        if meta.kind == "sock":
            return  # it is made by whoever listens on it
        with suppress(FileNotFoundError):
            os.unlink(place)
        if same:
            os.link(self._twin(same), place, follow_symlinks=False)
            return
        if meta.kind == "reg":
            self._file(meta, place)
            if meta.nlink > 1:
                self._several.add(meta.where)
        elif meta.kind == "sym":
            os.symlink(meta.link, place)
        elif meta.kind == "fifo":
            os.mkfifo(place, 0o600)
        else:
            char, major, minor = meta.numbers
            kind = stat.S_IFCHR if char == "c" else stat.S_IFBLK
            os.mknod(place, kind | 0o600, os.makedev(major, minor))
        self._dress(meta, place)

    def _folder(self, meta: Meta, place: bytes, *, chosen: bool) -> None:
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                os.unlink(place)
                os.mkdir(place, 0o700)
            elif not chosen or not meta.where:
                return  # it was there, and nobody asked for it
        self._folders.append(meta)

    def _twin(self, same: object) -> bytes:
        try:
            index = index_of(same)
        except (ValueError, TypeError, AttributeError) as error:
            raise Refused(f"another name of nothing: {error}") from error
        if index not in self._several:  # it could lie behind a symbolic link, or be anybody's
            raise FileNotFoundError(errno.ENOENT, "its other name was not restored")
        return b"/".join((self._target, *index))

    def _file(self, meta: Meta, place: bytes) -> None:
        """What is not written whole is an error: a quota may end a write without one (write(2))."""
        digest = hashlib.sha1(usedforsecurity=False)
        size = 0
        with open(os.open(place, NEW, 0o600), "wb", buffering=BUFFER) as file:
            for piece in pieces(self._end):
                digest.update(piece)
                size += len(piece)
                if any(piece):
                    file.write(piece)
                else:
                    file.seek(len(piece), os.SEEK_CUR)  # a hole
            self._coming = False
            file.truncate(size)
        self.bytes += size
        if meta.sha1 and digest.hexdigest() != meta.sha1:
            self.damaged += 1
            self._complain(meta, OSError(5, "the content is not what was kept"))

    def _drain(self) -> None:
        with suppress(OSError):
            for _ in pieces(self._end):
                pass

    def _dress(self, meta: Meta, place: bytes) -> None:
        """Owner first: changing it takes special permissions and capabilities away (chown(2))."""
        try:
            os.chown(place, meta.uid, meta.gid, follow_symlinks=False)
        except OSError as error:
            why = f"lchown {text(place)}: {os.strerror(error.errno or 0).lower()}"
            self._complain(meta, OSError(error.errno, why))
        if meta.kind != "sym":
            os.chmod(place, meta.perms)
        for name, value in meta.xattrs:
            self._set(meta, place, os.fsdecode(name), value)
        if meta.kind != "sym":
            self._set_acl(meta, place, ACL, meta.acl)
        if meta.kind == "dir":
            self._set_acl(meta, place, DEFAULT_ACL, meta.default_acl)
        if meta.kind not in ("sym", "dev"):
            os.utime(place, ns=(meta.mtime * 10**9,) * 2)

    def _set(self, meta: Meta, place: bytes, name: str, value: bytes) -> None:
        """What cannot be set is told, and is all that is missing then."""
        try:
            os.setxattr(place, name, value, follow_symlinks=False)
        except OSError as error:
            path, detail = "/" + text(b"/".join(meta.where)), os.strerror(error.errno or 0)
            self._say(unset=path, attribute=text(os.fsencode(name)), detail=detail)

    def _set_acl(self, meta: Meta, place: bytes, name: str, entries: tuple[AclEntry, ...]) -> None:
        try:
            value = acl_value(self._known(entries)) if entries else b""
        except OSError as error:
            self._complain(meta, error)
            return
        if value:
            self._set(meta, place, name, value)

    def _known(self, entries: tuple[AclEntry, ...]) -> tuple[AclEntry, ...]:
        """Entries that only have a name, as rdiff-backup itself writes them, by this host's numbers."""
        import grp
        import pwd

        found: list[AclEntry] = []
        for tag, number, name, perms in entries:
            known = number
            if number < 0 and tag in ("u", "g"):
                try:
                    known = pwd.getpwnam(name).pw_uid if tag == "u" else grp.getgrnam(name).gr_gid
                except KeyError:
                    raise OSError(
                        22, f"its access list names {name}, who is unknown here"
                    ) from None
            found.append((tag, known, name, perms))
        return tuple(found)

    def _complain(self, meta: Meta, error: OSError) -> None:
        self.trouble += 1
        if self.trouble <= MANY:
            self._say(
                unrestored="/" + text(b"/".join(meta.where)), errno=error.errno or 0,
                detail=error.strerror or str(error),
            )  # fmt: skip
