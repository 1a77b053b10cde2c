"""The mounter: reads another host's files through a mount that sshfs answers for in this very room.

It is started with the right to mount, makes one empty mount that nobody else sees and nobody answers
for yet, and gives that right up for good; only then does it meet anything that comes from the target.
It has no network: sshfs speaks with the target's sftp-server through the link, a room that sees no file
and knows no password. With the room its namespace ends, and the mount with that. While it waits for the
target in a system call a guard hears its caller, and ends sshfs, which ends that call.
"""

import errno
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel import fuse, mounts, seccomp
from capkeep.kernel.ownership import keep
from capkeep.plan.model import Brief
from capkeep.rooms import reader
from capkeep.rooms.base import GIVEN_FD, EngineRoom, serve
from capkeep.rooms.engine import RunningEngine
from capkeep.rooms.guard import guarded
from capkeep.rooms.plain import opened
from capkeep.rooms.protocol import Message

SSHFS: Final = "/usr/bin/sshfs"
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
HELP_SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 2.0  # for a link to say why it has ended
SSHFS_BYTES: Final = 1 << 30  # of memory: it has a whole directory there before anybody sees a name
PROBE_SECONDS: Final = 300.0
SLACK_SECONDS: Final = 600.0  # for all that is done before and after an engine
DEVICE_FD: Final = 7  # /dev/fuse
STAND_FD: Final = 8  # here and in engines: a way back to where they stand
NAMES: Final = {"passwd": 9, "group": 10}  # files of the room's /etc, open for writing
COPIED: Final = ("ld.so.cache", "localtime")  # of this host's /etc
# restic keeps files by names that it makes of PWD, if that leads to where it stands, and takes the words
# of PWD for the way (Go's os.Getwd, filepath.Clean): as words this is "/". The kernel goes by directories:
# from the lowest of four that the mount covers, back to the highest, and from there into what is mounted
# on it (path_resolution(7)).
HIDDEN: Final = "1/2/3/4"
STANDING: Final = f"/proc/self/fd/{STAND_FD}/../../../.."
NAMES_LIMIT: Final = 16 << 20  # bytes
OWN_BYTES: Final = 48 << 20  # for both, and the copies
SAID_LINES: Final = 5
# What an engine or a canary tells where nobody answers for the mount any more.
MAY_FOLLOW: Final = (Failure.ENGINE, Failure.INTERRUPTED, Failure.WEAKENED)
UNCARRIED: Final = (
    "SFTP carries no extended attributes, access control lists, file capabilities, hard links (each is"
    " kept as a file of its own), device numbers, sockets or fractions of a second: none of these is kept;"
    " a change that leaves a file's size and its time of change to the second is not seen"
)

Action = Callable[[EngineRoom, Message], Message]


def main() -> int:
    """A mounter's whole life."""
    actions = {
        "backup": _through(reader.backup, kept=True),
        "sums": _through(reader.sums),
        "probe": _through(reader.look_around, most=PROBE_SECONDS),
    }
    return serve(actions, seccomp.Profile.READ, _make_mount)


def _place(brief: Brief) -> str:
    """A directory of this room's memory, new with every visit, that nobody in here can change."""
    return f"{brief.room.grant.write[0]}/source"


def _source(brief: Brief) -> str:
    """Where the target's "/" is seen."""
    return f"{_place(brief)}/files"


def _make_mount(brief: Brief) -> Brief:
    """Make the mount and an /etc with the target's names, and give up what that takes.

    The names are not known yet: their files are filled when somebody answers. Raises StepError.
    """
    place, source = _place(brief), _source(brief)
    try:
        mounts.unshare_mounts()
        _make_room(place)
        mounts.show_memory(place, OWN_BYTES)
        os.makedirs(f"{source}/{HIDDEN}", 0o700)
        _hold(f"{source}/{HIDDEN}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, STAND_FD)
        device = _device()
        _make_etc(place)
        mounts.close_directory(place)
        assert brief.target is not None, "a mounter has a target"
        fuse.mount_at(device, source, brief.target.name)
        keep(())
    except OSError as error:
        text = f"the mount for the target's files cannot be made: {error}"
        hint = "modprobe fuse; apt-get install sshfs"
        raise StepError(Failure.ENGINE, text, hint=hint) from error
    return brief._replace(source_root=source)


def _make_room(place: str) -> None:
    """A directory there, whatever an engine of another visit has left in its place. Raises OSError.

    One that is there is left alone: another visit may have its mounts on it.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(place).st_mode):
            os.unlink(place)
    with suppress(FileExistsError):
        os.mkdir(place, 0o700)


def _make_etc(place: str) -> None:
    """Make an /etc of the room's own, in which users and groups are looked up in files alone.

    This host's /etc/passwd cannot be covered: whoever changes it puts another file in its place, and
    where the old one is still shown nothing can be mounted any more. Raises OSError.
    """
    folder = f"{place}/etc"
    os.mkdir(folder, 0o755)
    os.mkdir(f"{folder}/alternatives", 0o755)
    for name in NAMES:
        _write(f"{folder}/{name}", b"")
    _write(f"{folder}/nsswitch.conf", b"passwd: files\ngroup: files\n")
    for name in COPIED:
        with suppress(FileNotFoundError), open(f"/etc/{name}", "rb") as file:
            _write(f"{folder}/{name}", file.read())
    # Through a mount that has no name: those that have one are closed while these are still open.
    through = mounts.another(folder)
    try:
        for name, number in NAMES.items():
            _hold(name, os.O_WRONLY | os.O_NOFOLLOW, number, through)
    finally:
        os.close(through)
    with suppress(FileNotFoundError):
        mounts.show_instead("/etc/alternatives", f"{folder}/alternatives")
    mounts.show_instead(folder, "/etc")


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _device() -> int:
    """/dev/fuse as DEVICE_FD, given or opened. Raises OSError."""
    with suppress(OSError):
        if fuse.is_device(DEVICE_FD):
            os.set_inheritable(DEVICE_FD, False)
            return DEVICE_FD
    _hold(fuse.DEVICE, os.O_RDWR, DEVICE_FD)
    return DEVICE_FD


def _hold(path: str, flags: int, number: int, folder: int | None = None) -> None:
    """Open it, from that directory on, as that descriptor. Raises OSError."""
    fd = os.open(path, flags | os.O_CLOEXEC, dir_fd=folder)
    if fd != number:
        os.dup2(fd, number, inheritable=False)
        os.close(fd)


def _through(action: Action, *, kept: bool = False, most: float = math.inf) -> Action:
    """An action on the target's files, which takes at `most` so many seconds, and no more than its job.

    What the link says of its end is told before what came of that.
    """

    def run(room: EngineRoom, request: Message) -> Message:
        job = room.brief.job
        assert job is not None, "a mounter has a job"
        with _answered(room, min(most, job.timeout_seconds + SLACK_SECONDS)) as mount:
            if kept:
                room.tell({"event": "warning", "text": UNCARRIED})
            try:
                return action(room, request)
            except StepError as error:
                if error.failure in MAY_FOLLOW:
                    mount.check()
                raise
            except OSError:
                mount.check()
                raise

    return run


class _Mount:
    """The mount with sshfs behind it, and the link behind that."""

    def __init__(self, room: EngineRoom, process: RunningEngine, until: float) -> None:
        """`until` this moment of the steady clock a guard lets it be."""
        self._room, self._process, self._until = room, process, until
        self._said: list[str] = []
        room.steady, room.standing, room.standing_fds = self.check, STANDING, (STAND_FD,)
        for fd in process.open_fds():
            room.aside[fd] = lambda fd=fd: self._hear(fd)  # type: ignore[misc]

    def check(self) -> None:
        """Whether all that was read has come from the target. Raises StepError.

        It is asked for a name that nobody has asked for before, which no cache can answer, whatever the
        server is. A connection that is lost is never made again, so one that answers now always has.
        """
        try:
            os.lstat(f"{_source(self._room.brief)}/.capkeep-{os.urandom(8).hex()}")
        except (FileNotFoundError, PermissionError):
            pass
        except OSError as error:
            self._raise_lost(error.strerror or "")
        self._hear_link(0.0)
        if self._process.has_left():
            self._raise_lost("sshfs has ended")

    def _raise_lost(self, reason: str) -> None:
        """Say what the link says, if it does; else what sshfs says."""
        if time.monotonic() >= self._until:
            raise StepError(Failure.TIMEOUT, "the step took longer than its time limit")
        self._hear_link(SETTLE_SECONDS)
        for fd in self._process.open_fds():
            self._hear(fd)
        words = "; ".join(self._said) or reason
        target = self._room.brief.target
        assert target is not None, "a mounter has a target"
        text = f"the files of {target.name} cannot be seen any more ({words})"
        raise StepError(Failure.UNREACHABLE, text)

    def _hear_link(self, seconds: float) -> None:
        """Raises StepError if the link has failed, or fails in that time."""
        origin, until = self._room.origin, time.monotonic() + seconds
        if origin is None:
            return
        while True:
            origin.sock.settimeout(max(0.01, until - time.monotonic()))
            try:
                message = origin.receive()
            except TimeoutError:
                return
            except OSError:
                message = None
            if message is None:
                return
            self._room.raise_vault_failure(message, origin)

    def _hear(self, fd: int) -> None:
        if fd in self._process.open_fds():
            self._process.feed(fd, self._take)

    def _take(self, _stream: str, line: bytes) -> None:
        words = line.decode(errors="replace").strip()
        if words and len(self._said) < SAID_LINES:
            self._said.append("".join(c if c.isprintable() else " " for c in words[:300]))


@contextmanager
def _answered(room: EngineRoom, seconds: float) -> Iterator[_Mount]:
    """Have sshfs answer for the mount, until it is not needed any more, or so long. Raises StepError."""
    if not os.path.exists(SSHFS):
        raise StepError(Failure.ENGINE, "sshfs is not installed", hint="apt-get install sshfs")
    room.await_vault()
    argv = [SSHFS, "-f", "-o", ",".join(_options(_help(room))), "target:/", f"/dev/fd/{GIVEN_FD}"]
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with _closing(theirs_in, ours_out, ours_in, theirs_out) as close:
        room.hand_to_origin(theirs_in, theirs_out)
        close((theirs_in, theirs_out))
        with room.engine(
            argv, ENVIRONMENT, tell=False, source=ours_in, output=ours_out, given=DEVICE_FD,
            cwd="/", aide_bytes=SSHFS_BYTES,
        ) as process:  # fmt: skip
            close((ours_in, ours_out, DEVICE_FD))  # so that its end is the mount's
            mount = _Mount(room, process, time.monotonic() + seconds)
            with guarded(process.fileno(), room.caller.fileno(), seconds):
                try:
                    _take_names(room, mount)
                    yield mount
                finally:
                    room.aside = {}


@contextmanager
def _closing(*fds: int) -> Iterator[Callable[[tuple[int, ...]], None]]:
    """Descriptors that are closed some at a time, and at the end those that are left."""
    left = set(fds)

    def close(some: tuple[int, ...]) -> None:
        for fd in some:
            left.discard(fd)
            os.close(fd)

    try:
        yield close
    finally:
        close(tuple(left))


def _help(room: EngineRoom) -> bytes:
    """What this version of sshfs can do."""
    said = bytearray()

    def take(_stream: str, line: bytes) -> None:
        if len(said) < 1 << 16:
            said.extend(line + b"\n")

    with room.engine(
        [SSHFS, "--help"], ENVIRONMENT, tell=False, cwd="/", aide_bytes=SSHFS_BYTES
    ) as process:
        process.run(take, on_tick=room.alive, deadline=time.monotonic() + HELP_SECONDS)
    return bytes(said)


def _options(said: bytes) -> tuple[str, ...]:
    """How it is started, by what its help names (sshfs(1)).

    Newer ones refuse links that lead out of the mount unless they are told not to; here no link is
    followed at all. What speaks on standard input was called otherwise before 3.7.1.
    """
    passive = "passive" if b"-o passive" in said else "slave"
    links = ("no_contain_symlinks",) if b"no_contain_symlinks" in said else ()
    return (passive, *links)


def _take_names(room: EngineRoom, mount: _Mount) -> None:
    """Let users and groups be named as on the target; a warning where it does not tell their names."""
    for name, number in NAMES.items():
        path = f"/etc/{name}"
        try:
            with opened(room.seen(path)) as file:
                text = file.read(NAMES_LIMIT + 1)
            if len(text) > NAMES_LIMIT:
                raise OSError(errno.EFBIG, "too large")
        except OSError as error:
            mount.check()
            text = b""
            said = (
                f"the target's {path} cannot be read ({error.strerror}): owners are kept as numbers"
            )
            room.tell({"event": "warning", "text": said})
        with open(number, "wb") as file:
            file.write(text)
