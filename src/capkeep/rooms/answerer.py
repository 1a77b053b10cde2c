"""The answerer: what a server's key starts on the host whose files are taken, and nothing else.

sshd starts it as a login of its own that may do one thing: connect to one reader's door, or start one
reader by its launcher (`kernel/launcher.py`), where nobody opens doors. It does that before it has read
a byte of what the server says, then closes itself in: from there on it can open and start nothing, and
reaches nothing but the reader and the server. It is the far end of the reader's wire, and carries all of
it through its standard input and output, which are the connection.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from capkeep.errors import CapkeepError, Failure
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.pipes import enlarge
from capkeep.kernel.process import hide_memory, spawn
from capkeep.rooms.handover import Handover, is_handover, receive
from capkeep.rooms.protocol import MAX_LINE, Message, ProtocolError, decode, encode
from capkeep.rooms.pull.asked import request_of
from capkeep.rooms.pull.frames import CHANNELS, TALK, WIRE, FrameError, Session
from capkeep.rooms.pull.pump import LostError, Pump

CONNECTION_IN, CONNECTION_OUT = 0, 1
CONNECT_SECONDS: Final = 10
ASKING_SECONDS: Final = 60  # for a server to ask
REFUSED_SECONDS: Final = 10  # for it to hear why it is refused
ASK_SECONDS: Final = 25  # less than a silence that would end all


def main() -> int:
    """Its whole life; the last argument is the path of the reader's door, or of its launcher."""
    hide_memory()
    door, why = _knock(sys.argv[-1])
    near, far = socket.socketpair()
    landlock.restrict((), network=False, special=())
    seccomp.install(seccomp.Profile.ANSWER)
    answer = _Answer(door, near, far)
    try:
        answer.run(why)
    except LostError:
        return 1
    except (CapkeepError, OSError) as error:
        print(f"capkeep: {error}", file=sys.stderr)
        return 1
    finally:
        answer.close()
    return 0


def _knock(path: str) -> tuple[socket.socket, str]:
    """A connection to the reader, or one to nobody and the reason why."""
    if os.path.isfile(path):
        return _start(path)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.settimeout(CONNECT_SECONDS)
    try:
        door.connect(path)
    except OSError as error:
        return door, f"nobody opens the door of the reader: {error.strerror or error}"
    return door, ""


def _start(launcher: str) -> tuple[socket.socket, str]:
    """The same to a reader of our own, which is told nothing but by the connection.

    It hears nothing of the server before it has closed itself in, and ends when we leave.
    """
    near, far = socket.socketpair()
    with far:
        try:
            spawn((launcher,), env={}, stdin=far.fileno(), stdout=far.fileno(), stderr=-1)
        except OSError as error:
            return near, f"the reader's launcher cannot be run: {error.strerror or error}"
    return near, ""


class _Answer:
    """One conversation: a request, the reader's answer, its wire, and pairs of pipes."""

    def __init__(self, door: socket.socket, near: socket.socket, far: socket.socket) -> None:
        self._door, self._near = door, near
        self._far: socket.socket | None = far  # the reader's end of its wire, until it has that
        self._handover: Handover | None = None
        self._asked = bytearray()
        self._session = Session(opens=True)
        self._pump = Pump(CONNECTION_IN, CONNECTION_OUT, self._session, self)
        self._wired = self._asking = False
        self._deaf = False  # there is nobody who could be asked
        self._until = time.monotonic() + ASKING_SECONDS  # unless the reader is at work by then

    def run(self, why: str) -> None:
        """Until the server leaves. Raises LostError, FrameError, ProtocolError, OSError.

        `why` there is no reader to be asked, if there is none.
        """
        if why:
            self._deaf = True
            self._refuse(Failure.REFUSED, why, "was `capkeep apply` run there?")
        self._pump.lead(WIRE, sink=os.dup(self._near.fileno()))
        self._pump.run()

    def close(self) -> None:
        """The reader sees its caller leave, and ends its engine."""
        self._pump.close()
        for end in (self._door, self._near, self._far, self._handover):
            if end is not None:
                end.close()

    def _refuse(self, failure: Failure, text: str, hint: str = "") -> None:
        said: Message = {"event": "result", "failure": failure, "text": text, "hint": hint}
        self._pump.say(TALK, encode(said))
        self._until = time.monotonic() + REFUSED_SECONDS

    # -- the server

    def opened(self, channel: int) -> None:
        """It opens none."""
        raise FrameError(f"channel {channel} may not be opened by a server")

    def said(self, channel: int, data: bytes) -> None:
        """The one request. Raises ProtocolError."""
        self._session.took(channel, len(data))
        if self._deaf:
            return
        if channel != TALK or self._far is None:
            raise ProtocolError("a server asks once")
        self._asked += data
        line, ended, more = self._asked.partition(b"\n")
        if len(line) > MAX_LINE or more:
            raise ProtocolError("a server asks for one thing")
        if ended:
            self._ask(bytes(line), self._far)

    def _ask(self, line: bytes, far: socket.socket) -> None:
        """Ask the reader, and give it its wire with that."""
        self._far = None
        with far:
            try:
                request = encode(request_of(decode(line)))
            except ProtocolError as error:
                self._refuse(Failure.REFUSED, f"the request was refused: {error}")
                return
            self._door.settimeout(ASK_SECONDS)
            with suppress(OSError):  # one that turns us away may have said why
                sent = socket.send_fds(self._door, [request], [far.fileno()])
                self._door.sendall(request[sent:])
        self._asked.clear()
        self._asking = True
        self._pump.lead(TALK, source=os.dup(self._door.fileno()))

    def ended(self, channel: int) -> None:
        """A server that wants no more leaves."""
        self._pump.stopped = self._pump.stopped or channel == TALK

    # -- the reader

    def watched(self) -> Mapping[int, Callable[[], None]]:
        """The wire until it has brought the handover, and then that, while there is a channel free."""
        if not self._wired:
            return {self._near.fileno(): self._take_handover}
        if self._handover is not None and self._session.open_channels() < CHANNELS:
            return {self._handover.fileno(): self._take_pipes}
        return {}

    def tick(self) -> None:
        """Nobody stays who has not asked in time, or was refused and has had time to hear it."""
        if not self._asking and time.monotonic() > self._until:
            self._pump.stopped = True

    def _take_handover(self) -> None:
        """The reader's first message: the socket on which its engine's relays hand pipes over."""
        try:
            data, fds, whole = receive(self._near, 4096, 1)
        except ConnectionResetError:  # it left without having heard what was on its wire
            data, fds, whole = b"", [], True
        if whole and len(fds) == 1 and is_handover(fds[0]):
            self._handover = Handover(socket.socket(fileno=fds.pop()))
        for fd in fds:
            os.close(fd)
        if data and self._handover is None:
            raise ProtocolError("the reader has handed nothing over")
        self._wired = True
        self._pump.lead(WIRE, source=os.dup(self._near.fileno()))

    def _take_pipes(self) -> None:
        """An engine's call: a channel of its own."""
        assert self._handover is not None, "watched only where there is one"
        try:
            ends = self._handover.take()
        except EOFError:
            self._handover.close()
            self._handover = None
            return
        if ends is None:
            return
        try:
            channel = self._session.open()
        except FrameError:
            ends.close()
            raise
        for end in ends:
            enlarge(end)
        self._pump.lead(channel, source=ends.incoming, sink=ends.outgoing)
