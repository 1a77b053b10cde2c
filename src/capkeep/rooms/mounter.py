"""The mounter: reads another host's files through a mount that sshfs answers for in this very room.

It is started with the right to mount, makes one empty mount that nobody else sees and nobody answers
for yet, and gives that right up for good; only then does it meet anything that comes from the target.
It has no network: sshfs speaks with the target's sftp-server through the link, a room that sees no file
and knows no password. With the room its namespace ends, and the mount with that.
"""

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
from capkeep.rooms.base import DEVICE_FD, GIVEN_FD, STAND_FD, EngineRoom, serve
from capkeep.rooms.calls import remove_tree
from capkeep.rooms.engine import RunningEngine
from capkeep.rooms.protocol import Message

SSHFS: Final = "/usr/bin/sshfs"
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
HELP_SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 2.0  # for a link to say why it has ended
NAMES: Final = ("passwd", "group")
COPIED: Final = ("ld.so.cache", "localtime")  # of this host's /etc
# restic keeps files by names that it makes of PWD, if that leads to where it stands, and takes the words
# of PWD for the way (Go's os.Getwd, filepath.Clean): as words this is "/". The kernel goes by directories:
# from the lowest of four that the mount covers, back to the highest, and from there into what is mounted
# on it (path_resolution(7)).
HIDDEN: Final = "1/2/3/4"
STANDING: Final = f"/proc/self/fd/{STAND_FD}/../../../.."
NAMES_LIMIT: Final = 16 << 20  # bytes
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
        "probe": _through(reader.look_around),
    }
    return serve(actions, seccomp.Profile.READ, _make_mount)


def _source(brief: Brief) -> str:
    """Where the target's "/" is seen."""
    return f"{brief.room.grant.write[0]}/source"


def _make_mount(brief: Brief) -> Brief:
    """Make the mount and an /etc with the target's names, and give up what that takes.

    The names are not known yet: their files are filled when somebody answers. Raises StepError.
    """
    source, own = _source(brief), brief.room.grant.write[0]
    try:
        mounts.unshare_mounts()
        os.makedirs(f"{source}/{HIDDEN}", 0o700, exist_ok=True)
        _hold(f"{source}/{HIDDEN}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, STAND_FD)
        _make_etc(f"{own}/etc")
        device = _device()
        assert brief.target is not None, "a mounter has a target"
        fuse.mount_at(device, source, brief.target.name)
        keep(())
    except OSError as error:
        text = f"the mount for the target's files cannot be made: {error}"
        hint = "modprobe fuse; apt-get install sshfs"
        raise StepError(Failure.ENGINE, text, hint=hint) from error
    return brief._replace(source_root=source)


def _make_etc(folder: str) -> None:
    """Make an /etc of the room's own, in which users and groups are looked up in files alone.

    This host's /etc/passwd cannot be covered: whoever changes it puts another file in its place, and
    where the old one is still shown nothing can be mounted any more. Raises OSError.
    """
    remove_tree(folder)
    os.mkdir(folder, 0o755)
    os.mkdir(f"{folder}/alternatives", 0o755)
    for name in NAMES:
        _write(f"{folder}/{name}", b"")
    _write(f"{folder}/nsswitch.conf", b"passwd: files\ngroup: files\n")
    for name in COPIED:
        with suppress(FileNotFoundError), open(f"/etc/{name}", "rb") as file:
            _write(f"{folder}/{name}", file.read())
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


def _hold(path: str, flags: int, number: int) -> None:
    """Open it as that descriptor. Raises OSError."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    if fd != number:
        os.dup2(fd, number, inheritable=False)
        os.close(fd)


def _through(action: Action, *, kept: bool = False) -> Action:
    """An action on the target's files. What the link says of its end is told before what came of that."""

    def run(room: EngineRoom, request: Message) -> Message:
        with _answered(room) as mount:
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

    def __init__(self, room: EngineRoom, process: RunningEngine) -> None:
        self._room, self._process = room, process
        self._said: list[str] = []
        room.steady, room.standing = self.check, STANDING
        for fd in process.open_fds():
            room.aside[fd] = lambda fd=fd: self._hear(fd)  # type: ignore[misc]

    def check(self) -> None:
        """Whether all that was read has come from the target. Raises StepError."""
        try:
            os.statvfs(_source(self._room.brief))  # is never answered out of a cache
        except OSError as error:
            self._raise_lost(error.strerror or "")
        self._hear_link(0.0)
        if self._process.has_left():
            self._raise_lost("sshfs has ended")

    def _raise_lost(self, reason: str) -> None:
        """Say what the link says, if it does; else what sshfs says."""
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
def _answered(room: EngineRoom) -> Iterator[_Mount]:
    """Have sshfs answer for the mount, until it is not needed any more. Raises StepError."""
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
            cwd="/", wired=False,
        ) as process:  # fmt: skip
            close((ours_in, ours_out, DEVICE_FD))  # so that its end is the mount's
            mount = _Mount(room, process)
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

    with room.engine([SSHFS, "--help"], ENVIRONMENT, tell=False, cwd="/", wired=False) as process:
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
    grant = room.brief.room.grant
    for name in NAMES:
        path = f"/etc/{name}"
        try:
            text = _small(room.seen(path))
        except OSError as error:
            mount.check()
            text = b""
            said = (
                f"the target's {path} cannot be read ({error.strerror}): owners are kept as numbers"
            )
            room.tell({"event": "warning", "text": said})
        _write(f"{grant.write[0]}{path}", text)  # which is shown as /etc


def _small(path: str) -> bytes:
    """A plain file that is not large. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "no plain file")
        text = file.read(NAMES_LIMIT + 1)
    if len(text) > NAMES_LIMIT:
        raise OSError(27, "too large")
    return text
