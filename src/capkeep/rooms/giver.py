"""The giver: shows and gives a member of the group what he could read himself, when it was backed up.

No capability, and a wire that only adds. Anybody of the group may ask, so this room alone decides: by
who asked as the kernel says it, and by the owner, mode and access control list in the snapshot of the
file and of every directory above it. It writes nothing of the caller's: he gets what he may have over
a pipe, and writes it himself.
"""

import json
import os
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.engines import gives
from capkeep.engines.base import Entry, Snapshot
from capkeep.engines.giving import Attributes, Node
from capkeep.errors import CapkeepError, Failure, StepError
from capkeep.kernel import seccomp
from capkeep.kernel.peer import Peer, peer_of
from capkeep.plan import codec
from capkeep.rooms import rights
from capkeep.rooms.base import PATIENCE_SECONDS, EngineRoom, option, option_list, serve
from capkeep.rooms.calls import (
    Caller,
    TooMuch,
    done,
    own_scratch,
    read_note,
    remove_tree,
    write_note,
)
from capkeep.rooms.latest import newest, own_of
from capkeep.rooms.outflow import Outflow
from capkeep.rooms.parcel import names_of
from capkeep.rooms.probe import probe
from capkeep.rooms.protocol import Message, ProtocolError
from capkeep.rooms.rights import READ, SEARCH, UNKNOWN
from capkeep.rooms.viewer import snapshot_name
from capkeep.values import is_at_or_below

SECONDS: Final = 2 * 3600  # of one call of the engine
HEX: Final = frozenset("0123456789abcdef")
PATHS: Final = 64  # in one request: each costs several calls of the engine
# What one must be able to do with an entry to see what it is.
SHOWN: Final = dict.fromkeys(("file", "symlink", "fifo", "dev", "chardev", "socket"), 0) | {
    "dir": READ | SEARCH
}
ASKED: Final = 200  # directories of whose entries the engine is asked, by the way of one listing
KNOWN: Final = 5000  # entries that are noted of a snapshot: a call of the engine for each is saved
NOTES: Final = "ways-"  # names of files in the cache, each with a snapshot's id
NOTE_LIMIT: Final = 16 << 20  # bytes


def main() -> int:
    """A giver's whole life."""
    actions = {"ls": ls, "find": find, "give": give, "probe": probe}
    return serve(actions, seccomp.Profile.READ, patience=PATIENCE_SECONDS)


class _Visit:
    """One caller, and what he asked for."""

    def __init__(self, room: EngineRoom) -> None:
        self.room = room
        try:
            self.peer: Peer = peer_of(room.caller.sock)
        except CapkeepError as error:
            raise StepError(Failure.REFUSED, str(error)) from error
        self._place, scratch = own_scratch(room.brief.room.grant.write[0])
        # A member who takes nothing must not keep retention from removing anything.
        self.caller = Caller(room, scratch, unlocked=True)
        self.gives = gives(self.caller.engine.name)
        self._tops: dict[str, str] = {}
        self.firm = False  # whether what is in the last entry that was asked for can be trusted
        self._known: dict[str, Node] = {}  # of the snapshot that is asked about, by path
        self._about = ""  # that snapshot
        self._asked_by_the_way = 0
        room.await_vault()

    def snapshots(self, asked: str) -> list[Snapshot]:
        """Those of this host's own jobs that are meant, oldest first. Raises StepError.

        In one that another host has made, or another program, the numbers of users mean other
        people; and a dump that was streamed has an owner and a mode that nobody gave it.
        """
        said = self.caller.output(self.caller.engine.snapshots(self.caller.call), SECONDS)
        self._tops = self.gives.tops(said)
        listed = self.caller.engine.parse_snapshots(said)
        own = own_of((s for s in listed if set(s.id) <= HEX), self.room.brief.jobs)
        if asked not in ("", "latest"):
            own = [s for s in own if s.id.startswith(asked)]
        if not own or (asked not in ("", "latest") and len(own) > 1):
            many = "several snapshots" if own else "no snapshot"
            raise StepError(Failure.REFUSED, f"this host's jobs have made {many} of that id")
        return own

    def snapshot(self, asked: str, paths: tuple[str, ...]) -> Snapshot:
        """One; of the latest that of the job that keeps the paths."""
        return newest(self.snapshots(asked), paths if asked == "latest" else ())

    def way(self, snapshot: Snapshot, path: str, wants: Mapping[str, int]) -> Node:
        """The entry of that path, if the caller may do with its kind what he wants. Raises StepError.

        Nothing of what lies behind a closed directory is looked at, and what is not there is
        refused in the same words as what may not be seen.
        """
        self._recall(snapshot)
        below, here, firm = self._tops[snapshot.id], "", True
        above: Node | None = None
        names = tuple(names_of(path))
        for number, name in enumerate(names):
            if above is not None:
                if not self.may(above, SEARCH):
                    raise _refused(path)
                firm = firm and rights.keeps_firm(self._plain(above))
            folder, here = here, f"{here}/{name}"
            if here not in self._known:
                self._look(below, folder, names[number:])
            above = self._known.get(here)
            if above is None:
                raise _refused(path)
            below = above.below
        self.note()
        assert above is not None, "a path has a name"
        want = wants.get(above.kind)
        if want is None or not self.may(above, want) or not (firm or above.uid == self.peer.uid):
            raise _refused(path)
        self.firm = firm and rights.keeps_firm(self._plain(above))
        return above

    def _look(self, below: str, folder: str, names: tuple[str, ...]) -> None:
        """Know what the engine says of the entry of that name in a directory, and maybe of those in it."""
        if not below:
            return
        printed = self._printed(below, folder, names)
        for name, node in zip(names, self.gives.seen(printed, below, folder, names), strict=False):
            folder += f"/{name}"
            self._known[folder] = node

    def _printed(self, below: str, folder: str, names: tuple[str, ...]) -> bytes:
        command = self.gives.look(self.caller.call, below, folder, names)
        try:
            return self.caller.output(command, SECONDS, tell=False)
        except TooMuch as error:
            raise TooMuch(
                error.failure, f"a directory holds too much to look for one name in it: {error}",
                hint="ask for the directory above, or root",
            ) from error  # fmt: skip

    def opens(self, snapshot: Snapshot, path: str) -> bool | None:
        """Whether the caller could list a directory, by its access control list too.

        None where that is not found out: of a name that is not UTF-8, which restic's listing does not
        show as it is, or where it would take too many calls.
        """
        if "\ufffd" in path:
            return None
        self._recall(snapshot)
        below, here = self._tops[snapshot.id], ""
        found: Node | None = None
        for name in names_of(path):
            folder, here = here, f"{here}/{name}"
            if here not in self._known:
                if not below or self._asked_by_the_way >= ASKED:
                    return None
                self._asked_by_the_way += 1
                try:
                    printed = self._printed(below, folder, (name,))
                except TooMuch:
                    return None
                for other, node in self.gives.folders(printed).items():
                    self._known[f"{folder}/{other}"] = node
            found = self._known.get(here)
            below = found.below if found else ""
        return found is not None and found.kind == "dir" and self.may(found, READ | SEARCH)

    def _recall(self, snapshot: Snapshot) -> None:
        """What is known of a snapshot, from now on."""
        if self._about != snapshot.id:
            self._about = snapshot.id
            self._known = _noted(self._note_path())

    def _note_path(self) -> str:
        return f"{self.caller.call.cache_dir}/{NOTES}{self._about}"

    def note(self) -> None:
        """Keep what is known of a snapshot for whoever asks next."""
        if not self._known or len(self._known) > KNOWN:
            return
        plain = {known: codec.to_plain(node) for known, node in self._known.items()}
        with suppress(OSError):  # somebody else is noting something at the same moment
            self._tidy()
            write_note(self._note_path(), json.dumps(plain).encode())

    def _tidy(self) -> None:
        """Forget what was noted of snapshots that are gone."""
        folder = self.caller.call.cache_dir
        for name in os.listdir(folder):
            if name.startswith(NOTES) and name.removeprefix(NOTES) not in self._tops:
                remove_tree(f"{folder}/{name}")

    def may(self, node: Node, want: int) -> bool:
        """Whether the caller may do that with an entry."""
        return rights.may(self.peer, self._plain(node), want)

    def _plain(self, node: Node) -> rights.Node:
        return rights.Node(node.uid, node.gid, node.mode, _list_of(node.attributes))

    def above(self, snapshot: Snapshot) -> dict[str, rights.Node]:
        """The directories above the sources, where a listing does not hold them."""
        found = self.gives.above(self._tops[snapshot.id])
        return {path: self._plain(node) for path, node in found.items()}


def _list_of(attributes: Attributes) -> rights.Acl | rights.Unknown | None:
    return rights.from_attributes((name, b64decode(value)) for name, value in attributes)


def _noted(path: str) -> dict[str, Node]:
    """What was asked about a snapshot before: it never changes."""
    with suppress(ValueError, codec.DecodeError):
        found = json.loads(read_note(path, NOTE_LIMIT) or b"{}")
        if isinstance(found, dict):
            return {known: codec.from_plain(Node, plain) for known, plain in found.items()}
    return {}


def _refused(path: str) -> StepError:
    return StepError(
        Failure.REFUSED, f"the snapshot holds no {path} that you could read",
        hint="what you could not read then is given by root alone",
    )  # fmt: skip


def _paths(request: Message) -> tuple[str, ...]:
    paths = option_list(request, "paths")
    if len(paths) > PATHS:
        raise ProtocolError(f"no more than {PATHS} paths at a time")
    for path in paths:
        names_of(path)
    return paths


# -- looking


def ls(room: EngineRoom, request: Message) -> Message:
    """What the caller could have listed, in a snapshot or below some paths in it."""
    paths = _paths(request)
    asked = snapshot_name(request, "snapshot")
    visit = _Visit(room)
    snapshot = visit.snapshot(asked, paths)
    view = _View(visit.peer)
    for path in paths:
        visit.way(snapshot, path, SHOWN)
        view.named.add(path)

    def show(entry: Entry) -> None:
        room.tell({"event": "entry", **entry._asdict()})

    _list(visit, snapshot, view, lambda _: True, show)
    return _seen(visit, view)


def find(room: EngineRoom, request: Message) -> Message:
    """Where names or paths occur, of what the caller could have listed; in one snapshot or all."""
    from fnmatch import fnmatchcase

    patterns = option_list(request, "patterns")
    if len(patterns) > PATHS:
        raise ProtocolError(f"no more than {PATHS} patterns at a time")
    asked = snapshot_name(request, "snapshot") if option(request, "snapshot", default="") else ""
    visit = _Visit(room)
    view = _View(visit.peer)
    searched = [visit.snapshot(asked, ())] if asked == "latest" else visit.snapshots(asked)

    def matches(entry: Entry) -> bool:
        name = entry.path.rpartition("/")[2]
        return any(fnmatchcase(entry.path if "/" in p else name, p) for p in patterns)

    for snapshot in reversed(searched):

        def show(entry: Entry, snapshot: str = snapshot.id) -> None:
            room.tell({"event": "entry", "snapshot": snapshot, **entry._asdict()})

        _list(visit, snapshot, view, matches, show)
    return _seen(visit, view)


class _Above(NamedTuple):
    """A directory that a listing is in."""

    path: str
    open: bool  # what is in it may be seen
    sure: bool  # whatever access control list it has; else as far as its mode tells
    firm: bool  # nobody but root could exchange what is in it, or what is above


class _View:
    """Which entries of a listing the caller may see; directories come before what is in them."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._above: list[_Above] = []
        self._tops: dict[str, rights.Node] = {}
        self.named: set[str] = set()  # paths that are known to be open
        self.shut = 0  # directories of which nobody knows whether their group may look into them
        self.count = 0

    def begin(self, tops: dict[str, rights.Node]) -> None:
        """A listing begins, which does not hold these directories above its entries."""
        self._above.clear()
        self._tops = tops

    def shows(self, entry: Entry, told: Attributes | None = None) -> bool:
        """Whether he may see that it is there; to be asked of every entry in its turn.

        `told`: its attributes, if the listing tells them.
        """
        above = self._in(entry.path.rpartition("/")[0])
        seen = self._visible(entry.path, entry.uid, above)
        if entry.kind == "dir":
            acl = UNKNOWN if told is None else _list_of(told)
            node = rights.Node(entry.uid, entry.gid, entry.mode, acl)
            self._enter(entry.path, node, above, sure=told is not None)
        if self.named and not any(is_at_or_below(entry.path, path) for path in self.named):
            return False
        return seen

    def _in(self, folder: str) -> "_Above":
        """The directory that the listing is in, if it is known."""
        while self._above and self._above[-1].path != folder:
            self._above.pop()
        if not self._above and folder in self._tops:
            above = self._in(folder.rpartition("/")[0])
            self._enter(folder, self._tops[folder], above, sure=True)
        return self._above[-1] if self._above else _Above("", not folder, True, not folder)

    def _visible(self, path: str, uid: int, above: "_Above") -> bool:
        return (above.open and (above.firm or uid == self._peer.uid)) or path in self.named

    def _enter(self, path: str, node: rights.Node, above: "_Above", *, sure: bool) -> None:
        named = path in self.named
        seen = self._visible(path, node.uid, above)
        opened = named or (seen and self._open(node, sure=sure))
        sure = sure or named or node.uid == self._peer.uid
        self._above.append(_Above(path, opened, sure, above.firm and rights.keeps_firm(node)))

    def confirmed(self, entry: Entry, opens: Callable[[str], bool | None]) -> bool:
        """Whether it is so by the lists of the directories above, too; after `shows`.

        Those are asked about when something is in them that would be shown, and once.
        """
        if entry.path in self.named:
            return True
        above = range(len(self._above) - (entry.kind == "dir"))
        # What is above one that was named has been looked at on the way there.
        named = [n for n in above if self._above[n].path in self.named]
        for number in above[named[-1] if named else 0 :]:
            one = self._above[number]
            if one.open and not one.sure:
                found = opens(one.path)
                self.shut += found is None
                one = self._above[number] = one._replace(open=found is True, sure=True)
            if not one.open:
                return False
        return True

    def _open(self, node: rights.Node, *, sure: bool) -> bool:
        if rights.may(self._peer, node, READ | SEARCH):
            return True
        bits = node.mode >> 3 & (READ | SEARCH)
        self.shut += not sure and bits == READ | SEARCH and node.uid != self._peer.uid
        return False


def _list(
    visit: _Visit,
    snapshot: Snapshot,
    view: _View,
    wanted: Callable[[Entry], bool],
    on_entry: Callable[[Entry], None],
) -> None:
    """Every wanted entry of a snapshot that may be seen. Raises StepError."""
    tail: list[str] = []
    engine, giving = visit.caller.engine, visit.gives
    view.begin(visit.above(snapshot))

    def opens(path: str) -> bool | None:
        return visit.opens(snapshot, path)

    def take(stream: str, line: bytes) -> None:
        entry = engine.parse_ls_line(line) if stream == "stdout" else None
        if entry is not None:
            shown = view.shows(entry, giving.told(line))
            if shown and wanted(entry) and view.confirmed(entry, opens):
                view.count += 1
                on_entry(entry)
        elif stream == "stderr":
            tail.append(line.decode(errors="replace"))
            del tail[:-40]

    command = giving.listed(visit.caller.call, snapshot.word)
    code = visit.caller.run(command, take, SECONDS, tell=False)
    visit.note()
    visit.caller.raise_for(code, tuple(tail))


def _seen(visit: _Visit, view: _View) -> Message:
    if view.shut:
        text = (f"{view.shut} directories that may be open to you were not looked into: name one"
                " with `capkeep ls` to have its access control list read")  # fmt: skip
        visit.room.tell({"event": "warning", "text": text})
    return done(visit.caller, f"{view.count} entries", {"entries": view.count})


# -- giving


def give(room: EngineRoom, request: Message) -> Message:
    """Hand over what the caller could have read of some paths, and say what is left out."""
    paths = _paths(request)
    if not paths:
        raise ProtocolError("name what to give")
    asked = snapshot_name(request, "snapshot")
    visit = _Visit(room)
    snapshot = visit.snapshot(asked, paths)
    chosen: list[tuple[str, Node, bool]] = []
    for path in paths:
        node = visit.way(snapshot, path, rights.WANTED)
        chosen.append((path, node, visit.firm))
    with Outflow(visit.caller, visit.peer) as flow:
        for path, node, firm in chosen:
            flow.give(snapshot.word, path, node, firm=firm)
        flow.end()
    summary: Message = {"entries": flow.count, "bytes": flow.bytes, "left_out": flow.left_out,
                        "attributes_left_out": flow.attributes_left_out,
                        "snapshot": snapshot.id}  # fmt: skip
    return done(visit.caller, f"gave {flow.count} entries", summary)
