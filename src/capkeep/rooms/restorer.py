"""The restorer: started by root by hand, writes one directory, and believes no exit code.

It holds exactly the capabilities that restoring needs. Engines lose owners, modes and devices with
exit code 0 when one of them is missing, so every restored entry is compared with the snapshot.
"""

import calendar
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from capkeep.engines.base import Entry, Event, LineReader, Unreadable, Warned
from capkeep.engines.restic_work import ERROR_COUNT
from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.plan.model import Mode
from capkeep.rooms.base import EngineRoom, option, option_list, serve
from capkeep.rooms.calls import Caller, done, pass_on
from capkeep.rooms.latest import LATEST
from capkeep.rooms.listing import snapshot_for, word_for
from capkeep.rooms.probe import probe
from capkeep.rooms.protocol import Message, ProtocolError
from capkeep.rooms.unset import UnsetReader, left_out
from capkeep.rooms.viewer import snapshot_name
from capkeep.values import is_at_or_below

DAYS: Final = 7 * 24 * 3600
CONFLICTS_TOLD: Final = 1000
DIFFERENCES_TOLD: Final = 10_000
KINDS: Final = {
    "dir": stat.S_IFDIR, "file": stat.S_IFREG, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO,
    "dev": stat.S_IFBLK, "chardev": stat.S_IFCHR,
}  # fmt: skip
# What the kernel answers in a user namespace that has no such user (chown(2), user_namespaces(7)).
FOREIGN_OWNER: Final = re.compile(r"lchown .*: invalid argument$", re.IGNORECASE | re.DOTALL)
UNKNOWN: Final = "\ufffd"
NOT_UTF8: Final = re.compile(
    "[\udc80-\udcff]"
)  # how Python holds a byte that is not UTF-8 (PEP 383)
TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)"
)


def main() -> int:
    """A restorer's whole life."""
    return serve({"restore": restore, "probe": probe}, seccomp.Profile.RESTORE)


class _Wish(NamedTuple):
    """What is asked for."""

    snapshot: str
    paths: tuple[str, ...]
    target: str  # "" in place
    overwrite: bool
    delete: bool
    dry_run: bool


def _wish(room: EngineRoom, request: Message) -> _Wish:
    """Raises ProtocolError for what this room is not there for."""
    target = option(request, "target", default="")
    paths = option_list(request, "paths")
    if any(not p.startswith("/") or "/../" in f"{p}/" for p in paths):
        raise ProtocolError("paths must be absolute, without ..")
    writable = room.brief.room.grant.write[1:]
    if option(request, "in_place", default=False):
        target = ""
        inside = [any(is_at_or_below(path, place) for place in writable) for path in paths]
        if not paths or not all(inside):
            raise ProtocolError("a path is not below the directory that this room may write")
    elif target not in writable:
        raise ProtocolError("the target is not the directory that this room may write")
    return _Wish(
        snapshot_name(request, "snapshot"), paths, target,
        *(option(request, name, default=False) for name in ("overwrite", "delete", "dry_run")),
    )  # fmt: skip


def restore(room: EngineRoom, request: Message) -> Message:
    """Restore paths of a snapshot below a directory, then compare all of it with the snapshot."""
    wish = _wish(room, request)
    caller = Caller(room)
    room.await_vault()
    listing = _Listing(caller, wish.paths)
    snapshot, word = _meant(caller, wish)
    listing.fetch(word)
    if wish.dry_run:
        counts = _preview(room, listing, wish)
        return done(caller, "nothing was changed", {**counts, "entries": listing.count})
    _refuse_links_above(wish)
    if wish.overwrite:
        _remove_links(room, listing, wish)
    else:
        _refuse_conflicts(room, listing, wish)
    abilities = caller.abilities()
    capable = room.brief.mode is not Mode.USER
    command = caller.engine.restore(
        caller.call, word, wish.target or "/", include=wish.paths, verify=True,
        sparse=abilities.sparse_restore, plain=abilities.plain_restore,
    )  # fmt: skip
    reader = _Owners(
        caller.engine.read_restore(), forgive=room.brief.mode is Mode.USER,
        only=() if wish.target else wish.paths,
    )  # fmt: skip
    unset = UnsetReader(reader, wish.target or "/")
    code = caller.run(command, pass_on(room, unset), DAYS)
    unset.tell(room)
    if not reader.nothing_else:
        _raise_for(caller, code, reader.tail, unset.words)
    removed = _clear(room, listing, wish) if wish.delete else 0
    differing = _compare(room, listing, wish.target)
    if differing:
        words = f"; {unset.words}" if unset.words else ""
        raise StepError(
            Failure.ENGINE,
            f"{differing} of {listing.count} entries are not as in the snapshot{words}",
            hint="they are listed above (all of them with --json); what was restored is in place",
        )
    if unset.words:
        raise StepError(
            Failure.ENGINE, f"everything was restored, but {unset.words}", hint=unset.hint
        )
    summary: Message = {"entries": listing.count, "bytes": listing.bytes, "snapshot": snapshot,
                        "target": wish.target or "/", "removed": removed,
                        "left_out": left_out(caller.engine.traits, abilities, capable=capable)}  # fmt: skip
    return done(caller, f"restored and verified {listing.count} entries", summary)


def _raise_for(caller: Caller, code: int, tail: tuple[str, ...], more: str) -> None:
    """Raises StepError for an engine that failed, with what else there is to say."""
    try:
        caller.raise_for(code, tail)
    except StepError as error:
        raise StepError(
            error.failure, f"{error}; {more}" if more else str(error), hint=error.hint,
            engine_words=error.engine_words,
        ) from error  # fmt: skip


def _meant(caller: Caller, wish: _Wish) -> tuple[str, str]:
    """The snapshot's id, or what is known of it, and the engine's word for it. Raises StepError."""
    if wish.snapshot != LATEST:
        return wish.snapshot, word_for(caller, wish.snapshot)
    found = snapshot_for(caller, wish.snapshot, wish.paths)
    return found.id, found.word


def _preview(room: EngineRoom, listing: "_Listing", wish: _Wish) -> dict[str, int]:
    """Tell what would change; how many of each kind."""
    from capkeep.rooms.changes import Changes

    changes = Changes(room)
    owners = room.brief.mode is not Mode.USER
    changes.compare(listing, wish.target, listing.mtime_digits, owners=owners)
    if wish.delete:
        known = {entry.path for entry in listing}
        changes.clear(wish.paths or ("/",), known, wish.target, dry_run=True)
    return changes.counts


def _clear(room: EngineRoom, listing: "_Listing", wish: _Wish) -> int:
    """Remove what the snapshot has not; how many. Raises OSError."""
    from capkeep.rooms.changes import Changes

    changes = Changes(room)
    known = {entry.path for entry in listing}
    changes.clear(wish.paths or ("/",), known, wish.target, dry_run=False)
    return changes.counts["removed"]


class _Owners:
    """Leaves out the complaints about owners that nobody can give without root.

    They are not lost: every entry is compared afterwards, and what became one's own is told. In place
    those about directories above what is restored go as well: restic would restore them, too, and
    they are not there to be written.
    """

    def __init__(self, reader: LineReader, *, forgive: bool, only: tuple[str, ...] = ()) -> None:
        self._reader = reader
        self._forgive = forgive
        self._only = only
        self._owners = self._others = 0

    @property
    def tail(self) -> tuple[str, ...]:
        return self._reader.tail

    @property
    def nothing_else(self) -> bool:
        """Whether owners, and they alone, are what the engine could not restore."""
        return bool(self._owners) and not self._others

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        events = self._reader.feed(stream, line)
        return tuple(e for e in events if not ((self._forgive or self._only) and self._is_owner(e)))

    def _is_owner(self, event: Event) -> bool:
        if isinstance(event, Unreadable):
            foreign = self._forgive and bool(FOREIGN_OWNER.search(event.detail))
            foreign = foreign or any(is_above(event.path, path) for path in self._only)
            self._owners += foreign
            self._others += not foreign
            return foreign
        if isinstance(event, Warned):
            counted = self.nothing_else and bool(ERROR_COUNT.match(event.text))
            self._others += not counted
            return counted
        return False


def is_above(path: str, below: str) -> bool:
    """Whether a path is a directory on the way to another one."""
    return path != below and is_at_or_below(below, path or "/")


class _Listing:
    """What the snapshot holds of the chosen paths, kept in the room's scratch, not in memory."""

    def __init__(self, caller: Caller, paths: tuple[str, ...]) -> None:
        self._caller = caller
        self._paths = paths
        self._file = f"{caller.scratch}/listing"
        self.mtime_digits = caller.engine.traits.mtime_digits
        self.count = 0
        self.bytes = 0

    def fetch(self, snapshot: str) -> None:
        """Ask the engine. Raises StepError, also where a chosen path is not in the snapshot."""
        tail: list[str] = []
        found: set[str] = set()
        with open(self._file, "w", encoding="utf-8", errors="surrogateescape") as file:

            def take(stream: str, line: bytes) -> None:
                entry = self._caller.engine.parse_ls_line(line) if stream == "stdout" else None
                if stream == "stderr":
                    tail.append(line.decode(errors="replace"))
                if entry is None or not self._chosen(entry.path):
                    return
                found.update(p for p in self._paths if p == entry.path)
                self.count += 1
                self.bytes += max(0, entry.size)
                file.write(json.dumps(entry) + "\n")

            engine, call = self._caller.engine, self._caller.call
            code = self._caller.run(engine.ls(call, snapshot), take, DAYS)
        self._caller.raise_for(code, tuple(tail[-40:]))
        missing = [p for p in self._paths if p.rstrip("/") not in {f.rstrip("/") for f in found}]
        if missing:
            raise StepError(
                Failure.CONFLICT, f"the snapshot does not hold {missing[0]}",
                hint="`capkeep ls` shows what it holds",
            )  # fmt: skip

    def _chosen(self, path: str) -> bool:
        return not self._paths or any(is_at_or_below(path, p) for p in self._paths)

    def __iter__(self) -> Iterator[Entry]:
        with open(self._file, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                yield Entry(*json.loads(line))


def _refuse_conflicts(room: EngineRoom, listing: _Listing, wish: _Wish) -> None:
    """Nothing that is there already is replaced unasked. Raises StepError.

    A link that leads to a directory is none: engines would write where it leads.
    """
    count, target = 0, wish.target
    for entry in listing:
        for place in places(target, entry.path):
            is_there = _kind(place)
            if is_there and not (entry.kind == "dir" and is_there == stat.S_IFDIR):
                count += 1
                if count <= CONFLICTS_TOLD:
                    room.tell({"event": "conflict", "path": place})
    if count:
        raise StepError(
            Failure.CONFLICT,
            f"{count} files are there already below {target}",
            hint="restore to an empty directory, or add --overwrite to replace them",
        )


def _remove_links(room: EngineRoom, listing: _Listing, wish: _Wish) -> None:
    """Take away each link where the snapshot has something else: engines write where it leads.

    By descriptors, and from above, so that none is followed on the way. Raises OSError.
    """
    from capkeep.rooms.changes import opened

    count = 0
    for entry in listing:
        for place in places(wish.target, entry.path) if entry.kind != "symlink" else ():
            if _kind(place) != stat.S_IFLNK:
                continue
            folder, _, name = place.rpartition("/")
            with opened(folder) as fd:
                if fd >= 0:
                    os.unlink(name, dir_fd=fd)
                    count += 1
    if count:
        text = f"{count} links were removed where the snapshot has no links"
        room.tell({"event": "warning", "text": text})


def _refuse_links_above(wish: _Wish) -> None:
    """What is above the chosen paths is not theirs to be replaced, and no link. Raises StepError."""
    for path in wish.paths:
        names = path.strip("/").split("/")
        for i in range(1, len(names)):
            for place in places(wish.target, "/".join(names[:i])):
                if _kind(place) == stat.S_IFLNK:
                    raise StepError(
                        Failure.CONFLICT, f"{place} is a symbolic link: engines write where it leads",
                        hint="restore to a directory of its own, or remove the link",
                    )  # fmt: skip


def _kind(place: str) -> int:
    """What is there, as in its mode; 0 for nothing."""
    try:
        return stat.S_IFMT(os.lstat(place).st_mode)
    except OSError:
        return 0


def _compare(room: EngineRoom, listing: _Listing, target: str) -> int:
    """How many entries differ from the snapshot; tells the caller of each."""
    count = given = 0
    digits = listing.mtime_digits
    grant = room.brief.room.grant
    for entry in listing:
        if room.brief.mode is Mode.USER and (entry.uid, entry.gid) != (grant.uid, grant.gid):
            given += 1
            entry = entry._replace(uid=grant.uid, gid=grant.gid)  # noqa: PLW2901
        # Names that the engine cannot write down exactly may look alike: one of them must be it.
        each = [list(differences_of(entry, place, digits)) for place in places(target, entry.path)]
        differences = min(each, key=len)
        if differences:
            count += 1
            if count <= DIFFERENCES_TOLD:
                room.tell({
                    "event": "difference", "path": entry.path, "detail": "; ".join(differences),
                })  # fmt: skip
    if given:
        text = f"{given} entries have another owner or group in the snapshot; without root they are yours"
        room.tell({"event": "warning", "text": text})
    return count


def places(target: str, path: str) -> list[str]:
    """Where an entry of the snapshot is below `target`; never empty.

    restic writes each byte of a name that is not UTF-8 as U+FFFD (encoding/json of Go), so such a
    name is looked up among those that are there, and several may look like it.
    """
    found = [target]
    for name in path.strip("/").split("/"):
        plain = [f"{folder}/{name}" for folder in found]
        if UNKNOWN in name:
            alike = [f"{folder}/{n}" for folder in found for n in _names_alike(folder, name)]
            found = alike or plain
        else:
            found = plain
    return found


def _names_alike(folder: str, name: str) -> list[str]:
    try:
        return [n for n in os.listdir(folder) if NOT_UTF8.sub(UNKNOWN, n) == name]
    except OSError:
        return []


def differences_of(entry: Entry, place: str, digits: int, *, owners: bool = True) -> Iterator[str]:
    """Each way in which a restored file is not what the snapshot says."""
    if entry.kind not in KINDS:
        return  # engines do not restore sockets: a socket is made by whoever listens on it
    try:
        state = os.lstat(place)
    except OSError as error:
        yield f"not restored: {error.strerror}"
        return
    if stat.S_IFMT(state.st_mode) != KINDS[entry.kind]:
        yield f"is not a {entry.kind}"
        return
    if owners and (state.st_uid, state.st_gid) != (entry.uid, entry.gid):
        yield f"owner {state.st_uid}:{state.st_gid}, in the snapshot {entry.uid}:{entry.gid}"
    if entry.kind != "symlink" and stat.S_IMODE(state.st_mode) != entry.mode:
        yield f"mode {stat.S_IMODE(state.st_mode):04o}, in the snapshot {entry.mode:04o}"
    if entry.kind == "file" and state.st_size != entry.size >= 0:
        yield f"{state.st_size} bytes, in the snapshot {entry.size}"
    wanted = nanoseconds(entry.mtime)
    known = 10 ** (9 - digits)  # nanoseconds: the listing may tell no less, and be rounded
    if wanted is not None and abs(state.st_mtime_ns - wanted) >= known:
        yield f"time differs from {entry.mtime}"


def nanoseconds(text: str) -> int | None:
    """An RFC 3339 time as nanoseconds since 1970; None for what is no such time."""
    found = TIME.fullmatch(text)
    if found is None:
        return None
    *date, fraction, zone = found.groups()
    seconds = calendar.timegm(tuple(map(int, date)))
    if zone != "Z":
        hours, minutes = int(zone[1:3]), int(zone[4:6])
        seconds -= (1 if zone[0] == "+" else -1) * (hours * 3600 + minutes * 60)
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))
