"""Ask a room for its one job and hear it out."""

import select
import socket
import time
from collections.abc import Callable
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Room
from capkeep.rooms.protocol import Channel, Message, ProtocolError
from capkeep.run.caller import Caller

CONNECT_SECONDS: Final = 10
SILENCE_SECONDS: Final = 600  # a room says something at least every second while it works


def ask(
    room: Room,
    request: Message,
    on_event: Callable[[Message], None],
    caller: Caller,
    deadline: float,
) -> Message:
    """The room's result. Closing the socket on every way out stops whatever the room still does.

    Raises StepError: refused, timeout, stopped, or interrupted (no result).
    """
    with Channel(_connect(room)) as channel:
        channel.sock.settimeout(CONNECT_SECONDS)
        try:
            channel.send(request)
            return _hear_out(room, channel, on_event, caller, deadline)
        except TimeoutError as error:
            raise StepError(Failure.TIMEOUT, f"{room.name} does not answer") from error
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"{room.name}: {error}") from error


def _connect(room: Room) -> socket.socket:
    assert room.door is not None, "the runner asks rooms with doors only"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_SECONDS)
    try:
        sock.connect(room.door.path)
    except OSError as error:
        sock.close()
        raise StepError(
            Failure.REFUSED,
            f"nobody opens the door of {room.name}: {error.strerror}",
            hint="is `capkeep doors` running, and was `capkeep apply` run after the last change?",
        ) from error
    return sock


def _hear_out(
    room: Room,
    channel: Channel,
    on_event: Callable[[Message], None],
    caller: Caller,
    deadline: float,
) -> Message:
    heard = time.monotonic()
    while True:
        ready: list[object] = []
        if not channel.pending():
            ready = select.select([channel.sock, *caller.sockets()], [], [], 1.0)[0]
        now = time.monotonic()
        if any(sock in ready for sock in caller.sockets()):
            caller.hear()
        if caller.asked_to_stop:
            raise StepError(Failure.STOPPED, "stopped on request")
        if now > deadline:
            raise StepError(Failure.TIMEOUT, "the step took longer than its time limit")
        if now - heard > SILENCE_SECONDS:
            raise StepError(Failure.TIMEOUT, f"{room.name} has said nothing for 10 minutes")
        if channel.pending() or channel.sock in ready:
            heard = now
            message = channel.receive()
            if message is None:
                raise StepError(
                    Failure.INTERRUPTED, f"{room.name} ended without a result; it may have died"
                )
            if message.get("event") == "result":
                return message
            on_event(message)
