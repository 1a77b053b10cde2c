"""An engine that is one file, as docs/explanation/engines.md says: its repositories are in memory.

`ENGINE` is the engine, pure as all are; `Memory` is the program that its commands would start. Names
of files are the machine's; what they hold is `Memory.files`.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import (
    Abilities,
    Above,
    Call,
    Cause,
    Change,
    CheckResult,
    Command,
    Diagnosis,
    DiffTotals,
    Engine,
    Entry,
    Event,
    Key,
    Match,
    NewKey,
    RestoreResult,
    Seen,
    Selection,
    Served,
    Snapshot,
    Summary,
    Traits,
    Unreadable,
    Warned,
)
from capkeep.engines.diagnosis import SENTENCES, by_signal
from capkeep.errors import EXIT_PARTIAL, Failure

Object = dict[str, str]  # of a line: the kind of thing is under "is"


class _Reader:
    """Turns lines into events."""

    def __init__(self, watch: tuple[str, ...] = ()) -> None:
        self._watch = watch
        self._tail: list[str] = []
        self._damaged: list[str] = []

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        told: Object = json.loads(line)
        match told["is"]:
            case "unread":
                return (Unreadable(told["path"], Cause(told["cause"]), ""),)
            case "kept":
                return (Seen(told["path"], read=True),) if told["path"] in self._watch else ()
            case "made":
                return (Summary(told["id"], total_files=int(told["files"])),)
            case "damaged":
                self._damaged.append(told["path"])
                return (Warned(told["path"]),)
            case "failed":
                self._tail.append(told["why"])
        return ()

    @property
    def tail(self) -> tuple[str, ...]:
        return tuple(self._tail)


class _CheckReader(_Reader):
    def result(self) -> CheckResult:
        return CheckResult(len(self._damaged), (), tuple(self._damaged))


class _RestoreReader(_Reader):
    def result(self) -> RestoreResult:
        return RestoreResult(0, 0, 0, 0)


class InMemory:
    """What there is to say of it."""

    name = "memory"
    traits = Traits(program="true", package="coreutils", schemes=("local",), password=False)

    def server(self, place: Served) -> Command | None:
        return Command(("/usr/bin/true", place.path), ())

    def version(self, call: Call) -> Command:
        return _command(call, "version")

    def abilities(self, output: bytes) -> Abilities:
        version = tuple(map(int, json.loads(output)["version"].split(".")))
        return Abilities(version, sparse_restore=True, keep_existing=True, restore_events=True)

    def init(self, call: Call) -> Command:
        return _command(call, "init")

    def backup(
        self, call: Call, what: Selection, *, dry_run: bool = False, parent: str = "",
        watch: tuple[str, ...] = (),
        name: bool = True,
        count: bool = True,
        above: tuple[Above, ...] = (),
        turn: int = -1,
    ) -> Command:  # fmt: skip
        return _command(
            call, "backup", *what.include, f"host={what.host}", *(f"tag={t}" for t in what.tags)
        )

    def backup_stream(self, call: Call, path: str, what: Selection) -> Command:
        raise ValueError("nothing streams into memory")

    def literal(self, path: str) -> str:
        return path

    def check(self, call: Call, *, read_data: str = "", lock: bool = True) -> Command:
        return _command(call, "check", read_data)

    def snapshots(self, call: Call, *, lock: bool = True) -> Command:
        return _command(call, "snapshots")

    def ls(self, call: Call, snapshot: str, paths: tuple[str, ...] = ()) -> Command:
        return _command(call, "ls", snapshot)

    def find(self, call: Call, pattern: str, *, snapshots: tuple[str, ...] = ()) -> Command:
        return _command(call, "find", pattern, *snapshots)

    def diff(
        self, call: Call, old: str, new: str, *, metadata: bool = False, lock: bool = True
    ) -> Command:
        return _command(call, "diff", old, new)

    def restore(
        self, call: Call, snapshot: str, target: str, *, include: tuple[str, ...] = (),
        verify: bool = False, sparse: bool = False, keep_existing: bool = False,
        plain: bool = False, files: bool = False,
    ) -> Command:  # fmt: skip
        return _command(call, "restore", snapshot, target, *include)

    def forget(
        self, call: Call, snapshots: tuple[str, ...], *, prune: bool = False, expected: str = ""
    ) -> Command:
        return _command(call, "forget", *snapshots)

    def bring_back(self, call: Call, ids: str) -> Command | None:
        return None

    def prune(self, call: Call) -> Command:
        return _command(call, "snapshots")

    def unlock(self, call: Call) -> Command:
        return _command(call, "snapshots")

    def keys(self, call: Call) -> Command:
        raise ValueError("memory has no keys")

    def export_key(self, call: Call) -> Command | None:
        return None

    def master(self, call: Call, password: str) -> Command | None:
        return None

    def make_key(self, master: bytes, password: str) -> NewKey | None:
        return None

    def add_key(self, call: Call, password_file: str) -> Command:
        raise ValueError("memory has no keys")

    def remove_key(self, call: Call, key: str) -> Command:
        raise ValueError("memory has no keys")

    def read_backup(self, watch: tuple[str, ...] = ()) -> _Reader:
        return _Reader(watch)

    def read_check(self) -> _CheckReader:
        return _CheckReader()

    def read_restore(self) -> _RestoreReader:
        return _RestoreReader()

    def partial(self, exit_code: int) -> bool:
        return exit_code == EXIT_PARTIAL

    def parse_snapshots(self, output: bytes) -> tuple[Snapshot, ...]:
        found = map(json.loads, output.splitlines())
        return tuple(
            Snapshot(s["id"], s["time"], s["host"], "", tuple(s["paths"]), tuple(s["tags"]))
            for s in found
        )

    def parse_keys(self, output: bytes) -> tuple[Key, ...]:
        return ()

    def parse_find(self, output: bytes) -> Iterator[Match]:
        for line in output.splitlines():
            if entry := self.parse_ls_line(line):
                yield Match(json.loads(line)["snapshot"], entry)

    def parse_ls_line(self, line: bytes) -> Entry | None:
        told = json.loads(line) if line else {}
        if told.get("is") != "entry":
            return None
        return Entry(told["path"], "file", int(told["size"]), 0o644, 0, 0, "2026-01-01T00:00:00Z")

    def parse_diff_line(self, line: bytes) -> Change | DiffTotals | None:
        told: Object = json.loads(line)
        return Change(told["path"], told["how"]) if told["is"] == "change" else None

    def diagnose(
        self, exit_code: int, tail: tuple[str, ...], *, backup: bool = False
    ) -> Diagnosis | None:
        if exit_code == 0 or (backup and self.partial(exit_code)):
            return None
        words = "\n".join(tail)
        if exit_code < 0:
            return by_signal(-exit_code, words)
        for failure in (Failure.NO_REPOSITORY, Failure.LOCKED, Failure.NO_SPACE):
            if failure in words:
                return Diagnosis(failure, SENTENCES[failure], words)
        return Diagnosis(Failure.ENGINE, words or SENTENCES[Failure.ENGINE], words)


ENGINE: Engine = InMemory()


def _command(call: Call, *words: str) -> Command:
    return Command((call.program, *words), (("REPOSITORY", call.repository),))


VERSION: Final = "1.0.0"
Snapshots = dict[str, tuple[Snapshot, dict[str, bytes]]]


class Memory:
    """The program: what its commands come to. `play` gives lines, and the exit code last."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Cause] = {}  # a cause is why it cannot be read
        self.repositories: dict[str, Snapshots] = {}

    def play(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[list[bytes], int]:
        lines: list[dict[str, object]] = []
        try:
            code = self._do(argv[1], argv[2:], env["REPOSITORY"], lines)
        except LookupError as error:
            lines.append({"is": "failed", "why": str(error.args[0])})
            code = 1
        return [json.dumps(line).encode() for line in lines], code

    def _do(
        self, verb: str, words: tuple[str, ...], place: str, say: list[dict[str, object]]
    ) -> int:
        if verb == "version":
            say.append({"is": "version", "version": VERSION})
            return 0
        if verb == "init":
            self.repositories[place] = {}
            return 0
        if place not in self.repositories:
            raise LookupError(Failure.NO_REPOSITORY)
        kept = self.repositories[place]
        if verb == "backup":
            return self._backup(kept, words, say)
        if verb == "snapshots":
            say += [{"is": "snapshot", **s._asdict()} for s, _ in kept.values()]
        elif verb == "ls":
            say += [_entry(p, c) for p, c in sorted(self._of(kept, words[0]).items())]
        elif verb == "find":
            say += [
                {**_entry(p, c), "snapshot": name}
                for name in words[1:] or kept
                for p, c in self._of(kept, name).items()
                if words[0] in (p, p.rpartition("/")[2])
            ]
        elif verb == "diff":
            old, new = (self._of(kept, name) for name in words)
            say += [{"is": "change", "path": p, "how": "+"} for p in new.keys() - old.keys()]
            say += [{"is": "change", "path": p, "how": "-"} for p in old.keys() - new.keys()]
        elif verb == "check":
            wrong = [
                p for _, held in kept.values() for p, c in held.items() if words[0] and c == b"rot"
            ]
            say += [{"is": "damaged", "path": p} for p in wrong]
            return 1 if wrong else 0
        elif verb == "forget":
            for name in words:
                del kept[name]
        else:
            raise LookupError(f"memory cannot {verb}")
        return 0

    def _backup(self, kept: Snapshots, words: tuple[str, ...], say: list[dict[str, object]]) -> int:
        labels = [w.partition("=") for w in words if not w.startswith("/")]
        paths = tuple(w for w in words if w.startswith("/"))
        chosen = {p: c for p, c in self.files.items() if any(p.startswith(f"{i}/") for i in paths)}
        unread = {p: c for p, c in chosen.items() if isinstance(c, Cause)}
        held = {p: c for p, c in chosen.items() if not isinstance(c, Cause)}
        name = hashlib.sha256(f"{len(kept)}".encode()).hexdigest()
        host = next(value for key, _, value in labels if key == "host")
        tags = tuple(value for key, _, value in labels if key == "tag")
        time = f"2026-01-{len(kept) + 1:02}T00:00:00Z"
        kept[name] = (Snapshot(name, time, host, "", paths, tags), held)
        say += [{"is": "unread", "path": p, "cause": c} for p, c in unread.items()]
        say += [{"is": "kept", "path": p} for p in held]
        say.append({"is": "made", "id": name, "files": str(len(held))})
        return EXIT_PARTIAL if unread else 0

    def _of(self, kept: Snapshots, name: str) -> dict[str, bytes]:
        if name == "latest" and kept:
            return list(kept.values())[-1][1]
        if name not in kept:
            raise LookupError("the repository holds no such snapshot")
        return kept[name][1]


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"is": "entry", "path": path, "size": str(len(content))}
