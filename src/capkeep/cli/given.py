"""ls, find and restore for a member of the group: what he could read himself, written by himself."""

import argparse
import contextlib
import errno
import os
import socket
import threading
from typing import TYPE_CHECKING

from capkeep.cli.places import resolve
from capkeep.errors import Failure, RefusedError, StepError
from capkeep.rooms.protocol import Channel, Message, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from capkeep.host.unpack import Unpacker
    from capkeep.plan.model import Door

LAST_WORD_SECONDS = 5.0  # of a room from which comes what cannot be taken


def is_for(args: argparse.Namespace) -> bool:
    """Whether the caller is nobody who may see everything."""
    return os.geteuid() != 0 and not args.user


def look(
    args: argparse.Namespace, request: Message, on_event: "Callable[[Message], None]"
) -> Message:
    """The room's result to a request that hands nothing over. Raises RefusedError, StepError."""
    with _connect(_door(args)) as channel:
        channel.send(request)
        return _heard(channel, on_event)


def restore(
    args: argparse.Namespace, request: Message, unpacker: "Unpacker",
    on_event: "Callable[[Message], None]",
) -> Message:  # fmt: skip
    """Take what is given, and write it. Raises RefusedError, StepError, OSError."""
    with _connect(_door(args)) as channel:
        channel.send(request)
        for message in channel:
            if message.get("event") == "result":
                return message
            if message.get("event") == "ready":
                break
            on_event(message)
        else:
            raise StepError(Failure.INTERRUPTED, "the room ended without a result")
        outlet, inlet = os.pipe()
        with open(outlet, "rb") as pipe:
            try:
                socket.send_fds(channel.sock, [b"pipe\n"], [inlet])
            finally:
                os.close(inlet)
            return _taken(channel, pipe, unpacker, on_event)


def _taken(
    channel: Channel, pipe: "BinaryIO", unpacker: "Unpacker",
    on_event: "Callable[[Message], None]",
) -> Message:  # fmt: skip
    """What is said is heard meanwhile: a room that is not listened to stands still."""
    said: list[Message | StepError] = []

    def listen() -> None:
        try:
            said.append(_heard(channel, on_event))
        except StepError as error:
            said.append(error)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    broken: Exception | None = None
    try:
        unpacker.take(pipe)
    except (ProtocolError, OSError) as error:
        broken = error
        pipe.close()  # the room finds that nobody takes any more; or has said already why it ended
        if isinstance(error, ProtocolError):
            listener.join(LAST_WORD_SECONDS)
        with contextlib.suppress(OSError):
            channel.sock.shutdown(socket.SHUT_RDWR)
    listener.join()
    found = said[0]
    if isinstance(broken, OSError):
        full = broken.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StepError(Failure.NO_SPACE if full else Failure.DENIED, str(broken)) from broken
    if broken is not None and (
        # That we have left is no reason; any other failure of the room's is.
        isinstance(found, StepError) or found.get("failure") in (None, Failure.STOPPED)
    ):
        raise StepError(Failure.INTERRUPTED, str(broken)) from broken
    if isinstance(found, StepError):
        raise found
    return found


def _heard(channel: Channel, on_event: "Callable[[Message], None]") -> Message:
    try:
        for message in channel:
            if message.get("event") == "result":
                return message
            on_event(message)
    except (OSError, ProtocolError) as error:
        raise StepError(Failure.INTERRUPTED, f"the room has left: {error}") from error
    raise StepError(Failure.INTERRUPTED, "the room ended without a result")


def _door(args: argparse.Namespace) -> "Door":
    from capkeep.cli.look import repository_name
    from capkeep.plan.load import load_plan
    from capkeep.plan.model import RoomKind, closed

    plan = load_plan(resolve(args))
    givers = {r.repository: r for r in plan.rooms if r.kind is RoomKind.GIVER}
    if not givers:
        raise RefusedError(
            "only root may look into snapshots here",
            hint="use sudo; or an administrator writes members-restore = true in [host], for members"
            " to get back what they could read (of restic's repositories)",
        )
    name = repository_name(plan, args.repository)
    if plan.repository(name).target_keeps_password:
        text, hint = closed(name)
        raise RefusedError(text, hint=hint)
    room = givers.get(name)
    if room is None or room.door is None:
        raise RefusedError(
            f"only root may look into {args.repository}",
            hint="its engine does not tell all that decides who could read a file",
        )
    return room.door


def _connect(door: "Door") -> Channel:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(door.path)
    except PermissionError as error:
        sock.close()
        raise RefusedError(
            f"you may not ask for files ({door.path})",
            hint="only members of the group that [host] group names may; an administrator adds"
            " you with: usermod -aG capkeep YOU, and you log in again",
        ) from error
    except OSError as error:
        sock.close()
        raise RefusedError(
            "nobody opens the doors to the rooms on this host",
            hint="an administrator starts `capkeep doors`, or looks with `capkeep audit`",
        ) from error
    return Channel(sock)
