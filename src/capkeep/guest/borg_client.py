"""Starts borg, in a room: its relay can reach the vault, its cache's locks belong to sessions.

It says in one line of JSON what it says in JSON at all, with how many files it met in each state;
and it names no files but those that are watched: naming all costs more than looking at them does.

usage: borg_client.py BORG ARGUMENT…
Variables: CAPKEEP_WATCH (paths, a line each), CAPKEEP_TURN (name those of the files that are next, see
`engines.base.Engine.kept_file`: where on the circle, and how many), CAPKEEP_EXPECT (a file: refuse to
remove anything while the repository does not list what it names, as it was listed when that was decided),
CAPKEEP_DEVICE (the number of an open FUSE device, on which `mount` answers), CAPKEEP_GIVE (anything:
tell all that decides who may have an entry).
"""

import json
import os
import re
import socket
import sys
from collections import Counter
from functools import partial
from hashlib import blake2b
from heapq import heappush, heapreplace

import borg_locks
import launch

VERSIONS = ((1, 2), (1, 4))
UNKNOWN = re.compile("[\udc80-\udcff]")  # how Python holds a byte that is not UTF-8 (PEP 383)
RESCUE = "capkeep-rescue"
FILES = frozenset(
    "AMU"
)  # states of files that an archive holds as they were read: borg create --list
CIRCLE = 1 << 64


def fail(msgid: str, message: str) -> int:
    """As borg itself would say it, with --log-json."""
    said = {"type": "log_message", "levelname": "ERROR", "name": "capkeep", "msgid": msgid}
    print(json.dumps({**said, "message": message}), file=sys.stderr)
    return 2


def watch(archiver, helpers) -> None:
    """Count the files by their state, and name those that are watched."""
    watched = set(filter(None, os.environ.get("CAPKEEP_WATCH", "").split("\n")))
    counts: Counter[str] = Counter()
    kept = Kept(*map(int, os.environ.get("CAPKEEP_TURN", "0 0").split()))
    create, check = archiver.Archiver.do_create, archiver.Archiver.do_check

    def print_file_status(_self: object, status: str | None, path: str) -> None:
        if status is not None:
            counts[status] += 1
            if kept.most and status in FILES:
                kept.take(path)
            if path in watched:
                said = {"type": "file_status", "status": status, "path": path}
                print(json.dumps(said), file=sys.stderr)

    def do_create(self, args):
        code = create(self, args)
        if args.dry_run:
            print(json.dumps({"counts": counts, "dry_run": True}))
        return code

    def do_check(self, args):
        code = check(self, args)
        if code or (
            hasattr(helpers, "get_ec") and helpers.get_ec()
        ):  # what the vault's side found stands in its own log
            said = {"type": "log_message", "levelname": "ERROR", "name": "capkeep"}
            text = "borg's check found errors in the repository"
            print(json.dumps({**said, "message": text}), file=sys.stderr)
        return code

    def json_print(said: dict[str, object]) -> None:
        for name in kept.names():
            print(f'{{"kept": {name}}}')
        told = {**said, "counts": counts, "program": f"borg {archiver.__version__}"}
        print(json.dumps(told, cls=archiver.BorgJsonEncoder))

    archiver.Archiver.print_file_status = print_file_status
    archiver.Archiver.do_create, archiver.Archiver.do_check = do_create, do_check
    archiver.json_print = json_print


class Kept:
    """Of all files those that lie next on a circle, on which each has the place of its name's hash."""

    def __init__(self, begin: int, most: int) -> None:
        self.most, self._begin = most, begin
        self._heap: list[tuple[int, str]] = []  # the farthest first

    def take(self, path: str) -> None:
        """A file that is kept; whose name is not UTF-8 is passed over."""
        if UNKNOWN.search(path):
            return
        name = json.dumps("/" + path.lstrip("/"))
        place = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
        far = -((place - self._begin) % CIRCLE)
        if len(self._heap) < self.most:
            heappush(self._heap, (far, name))
        elif far > self._heap[0][0]:
            heapreplace(self._heap, (far, name))

    def names(self) -> list[str]:
        """Each in quotes."""
        return [name for _, name in sorted(self._heap, reverse=True)]


def show_unknown_bytes(archiver) -> None:
    """Have names that are not UTF-8 listed with U+FFFD for each such byte, not with a question mark."""
    from borg.helpers import parseformat

    def remove_surrogates(text: str, errors: str = "") -> str:
        return UNKNOWN.sub("\ufffd", text)

    parseformat.remove_surrogates = archiver.remove_surrogates = remove_surrogates


def show_own_times() -> None:
    """List archives by their own time, which their id vouches for; the list can say any."""
    from borg.helpers import parseformat

    plain = parseformat.ArchiveFormatter.get_item_data

    def get_item_data(self, *words, **options):
        data = plain(self, *words, **options)
        if "comment" in self.used_call_keys:  # it has been opened
            data["time"] = data["start"] = self.format_time(self.archive.ts)
        return data

    parseformat.ArchiveFormatter.get_item_data = get_item_data


def name_unset() -> None:
    """Have each attribute that cannot be set told with its path, and be all that is missing then.

    Of a file borg itself tells only the descriptor's number.
    """
    from borg import xattr

    plain = xattr.setxattr

    def setxattr(path, name: bytes, value: bytes, *, follow_symlinks: bool = True) -> None:
        try:
            plain(path, name, value, follow_symlinks=follow_symlinks)
        except OSError as error:
            try:
                place = os.readlink(b"/proc/self/fd/%d" % path) if isinstance(path, int) else path
            except OSError:
                place = b""
            top = os.getcwdb().rstrip(b"/") + b"/"
            said = {
                "type": "attribute", "path": os.fsdecode(place.removeprefix(top)),
                "name": name[:255].decode(errors="replace"), "message": os.strerror(error.errno or 0),
            }  # fmt: skip
            print(json.dumps(said), file=sys.stderr)

    xattr.setxattr = setxattr


def expect(archiver, path: str) -> None:
    """Removing starts with a look, under the same lock, at whether all is there that should be."""
    with open(path, encoding="ascii") as file:
        told = json.load(file)
    wanted, removed = set(told["listed"]), told["removed"]
    load = archiver.Manifest.load

    def checked(*words, **options):
        manifest, key = load(*words, **options)
        names: dict[str, list[str]] = {}
        for name in manifest.archives:
            names.setdefault(manifest.archives[name].id.hex(), []).append(name)
        if missing := wanted - set(names):
            raise SystemExit(
                fail("Capkeep.Lost", f"the repository does not list {min(missing)} any more")
            )
        # Borg removes by name, and whoever may add says what has which name.
        if other := [one for one, name in removed.items() if names.get(one) != [name]]:
            text = f"{min(other)} has another name by now, or several"
            raise SystemExit(fail("Capkeep.Lost", text))
        return manifest, key

    archiver.Manifest.load = checked


def answer_on(device: int) -> None:
    """Have `mount` mount nothing, and answer on a device that is open already (fuse_session_mount)."""
    from borg.fuse_impl import llfuse

    if llfuse is None:
        return  # borg says so
    import trio
    from borg import fuse

    def init(operations: object, _mountpoint: str, options) -> None:
        mount(operations, f"/dev/fd/{device}", options)

    def names(name_of):
        # Of directories that borg invents; a room's user may have no name.
        return lambda number, default=None: name_of(number, default) or str(number)

    def answer() -> None:
        socket.socketpair = pipe  # type: ignore[assignment]
        trio.run(llfuse.main)  # borg hides why that ends

    mount, llfuse.init, fuse.fuse_main = llfuse.init, init, answer
    fuse.uid2user, fuse.gid2group = names(fuse.uid2user), names(fuse.gid2group)


class PipeEnd:
    """One end of a pipe, in place of the sockets by which trio wakes itself: those are denied here."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.fileno, self.send, self.recv = lambda: fd, partial(os.write, fd), partial(os.read, fd)

    def setblocking(self, blocking: bool) -> None:
        """As of a socket."""
        os.set_blocking(self._fd, blocking)

    def setsockopt(self, *_words: object) -> None:
        """A size, which does not matter."""

    def close(self) -> None:
        """As of a socket."""
        os.close(self._fd)


def pipe() -> tuple[PipeEnd, PipeEnd]:
    """What is sent on the second comes out of the first."""
    out, into = os.pipe()
    return PipeEnd(out), PipeEnd(into)


def main(program: str, arguments: list[str]) -> int:
    """Become borg."""
    try:
        import borg
    except ImportError as error:
        return fail("Capkeep.Refused", f"{program} does not run borg by this Python: {error}")
    if tuple(map(int, borg.__version__.split(".")[:2])) not in VERSIONS:
        return fail(
            "Capkeep.Refused",
            f"borg {borg.__version__} is not supported: install borg 1.2 or 1.4",
        )
    from borg import archiver, helpers

    launch.inherit_if_there()
    borg_locks.own(os.environ["BORG_BASE_DIR"])
    if arguments[:1] == [RESCUE]:
        from borg_rescue import rescue

        return int(rescue(archiver, arguments[1]))
    watch(archiver, helpers)
    show_unknown_bytes(archiver)
    show_own_times()
    name_unset()
    if wanted := os.environ.get("CAPKEEP_EXPECT"):
        expect(archiver, wanted)
    if device := os.environ.get("CAPKEEP_DEVICE"):
        answer_on(int(device))
    if os.environ.get("CAPKEEP_GIVE"):
        from borg_giving import tell_all

        tell_all(archiver)
    launch.run(program, arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
