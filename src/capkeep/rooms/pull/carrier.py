"""What a link serves: bytes between a mounter's sshfs and the sftp-server that ssh leads to.

It looks at no more of them than which request each packet is or answers (`packets.py`): whoever has asked
and is not answered in time is told that the connection is gone, as a frozen one would otherwise hold its
reader for ever, in a system call that nothing but the end of sshfs ends.
"""

import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure
from capkeep.kernel.pipes import enlarge
from capkeep.plan.model import Brief, Target
from capkeep.rooms.handover import Ends
from capkeep.rooms.protocol import ProtocolError
from capkeep.rooms.pull import link
from capkeep.rooms.pull.packets import Tally
from capkeep.rooms.service import PREFLIGHT_SECONDS, Action, Rates, Stored, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from capkeep.rooms.rest.ssh import Ssh

SILENCE_SECONDS: Final = 40.0  # ssh notices a dead connection in 15
END_SECONDS: Final = 2.0
CHUNK: Final = 1 << 18


def _unheard(_error: StoreError) -> None:
    """Nobody listens before it has begun."""


class Carrier:
    """One conversation."""

    def __init__(self, brief: Brief, target: Target) -> None:
        self._target = target
        self._identity = dict(brief.secrets).get("identity", "")
        self._folder = brief.room.grant.write[0]
        self._ssh: Ssh | None = None
        self._sock: socket.socket | None = None
        self._failed: Callable[[StoreError], None] = _unheard
        self._tally = Tally()
        self._lock = threading.Lock()
        self._over, self._told = os.pipe()
        self._talking = self._stopped = self._key_forgotten = False
        self._left = self._lost = False  # sshfs had ended; the connection had, before sshfs

    def patience(self) -> float:
        """Nothing is looked at beforehand."""
        return PREFLIGHT_SECONDS

    def preflight(self) -> None:
        """The target's sftp-server is met by whoever speaks with it."""

    def begin(self, _rates: Rates, failed: "Callable[[StoreError], None]") -> None:
        """Log in. Raises StoreError."""
        self._failed = failed
        try:
            self._ssh = link.connect(self._target, self._identity, self._folder)
        except OSError as error:
            raise StoreError(Failure.UNREACHABLE, f"ssh cannot be started: {error}") from error
        self._sock = self._ssh.start()

    def serve(self, ends: Ends) -> None:
        """Carry what is said on these, and on no others after them."""
        if self._talking or self._sock is None:
            ends.close()
            return
        self._talking = True
        for fd in ends:
            enlarge(fd)
        for work, fd in ((self._ask, ends.incoming), (self._answer, ends.outgoing)):
            threading.Thread(target=work, args=(fd, self._sock), daemon=True).start()

    def _ask(self, incoming: int, sock: socket.socket) -> None:
        with suppress(OSError, ProtocolError):
            while data := os.read(incoming, CHUNK):
                with self._lock:
                    self._tally.ask(data, time.monotonic())
                sock.sendall(data)
            self._left = True
        os.close(incoming)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    def _answer(self, outgoing: int, sock: socket.socket) -> None:
        try:
            while data := self._received(sock):
                with self._lock:
                    self._tally.answer(data, time.monotonic())
                view = memoryview(data)
                while view:
                    view = view[os.write(outgoing, view) :]
                with self._lock:
                    self._tally.pause(time.monotonic())
        except ProtocolError as error:  # before sshfs hears a word of it
            self._cut(f"{self._target.name} does not speak as an sftp-server does: {error}")
        except OSError:
            pass  # sshfs has ended
        os.write(self._told, b"\n")  # first: whoever sees the end asks why
        os.close(outgoing)

    def _received(self, sock: socket.socket) -> bytes:
        """What ssh has; nothing at the end of the connection, which is lost unless sshfs has ended."""
        data = b""
        with suppress(OSError):
            data = sock.recv(CHUNK)
        self._lost = not data and not self._left
        return data

    def heard(self) -> Mapping[int, Action]:
        """ssh's words, and the end of the connection."""
        ssh = self._ssh
        return {self._over: self._ended, **({ssh.words_fd: ssh.hear} if ssh else {})}

    def tick(self) -> None:
        """Whether an answer is overdue; once it has answered nobody needs the key any more."""
        with self._lock:
            silent = self._tally.silence(time.monotonic())
            answered = self._tally.greeted
        if answered and not self._key_forgotten and self._ssh:
            self._key_forgotten = True
            self._ssh.forget_key()
        if silent > SILENCE_SECONDS and not self._stopped:
            self._cut(f"{self._target.name} does not answer any more ({silent:.0f} s)")

    def _cut(self, reason: str) -> None:
        """Say why, and end it."""
        self._failed(StoreError(Failure.UNREACHABLE, reason))
        self.stop()

    def _ended(self) -> None:
        os.read(self._over, 1)
        if self._stopped or self._ssh is None or not self._lost:
            return
        error = link.explain(
            self._ssh, self._target, "the connection was closed", greeted=self._tally.greeted
        )
        self._failed(StoreError(error.failure, str(error)))

    def let_make(self) -> None:
        """Nothing is made."""

    def hold(self) -> list[str] | None:
        """There are no snapshots."""
        return None

    def stop(self) -> None:
        """Both sides see its end; what carries then ends by itself."""
        self._stopped = True
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def commit(self) -> None:
        """There is nothing to be removed."""

    def release(self) -> None:
        """There is no lock."""

    def stored(self) -> Stored:
        """Nothing: it was only carried."""
        return Stored(0)

    def close(self) -> None:
        """End ssh and its agent."""
        if self._ssh is not None:
            self._ssh.end(END_SECONDS)
