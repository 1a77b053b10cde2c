"""What happens to each engine, once; the behaviours are read off afterwards.

Everything is the work of rooms. A scene is played when the first behaviour asks for it.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar, cast

from capkeep.engines.base import Call
from capkeep.plan.model import Plan, Resources, Retention, RoomKind
from capkeep.rooms.protocol import Message
from capkeep.values import Keep
from tests.contract import tree
from tests.contract.stand import PACE, SECONDS, Asked, Heard, Stand
from tests.contract.tree import Kept
from tests.rooms.house import UIDS, members_of

MIB: Final = 1 << 20
T = TypeVar("T")
READER, KEEPER, VIEWER = RoomKind.READER, RoomKind.KEEPER, RoomKind.VIEWER


class scene(Generic[T]):  # noqa: N801 - a decorator
    """Played once, also where it failed: each of its behaviours says so then, and at once."""

    def __init__(self, play: Callable[["Scenes"], T]) -> None:
        self._play = play
        self._name = play.__name__

    def __get__(self, scenes: "Scenes", _: object = None) -> T:
        if self._name not in scenes.played:
            try:
                scenes.played[self._name] = self._play(scenes)
            except BaseException as error:  # the end of a test's time among them
                scenes.played[self._name] = error
        found = scenes.played[self._name]
        if isinstance(found, BaseException):
            raise found
        return cast("T", found)


class Tree(NamedTuple):
    """Every kind of metadata, there and back."""

    made: Heard
    restored: Heard
    before: dict[bytes, Kept]
    after: dict[bytes, Kept]
    top: Path
    back: Path
    entries: dict[str, Message]


class Labels(NamedTuple):
    """Attributes that no room may set."""

    restored: Heard
    before: dict[bytes, Kept]
    after: dict[bytes, Kept]


class Huge(NamedTuple):
    """One file that is larger than 32 bits can count."""

    made: Heard
    restored: Heard
    listed: int  # its size, as the list has it
    came_back: tree.Content


class Trouble(NamedTuple):
    """What may not be read, or is not there."""

    seen: Heard  # by whom may read all; one of two sources is missing
    blind: Heard  # by whom may not
    held: set[str]  # what the snapshot by whom may not holds then
    nothing: Heard  # the only source is missing
    empty: Heard


class Moving(NamedTuple):
    """What is not the same at the end of a backup as at its beginning."""

    made: Heard
    another: str  # a backup meanwhile: why not
    removal: str  # a removal meanwhile: why not
    shrunk: int  # bytes kept of the file that shrank to 1000
    restored: Heard


class History(NamedTuple):
    """Three snapshots of a source that changes, and what becomes of them."""

    first: Heard
    second: Heard
    listed: list[dict[str, object]]
    found: dict[str, set[int]]  # in which snapshots a name is
    changes: dict[str, str]
    dry: Heard
    rehearsed: Heard  # only the first of three taken for complete, and one to be kept
    removed: Heard
    left: list[dict[str, object]]
    size_before: int
    size_after: int


class Refused(NamedTuple):
    """What cannot be opened."""

    wrong: dict[str, str]  # by action, with another password
    absent: dict[str, str]  # by action, where there is no repository
    again: Heard  # made where one is
    unknown: Heard  # a snapshot that is not there


class Damage(NamedTuple):
    """A repository that is not as it was."""

    quiet: Heard  # a check without data, of damaged data
    loud: Heard  # with data
    restore: Heard
    missing: Heard  # a check without data, of missing data
    missing_read: Heard  # with data, if that found nothing


class Streamed(NamedTuple):
    """A dump that comes through a pipe."""

    whole: Heard | None
    listed: list[dict[str, object]]
    after_half: int
    refused: str


class Stopped(NamedTuple):
    """A backup that was ended before its time."""

    at_start: str
    killed: str
    asked: str
    more: int  # snapshots after all of them, and a caller that left, and everything killed at once
    again: Heard
    removal: str
    sound: Heard


class Keys(NamedTuple):
    """Another password."""

    added: Heard
    opened: str  # why it does not open the repository, with the other one
    closed: str  # with the first one, after that one's key was removed


class Full(NamedTuple):
    """A repository on a disk that is full."""

    made: Heard
    chosen: dict[str, str]  # what came back of the earlier one's, when one of its files was wanted
    later: Heard
    snapshots: int


class Scenes:
    """All of them, of one engine."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.played: dict[str, object] = {}

    @scene
    def tree(self) -> Tree:
        stand = self.stand
        top = stand.source("tree")
        tree.make(top)
        for name in (
            "a.left-out", "sub/cache-a/in", "sub/exactly", "sub/exactly not", "st*r/in", "star/in",
            "b[1]", "b1",
        ):  # fmt: skip
            (top / name).parent.mkdir(exist_ok=True)
            (top / name).write_bytes(b"x" * 9)
        before = tree.manifest(top)
        literally = (stand.engine.literal(f"{top}/{name}") for name in ("st*r", "b[1]"))
        exclude = (*stand.plan.job("tree").exclude, *literally)
        made = stand.back_up("tree", stand.with_job("tree", exclude=exclude))
        restored, back = stand.restore("tree")
        listed = stand.ask(VIEWER, "tree", "ls", snapshot="latest", paths=[])
        entries = {str(m["path"]): m for m in listed.all("entry")}
        return Tree(made, restored, before, tree.manifest(back), top, back, entries)

    @scene
    def labels(self) -> Labels:
        top = self.stand.source("labels")
        tree.label(top)
        assert self.stand.back_up("labels").verdict(self.stand.plan.job("labels")) == "complete"
        restored, back = self.stand.restore("labels")
        return Labels(restored, tree.manifest(top), tree.manifest(back))

    @scene
    def huge(self) -> Huge:
        stand = self.stand
        file = stand.source("huge") / "file"
        tree.make_huge(file)
        made = stand.back_up("huge")
        restored, back = stand.restore("huge")
        listed = stand.ask(VIEWER, "huge", "ls", snapshot="latest", paths=[])
        sizes = [m["size"] for m in listed.all("entry") if m["path"] == str(file)]
        came_back = tree.read_huge(back / "file")
        (back / "file").unlink()  # whoever knows no holes has filled them
        return Huge(made, restored, int(str(sizes[0])), came_back)

    @scene
    def trouble(self) -> Trouble:
        stand = self.stand
        top = stand.source("trouble")
        empty = stand.back_up("trouble")
        later = top / "later"
        later.write_text("kept, and then not to be read")
        later.chmod(0o600)
        (top / "closed").mkdir(mode=0o700)
        for name in (b"open", b"secret", b"closed/inside", b"odd \xff"):
            Path(os.fsdecode(bytes(top) + b"/" + name)).write_bytes(name)
        nowhere = str(stand.base / "source" / "nowhere")
        seen = stand.back_up("trouble", stand.with_job("trouble", include=(str(top), nowhere)))
        for name in (b"secret", b"odd \xff"):
            Path(os.fsdecode(bytes(top) + b"/" + name)).chmod(0)
        blind = stand.back_up("trouble", stand.without_capability("trouble"))
        listed = stand.ask(VIEWER, "trouble", "ls", snapshot="latest", paths=[str(top)])
        held = {str(m["path"]).rpartition("/")[2] for m in listed.all("entry")}
        nothing = stand.back_up("trouble", stand.with_job("trouble", include=(nowhere,)))
        return Trouble(seen, blind, held, nothing, empty)

    @scene
    def moving(self) -> Moving:
        stand = self.stand
        top = stand.source("moving")
        for name in ("here", "there"):  # so that there is something to remove
            (top / name).write_text("kept before")
            assert stand.back_up("moving").ok
        complete = [s["id"] for s in stand.snapshots("moving")]
        (top / "a grows").write_bytes(os.urandom(12 * MIB))
        _after(top / "a grows", top / "m shrinks", Path.touch)
        (top / "m shrinks").write_bytes(os.urandom(12 * MIB))
        for number in range(4):  # so that what comes last has not been opened
            (top / f"n {number}").write_bytes(os.urandom(2 * MIB))
        _after(top / "m shrinks", top / "z vanishes", Path.touch)
        _after(top / "m shrinks", top / "z vanishes too", Path.mkdir)
        _after(top / "m shrinks", top / "z turns", Path.mkdir)
        (top / "z turns/in").write_text("x")
        with stand.asked(READER, "moving", "backup", plan=self._slow) as room:
            engine = room.reading(top / "a grows")
            another = stand.back_up("moving").failure
            removal = self._removal("moving", complete)
            with (top / "a grows").open("ab") as file:
                file.write(b"longer")
            (top / "z vanishes").unlink()
            (top / "z vanishes too").rmdir()
            shutil.rmtree(top / "z turns")
            (top / "z turns").write_text("a file now")
            os.kill(engine, signal.SIGCONT)
            engine = room.reading(top / "m shrinks")
            os.truncate(top / "m shrinks", 1000)
            os.kill(engine, signal.SIGCONT)
            made = room.hear_out()
        restored, back = stand.restore("moving", snapshot=str(made.result["snapshot"]))
        kept = back / "m shrinks"
        shrunk = kept.stat().st_size if kept.exists() else -1
        return Moving(made, another, removal, shrunk, restored)

    @property
    def _slow(self) -> Plan:
        return self.stand.with_job("moving", resources=Resources(upload_bytes=PACE))

    def _removal(self, scene: str, complete: list[object]) -> str:
        """Why all snapshots but the newest cannot be removed; "" if they can."""
        heard = self._retention(scene, complete, 1)
        failures = [str(m["failure"]) for m in heard.all("part") if m["failure"]]
        return failures[0] if failures else heard.failure

    def _retention(
        self, scene: str, complete: list[object], last: int, *, dry_run: bool = False
    ) -> Heard:
        plan = self.stand.with_job(scene, retention=Retention(Keep(last=last), trust_clock=True))
        return self.stand.ask(
            KEEPER, scene, "upkeep", plan, job=scene, parts=["retention"], complete=complete,
            dry_run=dry_run,
        )  # fmt: skip

    @scene
    def history(self) -> History:
        stand = self.stand
        top = stand.source("history")
        (top / "changes").write_text("old")
        (top / "goes").write_text("x")
        (top / "mode").write_text("x")
        (top / "moves").write_bytes(os.urandom(2 * MIB))
        first = stand.back_up("history")
        for name in ("changes", "moves"):
            (top / name).write_bytes(os.urandom(2 * MIB))
        (top / "goes").unlink()
        (top / "comes").write_text("y")
        (top / "mode").chmod(0o600)
        second = stand.back_up("history")
        (top / "moves").write_text("small")
        assert stand.back_up("history").ok
        listed = stand.snapshots("history")
        ids = [str(s["id"]) for s in listed]

        patterns = ["co*", f"{top}/goes"]
        everywhere: dict[str, set[int]] = {}
        for match in stand.ask(VIEWER, "history", "find", patterns=patterns).all("entry"):
            name = str(match["path"]).rpartition("/")[2]
            everywhere.setdefault(name, set()).add(ids.index(str(match["snapshot"])))
        compared = stand.ask(VIEWER, "history", "diff", first=ids[0], second=ids[1])
        changes = {
            str(m["path"]).rpartition("/")[2]: str(m["modifier"]) for m in compared.all("entry")
        }
        rehearsed = self._retention("history", [ids[0]], 1, dry_run=True)
        dry = stand.back_up("history", dry_run=True)
        before = _size(stand.repository("history"))
        removed = self._retention("history", [*ids], 2)
        left = stand.snapshots("history")
        after = _size(stand.repository("history"))
        return History(
            first, second, listed, everywhere, changes, dry, rehearsed, removed, left, before, after,
        )  # fmt: skip

    @scene
    def refused(self) -> Refused:
        stand = self.stand
        other = stand.with_password("another password")
        absent = stand.with_repository("history", stand.base / "repositories" / "absent")
        (stand.base / "repositories" / "absent").mkdir()
        os.chown(stand.base / "repositories" / "absent", *[UIDS[RoomKind.VAULT]] * 2)
        asked: dict[str, tuple[RoomKind, Message]] = {
            "backup": (READER, {}), "check": (KEEPER, {}),
        }  # fmt: skip

        def each(plan: Plan) -> dict[str, str]:
            return {
                action: stand.ask(kind, "history", action, plan, **options).failure
                for action, (kind, options) in asked.items()
            }

        again = stand.ask(KEEPER, "history", "init")
        unknown = stand.ask(VIEWER, "history", "ls", snapshot="deadbeef", paths=[])
        return Refused(each(other), each(absent), again, unknown)

    @scene
    def damage(self) -> Damage:
        stand = self.stand
        top = stand.source("damage")
        (top / "data").write_bytes(os.urandom(2 * MIB))
        assert stand.back_up("damage").ok
        largest = max(
            (p for p in stand.repository("damage").rglob("*") if p.is_file()),
            key=lambda p: p.stat().st_size,
        )
        largest.chmod(0o600)
        with largest.open("r+b") as file:
            file.seek(largest.stat().st_size // 2)
            file.write(b"\xde\xad\xbe\xef" * 4)
        quiet = stand.ask(KEEPER, "damage", "check")
        loud = stand.ask(KEEPER, "damage", "check", read_data="all")
        restore, _ = stand.restore("damage")
        largest.unlink()
        missing = stand.ask(KEEPER, "damage", "check")
        read = missing if missing.failure else stand.ask(KEEPER, "damage", "check", read_data="all")
        return Damage(quiet, loud, restore, missing, read)

    @scene
    def stopped(self) -> Stopped:
        """After the scene of what moves, which leaves something to read."""
        stand = self.stand
        before = 3 if self.moving.another else 4
        top = stand.source("moving")
        first, last = top / "a grows", top / "y last"
        last.write_bytes(os.urandom(8 * MIB))

        @contextmanager
        def backup(file: Path) -> Iterator[tuple[Asked, int]]:
            """One that stands still while it reads a file."""
            for path in (first, last):
                os.utime(path)
            with stand.asked(READER, "moving", "backup", plan=self._slow) as room:
                yield room, room.reading(file)

        def ended(file: Path, number: int) -> str:
            with backup(file) as (room, engine):
                os.kill(engine, number)
                with suppress(ProcessLookupError):  # what is killed is gone at once
                    os.kill(engine, signal.SIGCONT)
                return room.hear_out().failure

        with stand.asked(READER, "moving", "backup") as room:
            while (said := room.channel.receive()) and said.get("process") != "engine":
                pass
            _kill(room.engine())
            at_start = room.hear_out().failure
        killed = ended(first, signal.SIGKILL)
        asked = ended(last, signal.SIGTERM)
        with backup(first) as (_, engine):
            os.kill(engine, signal.SIGCONT)
        with backup(last) as (room, _):
            for child in room.started.children():
                _kill(*members_of(child.pid), child.pid)
        ids = [s["id"] for s in stand.snapshots("moving")]
        again = stand.back_up("moving")
        removal = self._removal("moving", ids)
        sound = stand.ask(KEEPER, "moving", "check", read_data="all")
        return Stopped(at_start, killed, asked, len(ids) - before, again, removal, sound)

    @scene
    def full(self) -> Full:
        stand = self.stand
        top, place = stand.source("full"), stand.repository("full")
        with _little_disk(place) as grow:
            shutil.copytree(stand.base / "template", place, dirs_exist_ok=True)
            stand.give(place)
            for name in ("[a]", "a", "file"):
                (top / name).write_text("one")
            assert stand.back_up("full", self._floorless()).ok
            (top / "much").write_bytes(os.urandom(24 * MIB))
            made = stand.back_up("full", self._floorless())
            grow()
            (top / "much").unlink()
            (top / "[a]").write_text("two")
            later = stand.back_up("full", self._floorless())
            snapshots = stand.snapshots("full")
            _, back = stand.restore("full", top / "[a]", snapshot=str(snapshots[0]["id"]))
            chosen = {p.name: p.read_text() for p in back.iterdir()}
        return Full(made, chosen, later, len(snapshots))

    def _floorless(self) -> Plan:
        """Vaults that leave it to the engine to find that a disk is full."""
        plan = self.stand.plan
        rooms = (
            r._replace(grant=r.grant._replace(limits=r.grant.limits._replace(free_space_bytes=0)))
            for r in plan.rooms
        )
        return plan._replace(rooms=tuple(rooms))

    @scene
    def keys(self) -> Keys:
        stand = self.stand
        assert self.stream
        first = stand.ask(KEEPER, "stream", "keys", what="list").result.get("keys")
        added = stand.ask(KEEPER, "stream", "keys", what="add", password="another")
        if not added.ok:
            return Keys(added, "", "")
        assert isinstance(first, list)
        other = stand.with_password("another")
        opened = stand.ask(
            KEEPER, "stream", "keys", other, what="remove", key=first[0]["id"]
        ).failure
        return Keys(added, opened, stand.ask(KEEPER, "stream", "snapshots").failure)

    @scene
    def stream(self) -> Streamed:
        """Before the password is another."""
        stand = self.stand
        if self.stand.who.engine == "rdiff-backup":
            try:
                stand.engine.backup_stream(
                    Call("", "", "", "", ""), "/rows.sql", stand.plan.jobs[0]
                )
            except ValueError as error:
                return Streamed(None, [], 0, str(error))
        whole = self._streamed(b"rows\n" * 1000, whole=True)
        listed = stand.snapshots("stream")
        self._streamed(b"half\n", whole=False)
        return Streamed(whole, listed, len(stand.snapshots("stream")), "")

    def _streamed(self, data: bytes, *, whole: bool) -> Heard:
        """What is given is all, or the room is left before its end."""
        out, into = os.pipe()
        options: Message = {"dump": "rows", "file": "sql"}
        with self.stand.asked(READER, "stream", "stream", options) as room:
            while (said := room.channel.receive()) and said.get("event") != "ready":
                pass
            socket.send_fds(room.channel.sock, [b"x"], [out])
            os.close(out)
            os.write(into, data)
            if not whole:
                time.sleep(1)
                room.channel.close()
                return Heard([])
            os.close(into)
            return room.hear_out()


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())


def _after(first: Path, path: Path, make: Callable[[Path], None]) -> None:
    """Make something that is read after another: most engines go by name, borg by inode number."""
    for number in range(10_000):
        attempt = path.with_name(f"n {number} before {path.name}")
        make(attempt)
        if attempt.stat().st_ino > first.stat().st_ino:
            attempt.rename(path)
            return
    raise AssertionError(f"no inode was found that is above that of {first}")


def _kill(*processes: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def _little_disk(place: Path) -> Iterator[Callable[[], None]]:
    """A filesystem of 12 MiB, and what makes it large."""

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words, str(place)], check=True, timeout=SECONDS)

    mount("-t", "tmpfs", "-o", "size=12m,mode=0755", "capkeep-contract")
    try:
        yield lambda: mount("-o", "remount,size=64m")
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=SECONDS)
