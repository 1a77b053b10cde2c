"""What is on a machine's disk: everything there that a backup keeps, for comparing two looks."""

import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

# What a running systemd and its journal change by themselves, whatever else happens; patterns of
# whole paths, `*` matching `/` too.
SYSTEMD_OWN: Final = (
    "/var/log/journal/*",  # the journal
    "/var/log/wtmp", "/var/log/btmp", "/var/log/lastlog",  # who was there
    "/var/lib/systemd/random-seed",  # written when the machine stops
    "/var/lib/systemd/timers/*",  # when timers with Persistent= fired
    "/var/tmp/systemd-private-*",  # of services with PrivateTmp=, by the number of the boot
)  # fmt: skip


class Entry(NamedTuple):
    """One path. `content`: a file's SHA-256, a link's target, a device's number; else empty.

    Times are left out: a directory's changes when something in it was made and taken away again,
    and a file's says nothing that its content does not.
    """

    kind: str  # as `ls` writes it: d - l c b p s
    mode: int
    uid: int
    gid: int
    size: int  # bytes; of files and links
    content: str
    xattrs: tuple[tuple[str, bytes], ...]  # file capabilities and ACLs among them


Inventory = dict[str, Entry]


def take(tree: Path) -> Inventory:
    """Every path below `tree` on its file system, itself included, in order. Raises OSError."""
    device = tree.lstat().st_dev
    return dict(sorted(_walk(str(tree), "/", device)))


def differences(
    before: Inventory, after: Inventory, own: tuple[str, ...] = SYSTEMD_OWN
) -> list[str]:
    """What is not as it was, one line each, but for what systemd changes on its own."""
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in own):
            continue
        old, new = before.get(path), after.get(path)
        if old is None:
            lines.append(f"new: {path} {new}")
        elif new is None:
            lines.append(f"gone: {path} {old}")
        elif old != new:
            parts = [
                f"{n} {a!r} -> {b!r}"
                for n, a, b in zip(Entry._fields, old, new, strict=True)
                if a != b
            ]
            lines.append(f"changed: {path} {', '.join(parts)}")
    return lines


def _walk(real: str, path: str, device: int) -> Iterator[tuple[str, Entry]]:
    look = os.lstat(real)
    yield path, _entry(real, look)
    if stat.S_ISDIR(look.st_mode) and look.st_dev == device:
        try:
            names = os.listdir(real)
        except FileNotFoundError:
            return
        for name in names:
            try:
                yield from _walk(f"{real}/{name}", f"{path.rstrip('/')}/{name}", device)
            except FileNotFoundError:
                continue


def _entry(real: str, look: os.stat_result) -> Entry:
    content, size = "", 0
    if stat.S_ISREG(look.st_mode):
        with open(real, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        size = look.st_size
    elif stat.S_ISLNK(look.st_mode):
        content = os.readlink(real)
        size = len(content)
    elif stat.S_ISCHR(look.st_mode) or stat.S_ISBLK(look.st_mode):
        content = f"{os.major(look.st_rdev)}:{os.minor(look.st_rdev)}"
    names = sorted(os.listxattr(real, follow_symlinks=False))
    xattrs = tuple((n, os.getxattr(real, n, follow_symlinks=False)) for n in names)
    kind = stat.filemode(look.st_mode)[0]
    return Entry(kind, stat.S_IMODE(look.st_mode), look.st_uid, look.st_gid, size, content, xattrs)
