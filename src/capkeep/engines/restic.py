"""restic 0.14 and later: what to start, and who reads what it says.

Only options that 0.14 already has are used, except where an ability is asked for, so that no run
has to ask for the version first. Sources: restic's doc/075_scripting.rst, and each version's own
behaviour as tests/contract/ pins it.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import (
    Abilities,
    Call,
    Change,
    Command,
    Diagnosis,
    DiffTotals,
    Entry,
    Match,
    Selection,
    Snapshot,
)
from capkeep.engines.restic_backup import BackupReader
from capkeep.engines.restic_diagnosis import diagnose
from capkeep.engines.restic_listing import (
    parse_diff_line,
    parse_find,
    parse_ls_line,
    parse_snapshots,
)
from capkeep.engines.restic_work import CheckReader, RestoreReader

PROGRESS_PER_SECOND: Final = "4"  # restic's own default is 60

# Where a room shows its own kernel interfaces rather than the machine's.
ROOMS_OWN: Final = ("/dev", "/proc", "/run", "/sys")

_VERSION: Final = re.compile(rb"restic (\d+)\.(\d+)(?:\.(\d+))?")
_SPECIAL: Final = re.compile(r"([\\*?\[])")  # in Go's filepath.Match, which restic's patterns are


class Restic:
    """Drives restic (https://restic.net)."""

    name = "restic"

    def version(self, call: Call) -> Command:
        return _command(call, "version")

    def abilities(self, output: bytes) -> Abilities:
        found = _VERSION.match(output)
        if not found:
            raise ValueError("that is not what `restic version` prints")
        version = tuple(int(n or 0) for n in found.groups())
        return Abilities(
            version=version,
            sparse_restore=version >= (0, 15),  # restic CHANGELOG 0.15.0
            keep_existing=version >= (0, 17),  # --overwrite, 0.17.0
            restore_events=version >= (0, 17),  # JSON errors, 0.17.0
        )

    def init(self, call: Call) -> Command:
        return _command(call, "init", "--json")

    def backup(
        self, call: Call, what: Selection, *, dry_run: bool = False, parent: str = ""
    ) -> Command:
        # -vv names every item, so that a watched path is seen without a second call, which would
        # cost the 0.7 s that restic takes to open a repository.
        options = ["--json", "-vv"]
        if what.one_file_system:
            options.append("--one-file-system")
        if dry_run:
            options.append("--dry-run")
        if parent:
            options.append(f"--parent={parent}")
        if what.host:
            options.append(f"--host={what.host}")
        options += [f"--tag={tag}" for tag in what.tags]
        options += [f"--exclude={p}" for p in (*what.exclude, *_rooms_own(what.include))]
        return _command(call, "backup", *options, "--", *what.include)

    def literal(self, path: str) -> str:
        return _literal(path)

    def check(self, call: Call, *, read_data: str = "") -> Command:
        subset = "100%" if read_data == "all" else read_data
        options = [f"--read-data-subset={subset}"] if subset else []
        return _command(call, "check", "--json", *options)

    def snapshots(self, call: Call) -> Command:
        return _command(call, "snapshots", "--json")

    def ls(self, call: Call, snapshot: str, paths: tuple[str, ...] = ()) -> Command:
        return _command(call, "ls", "--json", "--", snapshot, *paths)

    def find(self, call: Call, pattern: str, *, snapshots: tuple[str, ...] = ()) -> Command:
        chosen = [f"--snapshot={s}" for s in snapshots]
        return _command(call, "find", "--json", *chosen, "--", pattern)

    def diff(self, call: Call, old: str, new: str, *, metadata: bool = False) -> Command:
        options = ["--metadata"] if metadata else []
        return _command(call, "diff", "--json", *options, "--", old, new)

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
    ) -> Command:
        options = ["--json", f"--target={target}"]
        options += [f"--include={_literal(path)}" for path in include]
        if verify:
            options.append("--verify")
        if sparse:
            options.append("--sparse")
        if keep_existing:
            options.append("--overwrite=never")
        return _command(call, "restore", *options, "--", snapshot)

    def forget(self, call: Call, snapshots: tuple[str, ...]) -> Command:
        return _command(call, "forget", "--json", "--", *snapshots)

    def prune(self, call: Call) -> Command:
        return _command(call, "prune", "--json")

    def unlock(self, call: Call) -> Command:
        return _command(call, "unlock", "--json")

    def read_backup(self, watch: tuple[str, ...] = ()) -> BackupReader:
        return BackupReader(watch)

    def read_check(self) -> CheckReader:
        return CheckReader()

    def read_restore(self) -> RestoreReader:
        return RestoreReader()

    def parse_snapshots(self, output: bytes) -> tuple[Snapshot, ...]:
        return parse_snapshots(json.loads(output or b"[]"))

    def parse_find(self, output: bytes) -> Iterator[Match]:
        return parse_find(json.loads(output or b"[]"))

    def parse_ls_line(self, line: bytes) -> Entry | None:
        return parse_ls_line(line)

    def parse_diff_line(self, line: bytes) -> Change | DiffTotals | None:
        return parse_diff_line(line)

    def diagnose(
        self, exit_code: int, tail: tuple[str, ...], *, backup: bool = False
    ) -> Diagnosis | None:
        return diagnose(exit_code, tail, backup=backup)


def _command(call: Call, *arguments: str) -> Command:
    env = (
        ("RESTIC_REPOSITORY", call.repository),
        ("RESTIC_PASSWORD", call.password),
        ("RESTIC_CACHE_DIR", call.cache_dir),
        ("RESTIC_PROGRESS_FPS", PROGRESS_PER_SECOND),
        ("TMPDIR", call.tmp_dir),
        ("HOME", call.cache_dir),
        ("PATH", "/usr/bin:/bin"),
    )
    return Command((call.program, *arguments), env)


def _rooms_own(include: tuple[str, ...]) -> list[str]:
    """Patterns of what an include would take from the room instead of from the machine."""
    return [f"{d}/*" for d in ROOMS_OWN if any(p.rstrip("/") in ("", d) for p in include)]


def _literal(path: str) -> str:
    """A pattern that matches this path alone, and what is below it."""
    return _SPECIAL.sub(r"\\\1", path)
