"""What a link serves: bytes between a mounter's sshfs and the sftp-server that ssh leads to.

It looks at no more of them than how long each packet is: whoever has asked and is not answered in time
is told that the connection is gone, as a frozen one would otherwise hold its reader for ever, in a system
call that nothing but the end of sshfs ends. draft-ietf-secsh-filexfer-02: every request has one answer.
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
from capkeep.rooms.pull import link
from capkeep.rooms.service import PREFLIGHT_SECONDS, Action, Rates, Stored, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from capkeep.rooms.rest.ssh import Ssh

SILENCE_SECONDS: Final = 40.0  # ssh notices a dead connection in 15
END_SECONDS: Final = 2.0
CHUNK: Final = 1 << 18
HEAD: Final = 4  # bytes of a packet's length


class Packets:
    """Counts packets in a stream that comes in parts."""

    def __init__(self) -> None:
        self.count = 0  # those that have begun
        self._left = 0  # bytes of the one under way that are still to come
        self._head = b""

    def feed(self, data: bytes) -> None:
        """The next part."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            more = data[at : at + HEAD - len(self._head)]
            self._head += more
            at += len(more)
            if len(self._head) == HEAD:
                self._left = int.from_bytes(self._head, "big")
                self._head = b""
                self.count += 1


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
        self._asked, self._answered = Packets(), Packets()
        self._heard_at = 0.0  # when it was last answered, or asked after that
        self._lock = threading.Lock()
        self._over, self._told = os.pipe()
        self._talking = self._stopped = self._key_forgotten = False
        self._bytes = 0

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
        with suppress(OSError):
            while data := os.read(incoming, CHUNK):
                with self._lock:
                    if self._asked.count <= self._answered.count:
                        self._heard_at = time.monotonic()
                    self._asked.feed(data)
                sock.sendall(data)
        os.close(incoming)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    def _answer(self, outgoing: int, sock: socket.socket) -> None:
        with suppress(OSError):
            while data := sock.recv(CHUNK):
                with self._lock:
                    self._heard_at = time.monotonic()
                    self._answered.feed(data)
                    self._bytes += len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(outgoing, view) :]
                self._heard_at = time.monotonic()  # it was sshfs that let it wait
        os.write(self._told, b"\n")  # first: whoever sees the end asks why
        os.close(outgoing)

    def heard(self) -> Mapping[int, Action]:
        """ssh's words, and the end of the connection."""
        ssh = self._ssh
        return {self._over: self._ended, **({ssh.words_fd: ssh.hear} if ssh else {})}

    def tick(self) -> None:
        """Whether an answer is overdue; once it has answered nobody needs the key any more."""
        with self._lock:
            waiting = self._asked.count > self._answered.count
            silent = time.monotonic() - self._heard_at
            answered = self._answered.count > 0
        if answered and not self._key_forgotten and self._ssh:
            self._key_forgotten = True
            self._ssh.forget_key()
        if waiting and silent > SILENCE_SECONDS and not self._stopped:
            text = f"{self._target.name} does not answer any more ({silent:.0f} s)"
            self._failed(StoreError(Failure.UNREACHABLE, text))
            self.stop()

    def _ended(self) -> None:
        os.read(self._over, 1)
        if self._stopped or self._ssh is None:
            return
        error = link.explain(
            self._ssh, self._target, "the connection was closed", greeted=self._answered.count > 0
        )
        self._failed(StoreError(error.failure, str(error)))

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
