"""The viewer's `mount`: the engine answers for a filesystem that root has made, of one snapshot.

The room mounts nothing and could not. It is given the device as an open descriptor, by which the
engine can do no more than answer what is asked of that one filesystem.
"""

import os
import shlex
from typing import Final

from capkeep.engines.base import TAIL_LINES
from capkeep.errors import Failure, StepError
from capkeep.kernel import fuse, seccomp
from capkeep.kernel.process import interpreter
from capkeep.rooms.base import GIVEN_FD, EngineRoom
from capkeep.rooms.calls import Caller, done, own_scratch
from capkeep.rooms.listing import snapshot_for
from capkeep.rooms.pipe import take
from capkeep.rooms.protocol import Message
from capkeep.rooms.viewer import snapshot_name

SECONDS: Final = 7 * 24 * 3600  # for which somebody may look
NAMES: Final = ("fusermount", "fusermount3")


def show(room: EngineRoom, request: Message) -> Message:
    """Show a snapshot until the caller leaves or has unmounted it. Raises StepError, Stopped."""
    asked = snapshot_name(request, "snapshot")
    # Another look meanwhile takes away what the last one has left.
    _place, scratch = own_scratch(room.brief.room.grant.write[0])
    caller = Caller(room, scratch, unlocked=True)
    folder = f"{caller.scratch}/shown"
    room.await_vault()
    snapshot = snapshot_for(caller, asked)
    command = caller.engine.mount(caller.call, snapshot.word, folder)
    if command is None:
        text = f"{caller.engine.name} cannot show snapshots as files"
        raise StepError(Failure.REFUSED, text)
    os.mkdir(folder, 0o700)
    programs = _programs(caller.scratch)
    env = tuple((name, value) for name, value in command.env if name != "PATH")
    env += (("PATH", f"{programs}:/usr/bin:/bin"), ("CAPKEEP_DEVICE", str(GIVEN_FD)))
    room.profile = seccomp.Profile.MOUNT
    tail: list[str] = []

    def hear(stream: str, line: bytes) -> None:
        if stream == "stderr":
            tail.append(line.decode(errors="replace"))
            del tail[:-TAIL_LINES]

    device = take(room, {"snapshot": snapshot.id}, fuse.is_device, "a device")
    try:
        code = caller.run(command._replace(env=env), hear, SECONDS, given=device)
    finally:
        os.close(device)
    caller.raise_for(code, tuple(tail))
    return done(caller, "")


def _programs(scratch: str) -> str:
    """A directory with what the engine is to run for mounting."""
    program = f"{os.path.dirname(__file__)}/fusermount.py"
    words = shlex.join((interpreter(), "-I", "-S", program, str(GIVEN_FD)))
    folder = f"{scratch}/bin"
    os.mkdir(folder, 0o700)
    for name in NAMES:
        fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f'#!/bin/sh\nexec {words} "$@"\n')
    return folder
