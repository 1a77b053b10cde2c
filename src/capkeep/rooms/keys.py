"""Work on the keys of a repository, in the keeper's room: list, try, add, remove. For root alone.

The runner, which has the keeper's door, could otherwise be made to lock everybody out. Where all rooms
are one user's, that user has the password and the repository, and may ask too.
"""

import os
from typing import Final

from capkeep.engines.base import Key
from capkeep.errors import Failure, StepError
from capkeep.plan.model import Mode
from capkeep.rooms.base import GIVEN_FD, EngineRoom, option
from capkeep.rooms.calls import Caller, done
from capkeep.rooms.new_key import put_key
from capkeep.rooms.protocol import Message, ProtocolError

SECONDS: Final = 3600
PASSWORD_LIMIT: Final = 4096  # characters
SCRATCH: Final = "keys"  # beside a check that may be under way in another keeper
NEW_PASSWORD: Final = f"/proc/self/fd/{GIVEN_FD}"


def answer(room: EngineRoom, request: Message) -> Message:
    """Do what is asked: `what` is list, open, add or remove."""
    if room.brief.peer_uid not in ({0} if room.brief.mode is Mode.SYSTEM else {0, os.getuid()}):
        raise StepError(Failure.REFUSED, "only root may work on keys")
    what = option(request, "what", default="")
    if what not in ("list", "export", "open", "add", "remove"):
        raise ProtocolError("what must be list, export, open, add or remove")
    password, key = _password(request), _key(request)
    caller = Caller(room, SCRATCH)
    if not caller.engine.traits.password:
        raise StepError(Failure.REFUSED, f"a {caller.engine.name} repository has no password")
    if what in ("add", "remove") and not caller.engine.traits.many_keys:
        raise StepError(
            Failure.REFUSED, f"a {caller.engine.name} repository has one password",
            hint="change it with the engine's own program, where the repository is",
        )  # fmt: skip
    room.await_vault()
    text, found, exported = "", "", ""
    keys: tuple[Key, ...] = ()
    if what in ("list", "export"):
        keys = _keys(caller)
        command = caller.engine.export_key(caller.call) if what == "export" else None
        exported = caller.output(command, SECONDS).decode() if command else ""
    elif what == "open":
        found = _current(_keys(caller, password)).id
    elif what == "add":
        found = _add(caller, password)
        text = f"key {found} opens the repository"
    else:
        caller.output(caller.engine.remove_key(caller.call, key), SECONDS)
        text = f"key {key} opens nothing any more"
    return done(caller, text, key=found, keys=[k._asdict() for k in keys], exported=exported)


def _password(request: Message) -> str:
    """The other password that a request brings. Raises ProtocolError, which never repeats it."""
    text = option(request, "password", default="")
    needed = option(request, "what", default="") in ("open", "add")
    if bool(text) != needed or len(text) > PASSWORD_LIMIT or "\n" in text or "\0" in text:
        raise ProtocolError("the password must be one line")
    return text


def _key(request: Message) -> str:
    """A key's id, or enough of its beginning: nothing that an engine could take for an option."""
    text = option(request, "key", default="")
    needed = option(request, "what", default="") == "remove"
    good = 8 <= len(text) <= 64 and set(text) <= set("0123456789abcdef")
    if bool(text) != needed or (needed and not good):
        raise ProtocolError("key must be a key's id: at least 8 digits of those that list shows")
    return text


def _keys(caller: Caller, password: str = "") -> tuple[Key, ...]:
    """The keys, as seen with the repository's password or another one. Raises StepError."""
    call = caller.call._replace(password=password) if password else caller.call
    return caller.engine.parse_keys(caller.output(caller.engine.keys(call), SECONDS))


def _current(keys: tuple[Key, ...]) -> Key:
    for key in keys:
        if key.current:
            return key
    raise ValueError("the engine does not say which key it used")


def _add(caller: Caller, password: str) -> str:
    """Add a password that does not open the repository yet; the id of its key, which was tried."""
    try:
        return _current(_keys(caller, password)).id
    except StepError as error:
        if error.failure is not Failure.WRONG_PASSWORD:
            raise
    if put_key(caller, password):
        return _current(_keys(caller, password)).id
    memory = os.memfd_create("password", os.MFD_CLOEXEC)
    try:
        os.write(memory, password.encode(errors="surrogateescape"))
        os.lseek(memory, 0, os.SEEK_SET)
        command = caller.engine.add_key(caller.call, NEW_PASSWORD)
        caller.output(command, SECONDS, given=memory)
    finally:
        os.close(memory)
    return _current(_keys(caller, password)).id
