"""The contract between capkeep and a program that makes snapshots.

An engine here is pure: it says which program to start with which arguments and environment, and
reads the lines that come out. It starts nothing, opens nothing and knows nothing of rooms.
Includes are the real paths of the machine, so that snapshots list them; the room sees to it that
they are there.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple, Protocol

from capkeep.errors import Failure

KEPT_MOST = 400  # files that a backup is asked to name (`Engine.kept_file`)
TAIL_LINES = 40  # of an engine's last words, kept for diagnosis
TAIL_WIDTH = 2000  # bytes of each


class Call(NamedTuple):
    """Which program, on which repository, with which places of its own."""

    program: str  # absolute path
    repository: str  # as the engine understands it, such as "/srv/repo"; not used with a relay
    cache_dir: str  # writable, lasting; also the engine's HOME
    tmp_dir: str  # writable
    password: str
    # A program, with arguments, whose standard input and output lead to the repository.
    relay: tuple[str, ...] = ()
    upload_bytes: int = 0  # a second, where the engine itself keeps the pace; 0 for no limit
    download_bytes: int = 0
    interpreter: tuple[str, ...] = ()  # of a program that is a script
    tools: str = ""  # directory of our own programs for such interpreters: `guest`
    origin: bool = False  # by the relay the repository that is copied from is meant
    unlocked: bool = False  # for who only looks: leave no lock, where the engine can do without
    key: str = ""  # the one to try first, by its id
    standing: str = "/"  # where it stands, by a name that it takes for the machine's "/"


class Remote(NamedTuple):
    """How an engine's own program serves a repository on another machine, over what ssh connects."""

    words: tuple[str, ...]  # after the program's name
    hello: bytes  # what a client says first; nobody but that program answers it


class Traits(NamedTuple):
    """What is true of an engine, whatever its version: for the configuration and for rooms."""

    program: str  # the name of its file in /usr/bin
    package: str  # Debian's
    schemes: tuple[str, ...]  # kinds of location that it can have here
    # Environment variables that would contradict the configuration, and the key that says the same.
    own_variables: tuple[tuple[str, str], ...] = ()
    password: bool = True  # its repositories have one
    script: bool = False  # a program for an interpreter, which keeps descriptors from its children
    paced_by_vault: bool = True  # else it is asked to keep the pace itself
    side_by_side: bool = True  # several calls at a time can work on a repository
    named_by_id: bool = True  # its commands take an id, enough of its beginning, or "latest"
    drills: bool = False  # restores of a few files with all that can be compared are known to work
    prunes_apart: bool = False  # data goes by `prune`, after `forget`
    mtime_digits: int = 9  # of a second that `ls` tells
    keeps_seconds: bool = False  # whole ones alone, of files and directories, and no time of links
    oldest_go_first: bool = False  # no snapshot can be removed while an older one stays
    many_keys: bool = True  # several passwords can open a repository
    only_here: str = ""  # why its repositories must be local
    owners_on_disk: bool = False  # its repository can be files that belong to their owners
    finds_everywhere: bool = True  # `find` searches all snapshots in one call
    copies: bool = False  # it copies snapshots from one repository into another
    remote: Remote | None = None  # of engines with "ssh" among their schemes
    mounts: bool = False  # it shows snapshots as a filesystem (fuse(4))
    keeps_above: bool = True  # its snapshots hold the directories that their sources lie in
    unlocked_afar: bool = True  # who only looks leaves no lock on other machines either
    mounts_one: bool = False  # its files are those of the one snapshot that it is asked for
    names_unset: bool = True  # a restore names each attribute that it could not set
    quota: bool = (
        True  # a vault can keep its repositories, in a directory, from growing beyond a size
    )
    names_dearly: bool = False  # naming each file that it keeps costs it much
    in_place: bool = False  # it is known to restore a path to where it was, and nothing beside it


class Served(NamedTuple):
    """What a vault is to serve by a program of the engine's, over that program's input and output."""

    program: str  # absolute path
    interpreter: tuple[str, ...]  # of a program that is a script
    tools: str  # directory of our own programs for such interpreters: `guest`
    path: str  # the repository's directory
    admin: bool  # whether things may be removed
    folder: str  # writable and lasting, of this repository's vaults alone; also HOME
    report: int  # descriptor to tell on, in lines of JSON: {"stored": N}, {"failure": …, "text": …}
    owners: str = ""  # plan.model.Repository.owners
    quota: int = 0  # bytes that it may all have, towards who may only add; 0: any number
    # Descriptor that leads to the engine's program on another machine, which has been greeted; of it
    # is told {"open": true} when it has answered, {"lost": TEXT} when it has gone.
    server: int = -1
    making: bool = False  # who may only add may make it, if it is not there


class Above(NamedTuple):
    """A directory that a source lies in, when the backup began."""

    path: str
    mode: int  # as st_mode without the file type
    uid: int
    gid: int
    attributes: tuple[tuple[str, str], ...] = ()  # its access control lists: name, value in base64


class Selection(Protocol):
    """What a snapshot is to hold, and how it is labelled; a plan's job is one."""

    @property
    def include(self) -> tuple[str, ...]:
        """Real, absolute paths."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """The engine's own patterns."""

    @property
    def one_file_system(self) -> bool:
        """Stay on the filesystems that the includes are on."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Labels without meaning to the engine."""

    @property
    def host(self) -> str:
        """The host that the snapshot is of; "" is the machine's own name."""

    @property
    def renumbered(self) -> bool:
        """Whether files have other inode numbers each time, and say nothing of a change."""


class Command(NamedTuple):
    """What to start. The environment is complete: nothing is inherited."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str = ""  # "" is the machine's "/", wherever the room shows it


class Abilities(NamedTuple):
    """What one version of an engine can do that another cannot.

    Needed for restoring and looking only; making a backup is the same with every version.
    """

    version: tuple[int, ...]
    sparse_restore: bool  # holes come back as holes
    keep_existing: bool  # a restore can leave what is already there alone
    restore_events: bool  # a restore names what it could not restore
    uncounted: bool = False  # a backup can do without counting ahead
    plain_restore: bool = False  # a restore can leave attributes out that only root may set


# -- what an engine says while it makes a snapshot


class Cause(StrEnum):
    """Why something was not read."""

    DENIED = "denied"
    VANISHED = "vanished"  # it was listed, and gone when it was its turn
    CHANGED = "changed"  # it turned into something else meanwhile
    IO = "io"
    UNKNOWN = "unknown"  # the engine does not say; whoever sees the path can look


class Progress(NamedTuple):
    """How far it is. Totals are zero while the engine is still counting."""

    files: int
    total_files: int
    bytes: int
    total_bytes: int
    current: tuple[str, ...]
    seconds_left: int


class Unreadable(NamedTuple):
    """A path that is not, or not wholly, in the snapshot.

    Bytes that are not UTF-8 arrive as U+FFFD: the engine's JSON has already lost them.
    """

    path: str
    cause: Cause
    detail: str


class Unset(NamedTuple):
    """An extended attribute that a restore could not give to a path; all else of the path is there."""

    path: str
    attribute: str
    detail: str


class Warned(NamedTuple):
    """The engine is worried about something that is not a path of the job."""

    text: str


class Said(NamedTuple):
    """A remark."""

    text: str


class Seen(NamedTuple):
    """A path that was asked to be watched is in the snapshot."""

    path: str
    read: bool  # its content was read in this very run, not taken from the parent snapshot


class Summary(NamedTuple):
    """What the engine counted, and the snapshot it made. Sizes in bytes; 0 where it did not say."""

    snapshot: str  # "" when there is none
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    dirs_new: int = 0
    dirs_changed: int = 0
    dirs_unmodified: int = 0
    bytes_added: int = 0  # new in the repository, before compression
    bytes_stored: int = 0  # new in the repository, as written there
    bytes_processed: int = 0
    total_files: int = 0
    seconds: float = 0.0
    dry_run: bool = False


class Named(NamedTuple):
    """The engine says itself what its `version` prints."""

    text: str


Event = Progress | Unreadable | Unset | Warned | Said | Seen | Summary | Named


class Diagnosis(NamedTuple):
    """Why an engine failed."""

    failure: Failure
    sentence: str
    words: str  # the engine's own last lines


class LineReader(Protocol):
    """Reads one call's output as it comes, in memory that does not grow with it."""

    def feed(self, stream: str, line: bytes) -> tuple[Event, ...]:
        """What a line of "stdout" or "stderr" means; mostly nothing."""

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines in which the engine spoke of trouble, for `diagnose`."""


# -- what a repository and a snapshot hold


class CopyLine(NamedTuple):
    """How far a copy is, by a line of the engine's."""

    saved: bool = False  # one more snapshot is there
    share: str = ""  # of what the snapshots under way need, for people


class Snapshot(NamedTuple):
    """A snapshot as the repository lists it."""

    id: str
    time: str  # ISO 8601, with nanoseconds and offset
    host: str
    user: str
    paths: tuple[str, ...]
    tags: tuple[str, ...]
    parent: str = ""
    program: str = ""  # such as "restic 0.18.0"; "" from versions that do not note it
    files: int = 0  # 0: not noted
    bytes: int = 0
    name: str = ""  # what the engine's commands call it, if that is not its id
    original: str = ""  # of a copy: the id of what it was first made as, in another repository
    tree: str = ""  # the engine's name for all that it holds, where a copy has the same one

    @property
    def word(self) -> str:
        """What to call it by, towards the engine."""
        return self.name or self.id


class Entry(NamedTuple):
    """A file, directory or other node in a snapshot."""

    path: str
    kind: str  # "file", "dir", "symlink", "fifo", "chardev", "dev", "socket"
    size: int  # -1 where the engine does not say: of a hard link's other names
    mode: int  # as st_mode without the file type: 0o4755
    uid: int
    gid: int
    mtime: str  # ISO 8601, with nanoseconds and offset


class Match(NamedTuple):
    """Something that was searched for, and in which snapshot it is."""

    snapshot: str
    entry: Entry


class Change(NamedTuple):
    """A path that differs between two snapshots."""

    path: str
    modifier: str  # "+", "-", "M" content, "T" type, "U" metadata only, "?" bit rot; or several


class Key(NamedTuple):
    """One of the passwords that open a repository, by what is not secret of it."""

    id: str  # whole, or its first 8 digits from versions that say no more
    current: bool  # the one that this very call used
    user: str
    host: str
    created: str  # as the engine writes it


class NewKey(NamedTuple):
    """A key that a repository does not have yet."""

    folder: str  # where all of them are, as the vault's protocol has it
    id: str  # its name there
    content: bytes


class DiffTotals(NamedTuple):
    """What a comparison of two snapshots adds up to."""

    changed_files: int
    files_added: int
    files_removed: int
    bytes_added: int
    bytes_removed: int


class CheckResult(NamedTuple):
    """What a check found."""

    errors: int
    broken_packs: tuple[str, ...]
    words: tuple[str, ...]  # what was said about each error


class RestoreResult(NamedTuple):
    """What a restore counted; zero from versions that do not say."""

    total_files: int
    files_restored: int
    bytes_restored: int
    files_skipped: int


class CheckReader(LineReader, Protocol):
    """Reads the output of a check."""

    def result(self) -> CheckResult:
        """What was found; call it after the last line."""


class RestoreReader(LineReader, Protocol):
    """Reads the output of a restore: `Unreadable` is what could not be restored."""

    def result(self) -> RestoreResult:
        """What was counted; call it after the last line."""

    def only_lacks(self, exit_code: int) -> bool:
        """Whether all it failed for is what it has named: it came to its end, and verified the rest."""


class Engine(Protocol):
    """A program that makes snapshots. Every method is pure; commands are for one call each."""

    name: str
    traits: Traits

    def server(self, place: Served) -> Command | None:
        """What serves a repository in a vault; None where capkeep speaks the engine's protocol."""

    def version(self, call: Call) -> Command: ...
    def abilities(self, output: bytes) -> Abilities:
        """From the output of `version`. Raises ValueError when it is not that."""

    def init(self, call: Call) -> Command:
        """Make an empty repository."""

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
        """Make a snapshot. An empty parent lets the engine choose; `watch` as in `read_backup`.

        `turn`: name files as `kept_file` tells them, at least KEPT_MOST from that place on; none below 0.
        `above`: of the sources, for an engine that does not keep these itself. One whose
        `traits.names_dearly` names files, the watched ones too, only to `name` them; one that
        can do without counts nothing ahead unless it is to `count`.
        """

    def backup_stream(self, call: Call, path: str, what: Selection) -> Command:
        """Make a snapshot of what comes on its standard input, as one file of that path.

        It makes none when it is killed before its input ends.
        """

    def literal(self, path: str) -> str:
        """An exclude pattern that means this path, whatever characters it has, and what is below."""

    def check(self, call: Call, *, read_data: str = "", lock: bool = True) -> Command:
        """Check a repository; `read_data` is how much content: "", "all", "10%", "1/7", "5G".

        Without a lock (here and below) only while nobody else can remove anything.
        """

    def snapshots(self, call: Call, *, lock: bool = True) -> Command: ...
    def ls(self, call: Call, snapshot: str, paths: tuple[str, ...] = ()) -> Command:
        """List a snapshot, wholly or what is directly in the given directories."""

    def find(self, call: Call, pattern: str, *, snapshots: tuple[str, ...] = ()) -> Command:
        """Search for names, or for paths if the pattern begins with a slash."""

    def diff(
        self, call: Call, old: str, new: str, *, metadata: bool = False, lock: bool = True
    ) -> Command: ...
    def mount(self, call: Call, snapshot: str, folder: str) -> Command | None:
        """Show a snapshot as files, or all, each in a directory with its whole id as name; None without.

        It answers until nobody has the device open any more: the one whose number CAPKEEP_DEVICE has, or
        that it gets from `fusermount` and `fusermount3`, which it runs for `folder`.
        """

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
        """Restore literal paths (all if none) below the target; `files`: no directory is among them.

        `sparse`, `keep_existing` and `plain` need the ability of that name. With `plain` no
        `security.` attribute is set but file capabilities.
        """

    def forget(
        self, call: Call, snapshots: tuple[str, ...], *, prune: bool = False, expected: str = ""
    ) -> Command:
        """Remove snapshots; their data stays until a `prune`, in the same call or later.

        None, where not all of the snapshots are listed whose ids are in the file `expected`.
        """

    def bring_back(self, call: Call, ids: str) -> Command | None:
        """List snapshots again that somebody has made the repository forget; ids are in that file.

        It prints {"found": [ids that were missing], "lost": [those that are gone]} as JSON. None
        where the vault lets nobody who may only add do that.
        """

    def prune(self, call: Call) -> Command: ...
    def unlock(self, call: Call) -> Command:
        """Remove locks of dead runs.

        The engine tells the dead by host name and process id, so in a process namespace of its own
        it takes every living run of this host for dead: ask only while no other run is under way.
        """

    def copy(self, call: Call, origin: Call, snapshots: tuple[str, ...]) -> Command | None:
        """Copy these snapshots from `origin`; None where an engine cannot. Those there are left out."""

    def init_alike(self, call: Call, origin: Call) -> Command | None:
        """Make an empty repository in which what is copied is stored once, with what is there."""

    def keys(self, call: Call) -> Command:
        """List the keys."""

    def export_key(self, call: Call) -> Command | None:
        """Print what is needed beside the password if the repository has lost it; None for nothing."""

    def add_key(self, call: Call, password_file: str) -> Command:
        """Let another password, which is in that file, open the repository too."""

    def remove_key(self, call: Call, key: str) -> Command:
        """Remove a key by its id; never the one that this call uses."""

    def master(self, call: Call, password: str) -> Command | None:
        """Print what every key holds; None where the engine itself makes the best key for a password."""

    def make_key(self, master: bytes, password: str) -> NewKey | None:
        """A key that opens without delay, with what that command printed; None where it cannot be made.

        Raises ValueError.
        """

    def read_backup(self, watch: tuple[str, ...] = ()) -> LineReader:
        """A reader of `backup`; `watch` are paths whose arrival in the snapshot is told."""

    def copy_line(self, line: bytes) -> CopyLine:
        """What a line of `copy`'s standard output tells."""

    def kept_file(self, line: bytes) -> bytes:
        """The file, as a JSON string, that a line of `backup` names as kept; b"" for other lines.

        Files lie on a circle, each at the 64 bits of blake2b(3) of that string. An engine names all, or those
        that a backup's `turn` asks for; or none at all: then drills compare with live files alone.
        """

    def read_check(self) -> CheckReader: ...
    def read_restore(self) -> RestoreReader: ...
    def partial(self, exit_code: int) -> bool:
        """Whether a backup with that exit code made a snapshot, and something is missing from it."""

    def parse_snapshots(self, output: bytes) -> tuple[Snapshot, ...]:
        """Oldest first. Raises ValueError."""

    def parse_keys(self, output: bytes) -> tuple[Key, ...]:
        """Raises ValueError."""

    def parse_find(self, output: bytes) -> Iterator[Match]:
        """Raises ValueError."""

    def parse_ls_line(self, line: bytes) -> Entry | None:
        """None for lines that name no entry. Raises ValueError."""

    def parse_diff_line(self, line: bytes) -> Change | DiffTotals | None:
        """None for lines that say neither. Raises ValueError."""

    def diagnose(
        self, exit_code: int, tail: tuple[str, ...], *, backup: bool = False
    ) -> Diagnosis | None:
        """Why a call failed; None if it did not, or if only files were unreadable in a backup.

        A negative exit code is the signal that ended the engine (as waitpid tells it).
        """
