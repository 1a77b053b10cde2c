"""What a file is, told without telling what is in it.

Content and extended attributes are told as keyed hashes. The key comes from the repository's password,
which reader and prover have and the runner has not, and from the nonce of one drill: the runner can see
whether two files are the same, and can neither guess a content nor compare it with another's.
"""

import os
import stat
from collections.abc import Callable
from typing import Final

from capkeep.rooms.protocol import Message

DRILL: Final = "drill"
MANIFEST: Final = "manifest"
PIECE: Final = 1 << 20
BATCH: Final = 64 << 10  # characters of a message that lists files
TYPES: Final = {
    stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFBLK: "dev", stat.S_IFCHR: "chardev", stat.S_IFSOCK: "socket",
}  # fmt: skip
# Those that a restore in a namespace of its own can set, and that say the same inside and outside.
ATTRIBUTES: Final = frozenset(
    ("security.capability", "system.posix_acl_access", "system.posix_acl_default")
)


def key_of(password: str, nonce: str, use: str = DRILL) -> bytes:
    """The key of one drill's sums, or of one manifest's.

    The runner knows sums of files that it can read itself, and the nonce. So that it cannot try
    passwords by them, which people may have chosen, each try costs it some 50 ms and 16 MiB.
    """
    import hashlib

    salt = f"capkeep {use}\0{nonce}".encode()
    secret = password.encode("utf-8", "surrogateescape")
    return hashlib.scrypt(secret, salt=salt, n=1 << 14, r=8, p=1, dklen=32)


def state_of(found: os.stat_result) -> Message:
    """What stat(2) says of it; times are nanoseconds since 1970."""
    return {
        "kind": TYPES.get(stat.S_IFMT(found.st_mode), "unknown"),
        "mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid,
        "size": found.st_size, "mtime": found.st_mtime_ns, "ctime": found.st_ctime_ns,
    }  # fmt: skip


def content_sum(fd: int, key: bytes, alive: Callable[[], None]) -> str:
    """Of a regular file, from its beginning to its end. Raises OSError."""
    import hashlib

    found = hashlib.blake2b(key=key, digest_size=32)
    buffer = bytearray(PIECE)
    view = memoryview(buffer)
    while got := os.readv(fd, [buffer]):
        found.update(view[:got])
        alive()
    return found.hexdigest()


def file_sum(path: str, key: bytes, alive: Callable[[], None]) -> str:
    """Of a regular file by its path, the last part of which may be no link. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return content_sum(fd, key, alive)
    finally:
        os.close(fd)


def text_sum(text: str, key: bytes) -> str:
    """Of a link's target."""
    import hashlib

    raw = text.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(raw, key=key, digest_size=32).hexdigest()


def attribute_sums(place: str | int, key: bytes) -> dict[str, str]:
    """Of each extended attribute that can be compared, by name; none where there can be none."""
    import hashlib

    found = {}
    try:
        names = os.listxattr(place)
    except OSError:
        return {}
    for name in names:
        if name.startswith("user.") or name in ATTRIBUTES:
            try:
                value = os.getxattr(place, name)
            except OSError:
                continue
            found[name] = hashlib.blake2b(value, key=key, digest_size=32).hexdigest()
    return found


def foreign_acls(place: int) -> list[str]:
    """Its ACLs that name a user or group above 65535, which a drill can give to no file."""
    found = []
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        try:
            value = os.getxattr(place, name)
        except OSError:
            continue
        # A version, then entries of tag, permissions and id; 2 is a user, 8 a group
        # (linux/posix_acl_xattr.h, linux/posix_acl.h).
        entries = (value[at : at + 8] for at in range(4, len(value) - 7, 8))
        if any(e[0] in (2, 8) and int.from_bytes(e[4:], "little") > 0xFFFF for e in entries):
            found.append(name)
    return found


def open_unled(path: str) -> int:
    """A descriptor of the file itself (O_PATH), reached without following any link. Raises OSError."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in path.strip("/").split("/"):
        try:
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def describe(path: str, key: bytes, alive: Callable[[], None], before: int = 0) -> Message:
    """All of it. With `before`, no content of a file that was changed after that (nanoseconds).

    Raises OSError.
    """
    fd = open_unled(path)
    try:
        found = os.fstat(fd)
        said: Message = state_of(found)
        if before and found.st_ctime_ns > before:
            return said
        here = f"/proc/self/fd/{fd}"
        if stat.S_ISLNK(found.st_mode):
            said["content"] = text_sum(os.readlink("", dir_fd=fd), key)
            said["attributes"] = {}
        elif stat.S_ISREG(found.st_mode):
            # Opened anew, by a way that leads to this very file (proc(5)).
            content = os.open(here, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                said["content"] = content_sum(content, key, alive)
                said["attributes"] = attribute_sums(content, key)
                if foreign := foreign_acls(content):
                    said["foreign"] = foreign
            finally:
                os.close(content)
    finally:
        os.close(fd)
    return said


def latest_above(path: str, top: str = "") -> int:
    """When a directory above a path was changed last (nanoseconds). Raises OSError."""
    latest = 0
    folder = path
    while folder.strip("/"):
        folder = os.path.dirname(folder)
        latest = max(latest, os.lstat(top + folder).st_ctime_ns)
    return latest
