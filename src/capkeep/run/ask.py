"""Ask a room for its one job and hear it out."""

import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Room
from capkeep.rooms.protocol import Channel, Message, ProtocolError
from capkeep.run.caller import Caller

CONNECT_SECONDS: Final = 10
SILENCE_SECONDS: Final = 600  # a room says something at least every second while it works


class Visit:
    """A connection to a room, which starts when this is made. Leaving it stops what it does."""

    def __init__(self, room: Room) -> None:
        """Raises StepError when nobody opens the door."""
        assert room.door is not None, "the runner asks rooms with doors only"
        self.room = room
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect(room.door.path)
        except OSError as error:
            sock.close()
            raise StepError(
                Failure.REFUSED,
                f"nobody opens the door of {room.name}: {error.strerror}",
                hint="is `capkeep doors` running, and was `capkeep apply` run after a change?",
            ) from error
        self._channel = Channel(sock)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    @property
    def channel(self) -> Channel:
        """For who converses with several rooms at a time."""
        return self._channel

    def ask(
        self,
        request: Message,
        on_event: Callable[[Message], None],
        caller: Caller,
        deadline: float,
    ) -> Message:
        """The room's result. Raises StepError: timeout, stopped, or interrupted (no result)."""
        self.send(request)
        try:
            return self._hear_out(on_event, caller, deadline)
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"{self.room.name}: {error}") from error

    def send(self, request: Message) -> None:
        """Ask, and wait for nothing. Raises StepError where the room does not take the request."""
        try:
            # Who is turned away at the door finds it shut, and the reason lying there.
            with suppress(BrokenPipeError):
                self._channel.send(request)
            self._channel.sock.setblocking(False)  # a room may stop inside a message
        except TimeoutError as error:
            raise StepError(Failure.TIMEOUT, f"{self.room.name} does not answer") from error
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"{self.room.name}: {error}") from error

    def _hear_out(
        self, on_event: Callable[[Message], None], caller: Caller, deadline: float
    ) -> Message:
        heard = time.monotonic()
        while True:
            ready: list[socket.socket] = []
            if not self._channel.pending():
                ready = select.select([self._channel.sock, *caller.sockets()], [], [], 1.0)[0]
            now = time.monotonic()
            if any(sock in ready for sock in caller.sockets()):
                caller.hear()
            check(caller, deadline, {self.room.name: heard})
            if self._channel.pending() or self._channel.sock in ready:
                try:
                    message = self._channel.receive()
                except BlockingIOError:
                    continue  # the rest of the message is still to come
                heard = now
                if message is None:
                    raise StepError(
                        Failure.INTERRUPTED, f"{self.room.name} died: it ended without a result"
                    )
                if message.get("event") == "result":
                    return message
                on_event(message)


def check(caller: Caller, deadline: float, heard: Mapping[str, float]) -> None:
    """Raises StepError when there is no use in waiting; `heard`: when each room last said anything."""
    now = time.monotonic()
    if caller.asked_to_stop:
        raise StepError(Failure.STOPPED, "stopped on request")
    if now > deadline:
        raise StepError(Failure.TIMEOUT, "the step took longer than its time limit")
    for room, when in heard.items():
        if now - when > SILENCE_SECONDS:
            raise StepError(Failure.TIMEOUT, f"{room} has said nothing for {SILENCE_SECONDS} s")
