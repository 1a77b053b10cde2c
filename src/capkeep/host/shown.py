"""A snapshot shown at a directory, which a process of its own takes away again, however we end.

That process waits for whoever answers for the filesystem, so that nobody else has to; and it lives as
long as we do. It is out of reach of what ends us: a terminal's keys, and the signal for all of a group.
"""

import contextlib
import errno
import os
import re
import select
import signal
import socket
import time
from typing import Final

from capkeep.errors import Failure, RefusedError, StepError
from capkeep.kernel import fuse
from capkeep.kernel.process import branch
from capkeep.rooms.protocol import Message

END_SECONDS: Final = 30
SOON_SECONDS: Final = 3
AWAY_SECONDS: Final = 20  # in which whoever hides it may let it go
LOOK_SECONDS: Final = 1.0  # between two looks whether it is still mounted
_SHOWN: Final = b"shown"
_LEFT: Final = b"left"  # nobody has the device any more
_ID: Final = re.compile("[0-9a-f]{64}")


class Unmounted(Exception):
    """Somebody has unmounted it."""


class Shown:
    """Use as a context: leaving it takes the filesystem away. Its room is to be ended before."""

    def __init__(self, folder: int, *, alone: bool) -> None:
        """`folder`: a handle on the directory, which stays its owner's. Raises RefusedError.

        `alone`: the engine shows one snapshot, not each in a directory of its own.
        """
        self._folder, self._alone = folder, alone
        self._line: socket.socket | None = None
        self._keeper = 0
        self._status: int | None = None  # of the keeper, once it has ended
        self.snapshot = ""
        self.is_shown = False
        if fuse.is_shown_at(folder):
            raise RefusedError(
                "a snapshot is shown there already", hint="umount it, or name another"
            )
        try:
            names = os.listdir(f"/proc/self/fd/{folder}")
        except OSError as error:  # such as of a filesystem for which nobody answers any more
            raise RefusedError(
                f"the directory cannot be looked into: {error.strerror}",
                hint="umount it, or name another",
            ) from error
        if names:
            raise RefusedError(
                "the directory is not empty, and what is in it would be hidden",
                hint="name an empty one, or one that is not there yet",
            )

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is None:
            return
        self._line.close()
        if not self._keeper:
            return
        if not self.is_shown and not self._has_ended(SOON_SECONDS):
            self._abort()
        if not self._has_ended(END_SECONDS):
            os.kill(self._keeper, signal.SIGKILL)
            self._has_ended(SOON_SECONDS)
        if self._status != 0:
            raise StepError(
                Failure.INTERRUPTED, "what was mounted could not be taken away",
                hint="`grep fuse.capkeep /proc/self/mountinfo` shows it: umount -f -l its directory",
            )  # fmt: skip

    def _has_ended(self, seconds: float) -> bool:
        """Whether the process that keeps it has, within so long; then its status is known."""
        limit = time.monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self._keeper, os.WNOHANG)
            if pid:
                self._status = status
            elif time.monotonic() > limit:
                return False
            else:
                time.sleep(0.05)
        return True

    def _abort(self) -> None:
        """An engine that waits for who asks it lets neither end."""
        helper = branch(lambda: fuse.abort(self._keeper))
        os.waitpid(helper, 0)  # it asks nobody but the kernel

    def begin(self, room: socket.socket, ready: Message) -> None:
        """Make the filesystem, and hand it to the room that is ready to answer for it.

        Raises StepError.
        """
        snapshot = str(ready.get("snapshot"))
        if self._line is not None or not _ID.fullmatch(snapshot):
            raise StepError(Failure.INTERRUPTED, "the room has not named a snapshot")
        self.snapshot = snapshot
        try:
            device, root = fuse.make()
        except OSError as error:
            raise StepError(
                Failure.REFUSED, f"this host gives no filesystem of this kind: {error}",
                hint="modprobe fuse; a container needs /dev/fuse and CAP_SYS_ADMIN",
            ) from error  # fmt: skip
        try:
            self._line, theirs = socket.socketpair()
            with theirs:

                def work() -> None:
                    _keep(theirs, root, "." if self._alone else snapshot, self._folder)

                self._keeper = branch(work, {0, 1, 2, theirs.fileno(), root, self._folder})
            socket.send_fds(room, [b"device\n"], [device])
        except OSError as error:
            raise StepError(Failure.INTERRUPTED, f"the room has left: {error}") from error
        finally:
            os.close(device)  # when the room ends, nobody has it any more, and nobody waits
            os.close(root)

    def look(self, seconds: float = 0) -> bool:
        """Whether it has become visible since the last look; waits for that so long.

        Raises Unmounted, and StepError where it cannot be shown. That the engine has left is no
        cause the first time: its room says why.
        """
        if self._line is None:
            return False
        self._line.settimeout(seconds)
        try:
            said = self._line.recv(4096)
        except (BlockingIOError, TimeoutError):
            return False
        if said == _SHOWN:
            self.is_shown = True
            return True
        if not said and self.is_shown:
            raise Unmounted
        if said == _LEFT:
            return False
        text = said.decode(errors="replace") or "nobody shows it any more"
        raise StepError(Failure.INTERRUPTED, f"the snapshot cannot be shown: {text}")

    def settle(self, *, engine_failed: bool) -> None:
        """When the engine has ended: whether it was ever to be seen. Raises StepError.

        Not where the engine's failure says why it was not.
        """
        with contextlib.suppress(Unmounted):
            if not self.is_shown and not self.look(END_SECONDS) and not engine_failed:
                raise StepError(
                    Failure.INTERRUPTED, "the engine ended before it had shown anything"
                )


def _keep(line: socket.socket, root: int, name: str, folder: int) -> None:
    """The process: show, wait until nobody is at the other end or somebody unmounts, take away."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        mount = fuse.show(root, name, folder)
    except OSError as error:
        left = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        with contextlib.suppress(OSError):
            line.send(_LEFT if left else str(error).encode(errors="replace"))
        return
    os.close(folder)
    device = fuse.device_of(mount)
    with contextlib.suppress(OSError):
        line.send(_SHOWN)
    ended = select.poll()
    ended.register(line, select.POLLIN)
    while not ended.poll(LOOK_SECONDS * 1000):
        if fuse.device_of(mount) != device:
            return
    limit = time.monotonic() + AWAY_SECONDS
    while fuse.device_of(mount) == device:
        try:
            fuse.take_away(mount)
        except OSError:
            if time.monotonic() > limit:
                os._exit(1)
            time.sleep(0.1)
