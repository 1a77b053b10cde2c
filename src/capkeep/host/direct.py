"""Start a room for root by hand, hold the conversation, end it: no door, no runner."""

import contextlib
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType

from capkeep.errors import Failure, StepError
from capkeep.host.apply import make_run_directories
from capkeep.host.start import Target, start
from capkeep.plan.model import Plan, Room
from capkeep.rooms.protocol import Channel, Message, ProtocolError

END_SECONDS = 150  # a vault may still have to tidy up on a slow remote


def converse(
    plan: Plan,
    room: Room,
    request: Message,
    on_event: Callable[[Message], None],
    target: Target | None = None,
    on_ready: Callable[[socket.socket, Message], None] | None = None,
    *,
    seconds: float | None = None,
    password: str = "",
) -> Message:
    """The room's result. Raises StepError when it ends without one, or on Ctrl-C.

    With `seconds` also when it has none by then. A `password` is the room's for this conversation.

    Where a room waits for something to be handed over, `on_ready` does that; what it and the hearer
    of events raise ends the room.
    """
    make_run_directories(plan)
    near, far = socket.socketpair()
    with Channel(near) as channel:
        with far:
            started = start(plan, room, far, os.getuid(), target, password)
        try:
            with _interruptible():
                for message in _heard(channel, request, room, seconds):
                    if message.get("event") == "result":
                        return message
                    if on_ready is not None and message.get("event") == "ready":
                        on_ready(channel.sock, message)
                    else:
                        on_event(message)
            raise StepError(Failure.INTERRUPTED, f"{room.name} ended without a result")
        finally:
            channel.close()
            for child in started.children():
                with contextlib.suppress(TimeoutError):
                    child.wait(END_SECONDS)
                child.kill()


def _heard(
    channel: Channel, request: Message, room: Room, seconds: float | None
) -> Iterator[Message]:
    """What the room says to a request. Raises StepError; what its hearer raises is his own."""
    deadline = time.monotonic() + seconds if seconds is not None else math.inf
    try:
        channel.send(request)
        channel.sock.settimeout(seconds)
        for message in channel:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no result within {seconds:.0f} seconds")
            yield message
    except (OSError, ProtocolError) as error:
        raise StepError(Failure.INTERRUPTED, f"{room.name}: {error}") from error


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C becomes an error with a name, after which the room is ended like on any other."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise StepError(Failure.STOPPED, "stopped on request")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
