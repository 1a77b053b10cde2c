"""rdiff-backup 2.2: what to start, and who reads what it says.

Its own remote protocol is not spoken (guest/rdiff/wire.py says why). What a room starts is our half
that sees the files; the vault starts our half that has the repository, in rdiff-backup's own Python.
Both speak JSON, so there is one form of everything, whatever rdiff-backup's version.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import (
    Abilities,
    Above,
    Call,
    Change,
    Command,
    CopyLine,
    Diagnosis,
    DiffTotals,
    Engine,
    Entry,
    Key,
    Match,
    NewKey,
    Selection,
    Served,
    Snapshot,
    Traits,
)
from capkeep.engines.lines import as_int, as_text
from capkeep.engines.rdiff_lines import (
    BackupReader,
    CheckReader,
    RestoreReader,
    diagnose,
    entry_of,
    object_of,
    snapshot_of,
)
from capkeep.errors import EXIT_PARTIAL

_VERSION: Final = re.compile(rb"rdiff-backup (\d+)\.(\d+)\.(\d+)")
_SPECIAL: Final = re.compile(r"([\\*?\[])")
_IGNORE_CASE: Final = "ignorecase:"
# Where a room shows its own kernel interfaces rather than the machine's.
_ROOMS_OWN: Final = ("/dev", "/proc", "/run", "/sys")


class RdiffBackup:
    """Drives rdiff-backup (https://rdiff-backup.net)."""

    name = "rdiff-backup"
    traits = Traits(
        program="rdiff-backup",
        package="rdiff-backup",
        schemes=("local",),
        password=False,
        script=True,
        paced_by_vault=False,
        side_by_side=False,
        drills=True,
        mtime_digits=0,
        keeps_seconds=True,
        oldest_go_first=True,
        only_here="over its connection to another host, either side can run anything on the other",
        owners_on_disk=True,
        quota=False,
    )

    def server(self, place: Served) -> Command | None:
        code = _start(place.tools, "capkeep.guest.rdiff.store")
        access = "admin" if place.admin else "append"
        words = (place.path, access, str(place.report), place.owners or "metadata")
        argv = (*place.interpreter, "-I", "-B", "-c", code, *words)
        return Command(argv, (("HOME", place.folder), ("PATH", "/usr/bin:/bin")))

    def version(self, call: Call) -> Command:
        argv = (*call.interpreter, "-I", "-B", call.program, "--version")
        return Command(argv, (("HOME", call.cache_dir), ("PATH", "/usr/bin:/bin")))

    def abilities(self, output: bytes) -> Abilities:
        found = _VERSION.search(output)
        if not found:
            raise ValueError("that is not what `rdiff-backup --version` prints")
        version = tuple(map(int, found.groups()))
        return Abilities(version, sparse_restore=True, keep_existing=False, restore_events=True)

    def init(self, call: Call) -> Command:
        return _command(call, "init")

    def backup(
        self,
        call: Call,
        what: Selection,
        *,
        dry_run: bool = False,
        parent: str = "",
        watch: tuple[str, ...] = (),
        name: bool = True,
        count: bool = True,
        above: tuple[Above, ...] = (),
        turn: int = -1,
    ) -> Command:
        own = (f"{d}/*" for d in _ROOMS_OWN if any(p.rstrip("/") in ("", d) for p in what.include))
        return _command(
            call, "backup", include=list(what.include), exclude=[*map(_pattern, what.exclude), *own],
            one_file_system=what.one_file_system, host=what.host, tags=list(what.tags),
            dry_run=dry_run, rate=call.upload_bytes, watch=list(watch),
        )  # fmt: skip

    def backup_stream(self, call: Call, path: str, what: Selection) -> Command:
        raise ValueError("rdiff-backup keeps no streams")

    def literal(self, path: str) -> str:
        return _SPECIAL.sub(r"\\\1", path)

    def check(self, call: Call, *, read_data: str = "", lock: bool = True) -> Command:
        return _command(call, "check", read_data=read_data)

    def snapshots(self, call: Call, *, lock: bool = True) -> Command:
        return _command(call, "sessions")

    def ls(self, call: Call, snapshot: str, paths: tuple[str, ...] = ()) -> Command:
        return _command(call, "ls", session=snapshot, paths=list(paths))

    def find(self, call: Call, pattern: str, *, snapshots: tuple[str, ...] = ()) -> Command:
        return _command(call, "find", pattern=pattern, sessions=list(snapshots))

    def diff(
        self, call: Call, old: str, new: str, *, metadata: bool = False, lock: bool = True
    ) -> Command:
        return _command(call, "diff", old=old, new=new, metadata=metadata)

    def mount(self, call: Call, snapshot: str, folder: str) -> Command | None:
        return None

    def restore(
        self,
        call: Call,
        snapshot: str,
        target: str,
        *,
        include: tuple[str, ...] = (),
        verify: bool = False,
        sparse: bool = False,
        keep_existing: bool = False,
        plain: bool = False,
        files: bool = False,
    ) -> Command:
        return _command(call, "restore", session=snapshot, target=target, paths=list(include))

    def forget(
        self, call: Call, snapshots: tuple[str, ...], *, prune: bool = False, expected: str = ""
    ) -> Command:
        return _command(call, "remove", sessions=list(snapshots))

    def bring_back(self, call: Call, ids: str) -> Command | None:
        return None

    def prune(self, call: Call) -> Command:
        return _command(call, "sessions")  # what is removed is gone at once

    def unlock(self, call: Call) -> Command:
        return _command(call, "sessions")  # a lock dies with whoever held it

    def copy(self, call: Call, origin: Call, snapshots: tuple[str, ...]) -> Command | None:
        return None

    def init_alike(self, call: Call, origin: Call) -> Command | None:
        return None

    def keys(self, call: Call) -> Command:
        raise ValueError("rdiff-backup has no keys")

    def export_key(self, call: Call) -> Command | None:
        return None

    def master(self, call: Call, password: str) -> Command | None:
        return None

    def make_key(self, master: bytes, password: str) -> NewKey | None:
        return None

    def add_key(self, call: Call, password_file: str) -> Command:
        raise ValueError("rdiff-backup has no keys")

    def remove_key(self, call: Call, key: str) -> Command:
        raise ValueError("rdiff-backup has no keys")

    def read_backup(self, watch: tuple[str, ...] = ()) -> BackupReader:
        return BackupReader(watch)

    def copy_line(self, line: bytes) -> CopyLine:
        return CopyLine()

    def kept_file(self, line: bytes) -> bytes:
        return b""

    def read_check(self) -> CheckReader:
        return CheckReader()

    def read_restore(self) -> RestoreReader:
        return RestoreReader()

    def partial(self, exit_code: int) -> bool:
        return exit_code == EXIT_PARTIAL

    def parse_snapshots(self, output: bytes) -> tuple[Snapshot, ...]:
        found = (object_of(line).get("session") for line in output.splitlines())
        return tuple(snapshot_of(item) for item in found if isinstance(item, dict))

    def parse_keys(self, output: bytes) -> tuple[Key, ...]:
        return ()

    def parse_find(self, output: bytes) -> Iterator[Match]:
        for line in output.splitlines():
            item = object_of(line).get("entry")
            if isinstance(item, dict):
                yield Match(as_text(item.get("session")), entry_of(item))

    def parse_ls_line(self, line: bytes) -> Entry | None:
        item = object_of(line).get("entry")
        return entry_of(item) if isinstance(item, dict) and item.get("path") else None

    def parse_diff_line(self, line: bytes) -> Change | DiffTotals | None:
        found = object_of(line)
        item, end = found.get("entry"), found.get("end")
        if isinstance(item, dict):
            return Change(as_text(item.get("path")), as_text(item.get("modifier")))
        totals = end.get("totals") if isinstance(end, dict) else None
        if not isinstance(totals, dict):
            return None
        names = ("changed", "added", "removed", "bytes_added", "bytes_removed")
        return DiffTotals(*(as_int(totals.get(name)) for name in names))

    def diagnose(
        self, exit_code: int, tail: tuple[str, ...], *, backup: bool = False
    ) -> Diagnosis | None:
        return diagnose(exit_code, tail, backup=backup)


ENGINE: Engine = RdiffBackup()


def _pattern(pattern: str) -> str:
    """A pattern of rdiff-backup's; a relative one, which could never fit there, fits at any depth."""
    head = len(_IGNORE_CASE) if pattern.lower().startswith(_IGNORE_CASE) else 0
    prefix, rest = pattern[:head], pattern[head:]
    return pattern if rest.startswith(("/", "**")) else f"{prefix}**/{rest}"


def _command(call: Call, do: str, **what: object) -> Command:
    """Our half that sees the files, with what to ask for as its only argument; nothing of it is secret."""
    spec = json.dumps({"do": do, "handover": int(call.relay[-1]), **what})
    # The half is a relay of its own: it gets what a relay would be started with.
    argv = (call.relay[0], "-I", "-S", "-c", _start(call.tools, "capkeep.rooms.rdiff.files"), spec)
    env = (("HOME", call.cache_dir), ("TMPDIR", call.tmp_dir), ("PATH", "/usr/bin:/bin"))
    return Command(argv, env)


def _start(tools: str, module: str) -> str:
    """Python that runs a module's main() from the package that `tools` lies in."""
    package = os.path.dirname(os.path.dirname(tools))
    return f"import sys; sys.path.append({package!r}); from {module} import main; sys.exit(main())"
