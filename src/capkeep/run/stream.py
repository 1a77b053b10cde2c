"""Two rooms at a time: one writes a dump into a pipe, the other makes a snapshot of what comes out.

We hold the pipe open as well until the first has said that its dump is whole. Only then does the
second see the end of it. If the first fails, we leave the second, whose engine is killed while it
still waits for more: an engine makes a snapshot when its input has ended, and not before.
"""

import os
import select
import socket
import time
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel.pipes import enlarge
from capkeep.rooms.protocol import Message, ProtocolError
from capkeep.run.ask import Visit, check
from capkeep.run.errand import Errand
from capkeep.run.heard import Heard
from capkeep.run.step import Ledger
from capkeep.run.verdict import failure_of

END_SECONDS: Final = 60  # in which a room ends its engine


def fed(errand: Errand, reader: Visit, heard: Heard, ledger: Ledger, deadline: float) -> Message:
    """The reader's result, or that of the dump that failed. Raises StepError."""
    assert errand.feeder is not None, "asked before"
    dump = Heard(None, errand.feeder.room, ledger.tell)
    with Visit(errand.feeder.room) as dumper:
        out, into = _pipe()
        sides = (
            _Side(dumper, dump, into, keep=True),
            _Side(reader, heard, out, keep=False),
        )
        try:
            dumper.send(errand.feeder.request)
            reader.send(errand.request)
            return _converse(sides, ledger, deadline)
        finally:
            heard.proofs |= {f"dumper {name}": proof for name, proof in dump.proofs.items()}
            heard.findings += dump.findings
            _part(sides)
            for side in sides:
                side.let_go()


def _pipe() -> tuple[int, int]:
    """The end to read and the one to write. Raises StepError."""
    try:
        out, into = os.pipe()
    except OSError as error:
        raise StepError(Failure.INTERRUPTED, f"there is no pipe to be had: {error}") from error
    enlarge(out)
    return out, into


class _Side:
    """One of the two rooms, and its end of the pipe; with `keep` we hold that as well."""

    def __init__(self, visit: Visit, heard: Heard, end: int, *, keep: bool) -> None:
        self.visit = visit
        self.heard = heard
        self._end = end
        self._keep = keep
        self.result: Message | None = None
        self.at = time.monotonic()

    def hear(self) -> None:
        """All that it has said until now. Raises StepError where it is gone without a result."""
        name = self.visit.room.name
        try:
            while self.result is None:
                message = self.visit.channel.receive()
                self.at = time.monotonic()
                if message is None:
                    raise StepError(Failure.INTERRUPTED, f"{name} died: it ended without a result")
                self._take(message)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"{name}: {error}") from error

    def _take(self, message: Message) -> None:
        if message.get("event") == "result":
            self.result = message
        elif message.get("event") == "ready" and self._end >= 0:
            socket.send_fds(self.visit.channel.sock, [b"pipe\n"], [self._end])
            if not self._keep:
                self.let_go()
        else:
            self.heard.take(message)

    def quiet_for(self, seconds: float) -> bool:
        """Whether it has said nothing for so long."""
        return time.monotonic() - self.at > seconds

    def let_go(self) -> None:
        """Close our own copy of its end."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1


def _converse(sides: tuple[_Side, _Side], ledger: Ledger, deadline: float) -> Message:
    """Until the reader has its snapshot, or one of them has failed."""
    dumper, reader = sides
    caller = ledger.caller
    whole = False
    while True:
        waiting = [side for side in sides if side.result is None]
        socks = [side.visit.channel.sock for side in waiting]
        ready = select.select([*socks, *caller.sockets()], [], [], 1.0)[0]
        if any(sock in ready for sock in caller.sockets()):
            caller.hear()
        for side in waiting:
            side.hear()
        if dumper.result is not None and not whole:
            failure = failure_of(dumper.result)
            if failure is None:
                whole = True
                dumper.let_go()  # the last one that holds it: the reader sees the end
            elif failure is not Failure.INTERRUPTED or dumper.quiet_for(END_SECONDS):
                return dumper.result
            # Else nobody took the dump any more: the reader is about to say why.
        if reader.result is not None:
            return _ended(reader.result, dumper, whole=whole)
        check(caller, deadline, {side.visit.room.name: side.at for side in waiting})


def _ended(result: Message, dumper: _Side, *, whole: bool) -> Message:
    """What the reader's result is worth: a snapshot of a dump that is not whole is none."""
    if failure_of(result) is None and not (whole and result.get("snapshot")):
        raise StepError(Failure.ENGINE, "the engine ended before the dump had")
    found = dumper.result or {}
    return {**result, "text": result.get("text") or found.get("text")}


def _part(sides: tuple[_Side, _Side]) -> None:
    """Leave the reader, and wait until it has ended its engine, before the pipe may end.

    However long that takes: while the reader lives its engine could take an end for a whole dump.
    """
    reader = sides[1]
    if reader.result is None:
        sock = reader.visit.channel.sock
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(None)
            while sock.recv(65536):
                pass
