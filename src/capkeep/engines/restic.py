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
from capkeep.engines.restic_backup import BackupReader, kept_file
from capkeep.engines.restic_diagnosis import PARTIAL_CODE, diagnose
from capkeep.engines.restic_listing import (
    parse_diff_line,
    parse_find,
    parse_keys,
    parse_ls_line,
    parse_snapshots,
)
from capkeep.engines.restic_work import CheckReader, RestoreReader, copy_line

PROGRESS_PER_SECOND: Final = "4"  # restic's own default is 60

# Where a room shows its own kernel interfaces rather than the machine's.
ROOMS_OWN: Final = ("/dev", "/proc", "/run", "/sys")

_VERSION: Final = re.compile(rb"restic (\d+)\.(\d+)(?:\.(\d+))?")
_SPECIAL: Final = re.compile(r"([\\*?\[])")  # in Go's filepath.Match, which restic's patterns are


class Restic:
    """Drives restic (https://restic.net)."""

    name = "restic"
    traits = Traits(
        program="restic",
        package="restic",
        schemes=("local", "sftp", "s3", "rest", "rclone", "b2", "azure", "gs", "swift"),
        own_variables=(  # restic(1), Environment
            ("RESTIC_REPOSITORY", "location"), ("RESTIC_REPOSITORY_FILE", "location"),
            ("RESTIC_PASSWORD", "password"), ("RESTIC_PASSWORD_FILE", "password"),
            ("RESTIC_PASSWORD_COMMAND", "password"),
        ),
        drills=True,
        copies=True,
        mounts=True,
        names_dearly=True,
        names_unset=False,  # but to root (restic, internal/fs/node.go)
        in_place=True,
    )  # fmt: skip

    def server(self, place: Served) -> Command | None:
        return None

    def version(self, call: Call) -> Command:
        return _command(call, "version")

    def abilities(self, output: bytes) -> Abilities:
        found = _VERSION.match(output)
        if not found:
            raise ValueError("that is not what `restic version` prints")
        version = tuple(int(n or 0) for n in found.groups())
        return Abilities(
            version=version,
            uncounted=version >= (0, 15),  # --no-scan, 0.15.0
            sparse_restore=version >= (0, 15),  # restic CHANGELOG 0.15.0
            keep_existing=version >= (0, 17),  # --overwrite, 0.17.0
            restore_events=version >= (0, 17),  # JSON errors, 0.17.0
            plain_restore=version >= (0, 18),  # --exclude-xattr, 0.18.0
        )

    def init(self, call: Call) -> Command:
        return _command(call, "init", "--json")

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
        # -vv names every item, each in a write of its own.
        options = ["--json", "-vv"] if name else ["--json"]
        if not count:
            options.append("--no-scan")
        if what.one_file_system:
            options.append("--one-file-system")
        if dry_run:
            options.append("--dry-run")
        if parent:
            options.append(f"--parent={parent}")
        if what.host:
            options.append(f"--host={what.host}")
        if what.renumbered:
            options += ["--ignore-inode", "--ignore-ctime"]
        options += [f"--tag={tag}" for tag in what.tags]
        options += [f"--exclude={p}" for p in (*what.exclude, *_rooms_own(what.include))]
        command = _command(call, "backup", *options, "--", *map(_relative, what.include))
        return command._replace(env=(*command.env, ("PWD", call.standing)))

    def backup_stream(self, call: Call, path: str, what: Selection) -> Command:
        options = ["--json", "-vv", "--stdin", f"--stdin-filename={path}"]
        options += [f"--host={what.host}"] if what.host else []
        return _command(call, "backup", *options, *(f"--tag={tag}" for tag in what.tags))

    def literal(self, path: str) -> str:
        return _literal(path)

    def check(self, call: Call, *, read_data: str = "", lock: bool = True) -> Command:
        subset = "100%" if read_data == "all" else read_data
        options = [f"--read-data-subset={subset}"] if subset else []
        options += _unlocked(lock=lock)
        return _command(call, "check", "--json", *options)

    def snapshots(self, call: Call, *, lock: bool = True) -> Command:
        return _command(call, "snapshots", "--json", *_unlocked(lock=lock))

    def ls(self, call: Call, snapshot: str, paths: tuple[str, ...] = ()) -> Command:
        return _command(call, "ls", "--json", "--", snapshot, *paths)

    def find(self, call: Call, pattern: str, *, snapshots: tuple[str, ...] = ()) -> Command:
        chosen = [f"--snapshot={s}" for s in snapshots]
        return _command(call, "find", "--json", *chosen, "--", pattern)

    def diff(
        self, call: Call, old: str, new: str, *, metadata: bool = False, lock: bool = True
    ) -> Command:
        options = ["--metadata"] if metadata else []
        options += _unlocked(lock=lock)
        return _command(call, "diff", "--json", *options, "--", old, new)

    def mount(self, call: Call, snapshot: str, folder: str) -> Command | None:
        return _command(call, "mount", "--path-template=%I", "--", folder)

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
        options = ["--json", f"--target={target}"]
        options += [f"--include={_literal(path)}" for path in include]
        if verify:
            options.append("--verify")
        if sparse:
            options.append("--sparse")
        if keep_existing:
            options.append("--overwrite=never")
        if plain:
            options += [
                f"--exclude-xattr={a}" for a in ("trusted.*", "security.*", "!security.capability")
            ]
        return _command(call, "restore", *options, "--", snapshot)

    def forget(
        self,
        call: Call,
        snapshots: tuple[str, ...],
        *,
        prune: bool = False,
        expected: str = "",
    ) -> Command:
        options = ["--prune"] if prune else []
        return _command(call, "forget", "--json", *options, "--", *snapshots)

    def bring_back(self, call: Call, ids: str) -> Command | None:
        return None

    def prune(self, call: Call) -> Command:
        return _command(call, "prune", "--json")

    def unlock(self, call: Call) -> Command:
        return _command(call, "unlock", "--json")

    def copy(self, call: Call, origin: Call, snapshots: tuple[str, ...]) -> Command | None:
        return _from_origin(call, origin, "copy", "--", *snapshots)

    def init_alike(self, call: Call, origin: Call) -> Command | None:
        # Files are cut by a polynomial of the repository's own (restic, doc/design.rst): with
        # another one, what is backed up here and what is copied here would never be the same.
        return _from_origin(call, origin, "init", "--json", "--copy-chunker-params")

    def keys(self, call: Call) -> Command:
        return _command(call, "key", "list", "--json")

    def export_key(self, call: Call) -> Command | None:
        return None

    def master(self, call: Call, password: str) -> Command | None:
        from capkeep.engines.restic_key import is_random

        return _command(call, "cat", "masterkey", "--no-lock") if is_random(password) else None

    def make_key(self, master: bytes, password: str) -> NewKey | None:
        from capkeep.engines.restic_key import make_key

        return make_key(master, password)

    def add_key(self, call: Call, password_file: str) -> Command:
        return _command(call, "key", "add", f"--new-password-file={password_file}")

    def remove_key(self, call: Call, key: str) -> Command:
        return _command(call, "key", "remove", key)

    def read_backup(self, watch: tuple[str, ...] = ()) -> BackupReader:
        return BackupReader(watch)

    def copy_line(self, line: bytes) -> CopyLine:
        return copy_line(line)

    def kept_file(self, line: bytes) -> bytes:
        return kept_file(line)

    def read_check(self) -> CheckReader:
        return CheckReader()

    def read_restore(self) -> RestoreReader:
        return RestoreReader()

    def partial(self, exit_code: int) -> bool:
        return exit_code == PARTIAL_CODE

    def parse_snapshots(self, output: bytes) -> tuple[Snapshot, ...]:
        return parse_snapshots(json.loads(output or b"[]"))

    def parse_keys(self, output: bytes) -> tuple[Key, ...]:
        return parse_keys(json.loads(output or b"[]"))

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


ENGINE: Engine = Restic()


def _command(call: Call, *arguments: str) -> Command:
    """With a relay, restic speaks its REST protocol over that program's input and output.

    It thinks that it is rclone: restic's doc/030_preparing_a_new_repo.rst, "Other Services via
    rclone". The words of `rclone.program` are taken apart as a shell would.
    """
    options: tuple[str, ...] = ()
    if call.relay:
        options = ("-o", _option("rclone.program", call.relay), "-o", "rclone.args=")
    for name, rate in (("upload", call.upload_bytes), ("download", call.download_bytes)):
        if rate:
            options = (*options, f"--limit-{name}={max(1, rate >> 10)}")  # in KiB
    if call.unlocked:
        options = (*options, "--no-lock")
    if call.key:
        options = (*options, f"--key-hint={call.key}")
    env = (
        ("RESTIC_REPOSITORY", _repository(call)),
        ("RESTIC_PASSWORD", call.password),
        ("RESTIC_CACHE_DIR", call.cache_dir),
        ("RESTIC_PROGRESS_FPS", PROGRESS_PER_SECOND),
        ("TMPDIR", call.tmp_dir),
        ("HOME", call.cache_dir),
        ("PATH", "/usr/bin:/bin"),
    )
    return Command((call.program, *options, *arguments), env)


def _repository(call: Call) -> str:
    """restic tells the relay what stands after the first colon, as its last argument."""
    if call.relay:
        return "rclone:origin:" if call.origin else "rclone:capkeep:"
    return call.repository


def _from_origin(call: Call, origin: Call, verb: str, *arguments: str) -> Command:
    """A command on two repositories: one program, one relay, which is told which of them is meant."""
    command = _command(call, verb, f"--from-repo={_repository(origin)}", *arguments)
    return command._replace(env=(*command.env, ("RESTIC_FROM_PASSWORD", origin.password)))


def _unlocked(*, lock: bool) -> list[str]:
    """A lock costs 0.2 s: restic waits, then looks whether another one came at the same time."""
    return [] if lock else ["--no-lock"]


def _option(name: str, words: tuple[str, ...]) -> str:
    """An extended option whose value is a command, as `-o` wants it.

    restic takes the command apart again (internal/backend/shell_split.go): it knows both kinds of
    quotes around a word, and no way to write one inside. Before that, `-o` is a record of
    comma-separated values (pflag's StringSlice).
    """
    command = " ".join(f'"{word}"' if "'" in word else f"'{word}'" for word in words)
    field = f"{name}={command}".replace('"', '""')
    return f'"{field}"'


def _relative(path: str) -> str:
    """A source as seen from where the engine stands: the machine's "/", wherever a room shows it.

    restic keeps and excludes by absolute paths, which it makes with PWD if that names the directory
    it stands in (Go's os.Getwd), as "/" does: the same directory, seen through another mount. Where that
    is another one (`Call.standing`) PWD is a name that leads there and is "/" by its words alone.
    """
    return path.strip("/") or "."


def _rooms_own(include: tuple[str, ...]) -> list[str]:
    """Patterns of what an include would take from the room instead of from the machine."""
    return [f"{d}/*" for d in ROOMS_OWN if any(p.rstrip("/") in ("", d) for p in include)]


def _literal(path: str) -> str:
    """A pattern that matches this path alone, and what is below it."""
    return _SPECIAL.sub(r"\\\1", path)
