"""borg 1.2 and 1.4: what to start, and who reads what it says.

borg is started through our own programs for its Python (`guest`): in a room so that it reaches the
vault, in the vault so that who may only add can only add. Sources: borg's docs/internals/
frontends.rst and docs/usage, and each version's own behaviour as tests/contract/ pins it.
"""

import base64
import json
import re
import shlex
from collections.abc import Iterator
from typing import Final

from capkeep.engines.base import (
    KEPT_MOST,
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
    Remote,
    Selection,
    Served,
    Snapshot,
    Traits,
)
from capkeep.engines.borg_diagnosis import diagnose, is_warning
from capkeep.engines.borg_lines import BackupReader, CheckReader, RestoreReader, kept_file
from capkeep.engines.borg_listing import (
    COMMENT,
    LISTED,
    parse_diff_line,
    parse_find,
    parse_keys,
    parse_ls_line,
    parse_snapshots,
)

_VERSION: Final = re.compile(rb"borg (\d+)\.(\d+)(?:\.(\d+))?")
# Where a room shows its own kernel interfaces rather than the machine's.
ROOMS_OWN: Final = ("/dev", "/proc", "/run", "/sys")
COMMENT_LIMIT: Final = 60_000  # characters: a command line's words are limited (execve(2))
LOCK_SECONDS: Final = 5  # that borg waits for a lock; who waits longer asks again
# Number 0, "negotiate", as borg 1.2.0: {"i": 0, "m": "negotiate", "a": {"client_data":
# {"client_version": [1, 2, 0]}}} in MessagePack. No server does anything with that version.
HELLO: Final = (
    b"\x83\xa1i\x00\xa1m\xa9negotiate\xa1a\x81\xabclient_data\x81\xaeclient_version\x93\x01\x02\x00"
)
_SPECIAL: Final = re.compile(r"([\\*?\[])")
UNTOLD: Final = "/repository"  # `guest/borg_guard.py`
LOOKS: Final = ("list", "diff", "mount", "export-tar")  # leave no lock, if that is asked for
FUSE: Final = "pyfuse3"  # which takes a device that is open; Debian's python3-pyfuse3
_NO_KEYS: Final = "a borg repository has one passphrase"


class Borg:
    """Drives borg (https://www.borgbackup.org)."""

    name = "borg"
    traits = Traits(
        program="borg",
        package="borgbackup",
        schemes=("local", "ssh"),
        own_variables=(  # borg's docs/usage/general/environment.rst.inc
            ("BORG_REPO", "location"), ("BORG_PASSPHRASE", "password"),
            ("BORG_PASSCOMMAND", "password"), ("BORG_PASSPHRASE_FD", "password"),
            ("BORG_NEW_PASSPHRASE", "password"), ("BORG_RSH", "options.identity"),
            ("BORG_REMOTE_PATH", "options.remote-path"),
        ),
        script=True,
        paced_by_vault=False,
        side_by_side=False,
        drills=True,
        named_by_id=False,
        prunes_apart=True,
        mtime_digits=6,
        many_keys=False,
        finds_everywhere=False,
        mounts=True,
        mounts_one=True,
        keeps_above=False,
        unlocked_afar=False,
        remote=Remote(("serve",), HELLO),
    )  # fmt: skip

    def server(self, place: Served) -> Command | None:
        guard = "borg_guard.py" if place.server < 0 else "borg_remote.py"
        access = "admin" if place.admin else "make" if place.making else "append"
        words = (access, place.path, place.folder, str(place.report))
        argv = (*place.interpreter, f"{place.tools}/{guard}", *words)
        quota = 0 if place.admin else place.quota  # what removes things writes before that
        argv += (str(quota if place.server < 0 else place.server),)
        return Command(argv, _places(place.folder))

    def version(self, call: Call) -> Command:
        return command(call, "--version")

    def abilities(self, output: bytes) -> Abilities:
        found = _VERSION.match(output)
        if not found:
            raise ValueError("that is not what `borg --version` prints")
        version = tuple(int(n or 0) for n in found.groups())
        return Abilities(
            version=version, sparse_restore=True, keep_existing=False, restore_events=True
        )

    def init(self, call: Call) -> Command:
        return command(call, "init", "--encryption=repokey-blake2")

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
        options = ["--json", "--progress", "--list", f"--comment={_comment(what, above=above)}"]
        if what.one_file_system:
            options.append("--one-file-system")
        if dry_run:
            options = ["--dry-run", "--list"]
            options += ["--one-file-system"] if what.one_file_system else []
        if what.renumbered:
            options.append("--files-cache=mtime,size")
        excluded = (*what.exclude, *_rooms_own(what.include))
        options += [f"--exclude={_pattern(p)}" for p in excluded]
        if call.upload_bytes:
            options.append(f"--upload-ratelimit={max(1, call.upload_bytes >> 10)}")  # KiB
        found = command(call, "create", *options, _archive(what), *map(_relative, what.include))
        env = (*found.env, ("CAPKEEP_WATCH", "\n".join(map(_relative, watch))))
        if turn >= 0:
            env = (*env, ("CAPKEEP_TURN", f"{turn} {KEPT_MOST}"))
        return found._replace(env=env)

    def backup_stream(self, call: Call, path: str, what: Selection) -> Command:
        options = ["--json", f"--comment={_comment(what, (path,))}"]
        options.append(f"--stdin-name={path.lstrip('/')}")
        return command(call, "create", *options, _archive(what), "-")

    def literal(self, path: str) -> str:
        return _SPECIAL.sub(r"\\\1", path)

    def check(self, call: Call, *, read_data: str = "", lock: bool = True) -> Command:
        options = {"": ["--archives-only"], "all": ["--verify-data"]}.get(read_data, [])
        return command(call, "check", *options, "::")

    def snapshots(self, call: Call, *, lock: bool = True) -> Command:
        return command(call, "list", "--json", "--format={hostname}{username}{comment}", "::")

    def ls(self, call: Call, snapshot: str, paths: tuple[str, ...] = ()) -> Command:
        return command(call, "list", "--json-lines", f"--format={LISTED}", named(snapshot))

    def find(self, call: Call, pattern: str, *, snapshots: tuple[str, ...] = ()) -> Command:
        inside = pattern.removeprefix("/") if pattern.startswith("/") else f"**/{pattern}"
        one = snapshots[0] if snapshots else ""
        return command(
            call, "list", "--json-lines", f"--format={LISTED}", named(one), f"sh:{inside}"
        )

    def diff(
        self,
        call: Call,
        old: str,
        new: str,
        *,
        metadata: bool = False,
        lock: bool = True,
    ) -> Command:
        return command(call, "diff", "--json-lines", "--", named(old), _plain(new))

    def mount(self, call: Call, snapshot: str, folder: str) -> Command | None:
        found = command(call, "mount", "--foreground", named(snapshot), folder)
        return found._replace(env=(*found.env, ("BORG_FUSE_IMPL", FUSE)))

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
        options = ["--progress", "--numeric-ids"]
        options += ["--sparse"] if sparse else []
        paths = [path.strip("/") for path in include if path.strip("/")]
        if files and paths:
            # Looked up, where prefixes are tried one after the other (borg 1.4, patterns.py).
            options += [f"--pattern=+pf:{path}" for path in paths] + ["--pattern=-re:."]
            paths = []
        words = [f"pp:{path}" for path in paths]
        found = command(call, "extract", *options, named(snapshot), *words)
        return found._replace(cwd=target)

    def forget(
        self,
        call: Call,
        snapshots: tuple[str, ...],
        *,
        prune: bool = False,
        expected: str = "",
    ) -> Command:
        found = command(call, "delete", "--", "::", *snapshots)
        return found._replace(env=(*found.env, ("CAPKEEP_EXPECT", expected)))

    def bring_back(self, call: Call, ids: str) -> Command | None:
        return command(call, "capkeep-rescue", ids, common=())

    def prune(self, call: Call) -> Command:
        return command(call, "compact", "::")

    def unlock(self, call: Call) -> Command:
        return command(call, "break-lock", "::")

    def copy(self, call: Call, origin: Call, snapshots: tuple[str, ...]) -> Command | None:
        return None

    def init_alike(self, call: Call, origin: Call) -> Command | None:
        return None

    def keys(self, call: Call) -> Command:
        return command(call, "list", "--json", "--last=1", "::")

    def export_key(self, call: Call) -> Command | None:
        return command(call, "key", "export", "::")

    def master(self, call: Call, password: str) -> Command | None:
        return None

    def make_key(self, master: bytes, password: str) -> NewKey | None:
        return None

    def add_key(self, call: Call, password_file: str) -> Command:
        raise ValueError(_NO_KEYS)

    def remove_key(self, call: Call, key: str) -> Command:
        raise ValueError(_NO_KEYS)

    def read_backup(self, watch: tuple[str, ...] = ()) -> BackupReader:
        return BackupReader(watch)

    def copy_line(self, line: bytes) -> CopyLine:
        return CopyLine()

    def kept_file(self, line: bytes) -> bytes:
        return kept_file(line)

    def read_check(self) -> CheckReader:
        return CheckReader()

    def read_restore(self) -> RestoreReader:
        return RestoreReader()

    def partial(self, exit_code: int) -> bool:
        return is_warning(exit_code)

    def parse_snapshots(self, output: bytes) -> tuple[Snapshot, ...]:
        return parse_snapshots(json.loads(output or b"{}"))

    def parse_keys(self, output: bytes) -> tuple[Key, ...]:
        return parse_keys(json.loads(output or b"{}"))

    def parse_find(self, output: bytes) -> Iterator[Match]:
        return parse_find(output)

    def parse_ls_line(self, line: bytes) -> Entry | None:
        return parse_ls_line(line)

    def parse_diff_line(self, line: bytes) -> Change | DiffTotals | None:
        return parse_diff_line(line)

    def diagnose(
        self, exit_code: int, tail: tuple[str, ...], *, backup: bool = False
    ) -> Diagnosis | None:
        return diagnose(exit_code, tail, backup=backup)


ENGINE: Engine = Borg()


def command(
    call: Call, verb: str, *arguments: str, common: tuple[str, ...] = ("--log-json",)
) -> Command:
    """With a relay, borg reaches its repository as it would reach another machine's by ssh.

    It adds a host's name and a command to the relay's own words, which the relay does not read.
    """
    location = call.repository
    if call.relay:
        location = f"ssh://capkeep{_path(call.repository)}"
    start = (*call.interpreter, f"{call.tools}/borg_client.py", call.program)
    if verb not in ("--version", "capkeep-rescue"):
        common = (*common, f"--lock-wait={LOCK_SECONDS}")
    if call.unlocked and verb in LOOKS:
        common = (*common, "--bypass-lock")
    env = (
        ("BORG_REPO", _plain(location)),
        ("BORG_PASSPHRASE", call.password),
        ("BORG_NEW_PASSPHRASE", call.password),
        ("BORG_DISPLAY_PASSPHRASE", "no"),
        ("BORG_RSH", shlex.join(call.relay)),
        # Where a repository is says the configuration. One that is not encrypted, and was not
        # known, is refused: whoever has its place could have put it there.
        ("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes"),
        ("BORG_EXIT_CODES", "modern"),
        ("PYTHONWARNINGS", "ignore::FutureWarning"),  # it writes patterns that Python wonders about
        *_places(call.cache_dir, call.tmp_dir),
    )
    return Command((*start, verb, *(common if verb != "--version" else ()), *arguments), env)


def _path(location: str) -> str:
    """A repository's directory, on whatever machine; where nobody here knows it, what guards take for it."""
    _, remote, rest = location.partition("ssh://")
    return "/" + rest.partition("/")[2] if remote else location or UNTOLD


def _places(folder: str, tmp: str = "") -> tuple[tuple[str, str], ...]:
    """All that borg keeps beside its repositories, and nothing anywhere else."""
    return (
        ("BORG_BASE_DIR", folder),
        ("HOME", folder),
        ("TMPDIR", tmp or folder),
        ("TZ", "UTC"),  # borg tells times without their zone
        ("LANG", "C.UTF-8"),
        ("LOGNAME", "capkeep"),  # noted in archives; a user of a room may have no name
        ("PATH", "/usr/bin:/bin"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONNOUSERSITE", "1"),  # code that a borg once taken over has left there runs no more
    )


def _plain(text: str) -> str:
    """Text in which borg sees no placeholders: whoever makes an archive gives it any name."""
    return text.replace("{", "{{").replace("}", "}}")


def named(snapshot: str) -> str:
    """An archive, as borg's commands take it."""
    return f"::{_plain(snapshot)}"


def _archive(what: Selection) -> str:
    """A name that no other archive has; what it is of stands in the comment."""
    job = next((tag for tag in what.tags if tag.startswith("capkeep:")), "capkeep")
    return "::" + re.sub(r"[^a-z0-9_-]", "-", job) + "-{utcnow:%Y-%m-%dT%H-%M-%S.%f}"


def _comment(what: Selection, paths: tuple[str, ...] = (), above: tuple[Above, ...] = ()) -> str:
    """Host, tags, paths and what is above them, which borg has no other place for."""
    said: dict[str, object] = {"host": what.host, "tags": what.tags}
    said["paths"] = paths or tuple(sorted(what.include))
    text = _packed({**said, "above": above} if above else said)
    if len(text) > COMMENT_LIMIT:
        text = _packed(said)
    if len(text) > COMMENT_LIMIT:
        text = _packed({**said, "paths": ()})
    return COMMENT + text


def _packed(said: dict[str, object]) -> str:
    return base64.b64encode(json.dumps(said).encode()).decode()


def _relative(path: str) -> str:
    """A source as seen from where borg stands: the machine's "/", wherever a room shows it.

    Archives hold paths without the first slash, however they are given.
    """
    return path.strip("/") or "."


def _rooms_own(include: tuple[str, ...]) -> list[str]:
    """Patterns of what an include would take from the room instead of from the machine."""
    return [f"{d}/*" for d in ROOMS_OWN if any(p.rstrip("/") in ("", d) for p in include)]


def _pattern(pattern: str) -> str:
    """A pattern as all engines have it here, restic's, in borg's shell style.

    A relative one fits at any depth; what is special is made literal by brackets.
    """
    text = re.sub(r"\\(.)", lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1], pattern)
    return "sh:" + (text.lstrip("/") if text.startswith("/") else f"**/{text}")
