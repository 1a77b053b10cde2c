#!/usr/bin/python3
"""Compare restored trees with the live ones: bytes, owner, mode, times, attributes, links.

usage: tools/compare.py RESTORED REFERENCE PATH…     (as root; PATH came back as RESTORED/PATH)

Nothing of capkeep is used here: this is the second opinion. Named apart and not counted as
differences: live files that changed after REFERENCE was touched (before the backup), sockets (no
engine restores them), and files that something is mounted over, since a backup keeps what lies
below a mount.
"""

import hashlib
import os
import stat
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator

CHUNK = 1 << 20


def mount_points() -> set[bytes]:
    """Where something is mounted (proc(5), mountinfo; octal escapes)."""
    with open("/proc/self/mountinfo", "rb") as table:
        return {line.split()[4].decode("unicode_escape").encode("latin-1") for line in table}


def walk(root: bytes, mounted: set[bytes]) -> Iterator[bytes]:
    """Every path below `root`, itself first; not into what is mounted there."""
    yield root
    if os.path.islink(root) or not os.path.isdir(root):
        return
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if entry.path in mounted:
            yield entry.path
        else:
            yield from walk(entry.path, mounted)


def digest(path: bytes) -> str:
    """SHA-256 of a file's content."""
    summary = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(CHUNK):
            summary.update(part)
    return summary.hexdigest()


def attributes(path: bytes) -> dict[str, bytes]:
    """Extended attributes, ACLs and file capabilities among them; not the kernel's `trusted.`."""
    names = os.listxattr(path, follow_symlinks=False)
    return {
        n: os.getxattr(path, n, follow_symlinks=False)
        for n in names
        if not n.startswith("trusted.")
    }


def differences(live: bytes, copy: bytes) -> Iterator[str]:
    """What is not the same, in words. Raises OSError."""
    a, b = os.lstat(live), os.lstat(copy)
    for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        if getattr(a, name) != getattr(b, name):
            yield f"{name} {getattr(a, name)} != {getattr(b, name)}"
    if attributes(live) != attributes(copy):
        yield f"attributes {attributes(live)} != {attributes(copy)}"
    if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
        return
    if stat.S_ISLNK(a.st_mode) and os.readlink(live) != os.readlink(copy):
        yield f"target {os.readlink(live)!r} != {os.readlink(copy)!r}"
    if (stat.S_ISCHR(a.st_mode) or stat.S_ISBLK(a.st_mode)) and a.st_rdev != b.st_rdev:
        yield f"device {a.st_rdev} != {b.st_rdev}"
    if stat.S_ISREG(a.st_mode) and (a.st_size != b.st_size or digest(live) != digest(copy)):
        yield f"content ({a.st_size} and {b.st_size} bytes)"


def hard_link_groups(paths: list[bytes], prefix: bytes) -> set[frozenset[bytes]]:
    """Which of these paths are the same file."""
    groups: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for path in paths:
        state = os.lstat(prefix + path)
        if state.st_nlink > 1 and not stat.S_ISDIR(state.st_mode):
            groups[state.st_dev, state.st_ino].add(path)
    return {frozenset(g) for g in groups.values() if len(g) > 1}


class Comparison:
    """Counts and differences of one comparison."""

    def __init__(self, restored: bytes, reference: str) -> None:
        self.restored = restored
        self.counts: Counter[str] = Counter()
        self.differences: list[str] = []
        self.size = 0
        self.same: list[bytes] = []
        self.mounted = mount_points()
        self.taken_ns = os.stat(reference).st_mtime_ns

    def look(self, path: bytes) -> None:
        """Compare one path."""
        state = os.lstat(path)
        if path in self.mounted:
            self.counts["mounted over"] += 1
        elif stat.S_ISSOCK(state.st_mode):
            self.counts["sockets"] += 1
        else:
            self._look_inside(path, state)

    def _look_inside(self, path: bytes, state: os.stat_result) -> None:
        try:
            found = list(differences(path, self.restored + path))
        except FileNotFoundError:
            found = ["missing"]
        if not found:
            self.counts["same"] += 1
            self.same.append(path)
            self.size += state.st_size if stat.S_ISREG(state.st_mode) else 0
        elif state.st_ctime_ns > self.taken_ns:
            self.counts["changed since"] += 1
        else:
            self.differences += [f"{path!r}: {what}" for what in found]

    def look_at_links(self) -> None:
        """Files that were one must be one again."""
        live, copy = hard_link_groups(self.same, b""), hard_link_groups(self.same, self.restored)
        self.counts["hard link groups"] = len(live)
        self.differences += [f"hard links {sorted(g)!r}" for g in live ^ copy]


def main() -> int:
    """Exit code 1 if anything differs, 2 for wrong usage."""
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2
    comparison = Comparison(os.fsencode(os.path.abspath(sys.argv[1])), sys.argv[2])
    for root in map(os.fsencode, sys.argv[3:]):
        for path in walk(root, comparison.mounted):
            comparison.look(path)
    comparison.look_at_links()
    counts = ", ".join(f"{number} {what}" for what, number in comparison.counts.items() if number)
    print(
        f"{counts}; {comparison.size / 2**20:.1f} MiB of content; {len(comparison.differences)} differ"
    )
    for line in comparison.differences[:40]:
        print(f"  {line}")
    return 1 if comparison.differences or not comparison.same else 0


if __name__ == "__main__":
    sys.exit(main())
