"""Keys that open a repository without delay, made in the keeper's room for passwords nobody can guess."""

import os
from typing import Final

from capkeep.engines.base import Key, NewKey
from capkeep.errors import Failure, StepError
from capkeep.rooms.calls import HOUR, Caller
from capkeep.rooms.rest.client import upload

OK: Final = 200


def put_key(caller: Caller, password: str) -> str:
    """Let a password open the repository at once; the new key's id, or "" where the engine makes keys.

    Raises StepError.
    """
    command = caller.engine.master(caller.call, password) if caller.room.relay() else None
    if command is None:
        return ""
    key = caller.engine.make_key(caller.output(command, HOUR), password)
    if key is None:
        return ""
    _store(caller, key)
    return key.id


def exchange_key(caller: Caller) -> None:
    """After a repository was made: put a quick key in the place of the one that the engine made.

    Cut off in between it has both, and each opens it. Raises StepError.
    """
    new = put_key(caller, caller.call.password)
    if not new:
        return
    call = caller.call._replace(key=new, unlocked=True)  # nobody else knows of it yet
    keys = caller.engine.parse_keys(caller.output(caller.engine.keys(call), HOUR))
    if not any(key.current and _is(key, new) for key in keys):
        raise StepError(Failure.ENGINE, "the engine does not open the repository with its new key")
    for key in keys:
        if not _is(key, new):
            caller.output(caller.engine.remove_key(call, key.id), HOUR)


def _is(key: Key, identity: str) -> bool:
    return identity.startswith(key.id)  # which may be no more than its beginning


def _store(caller: Caller, key: NewKey) -> None:
    """Over a pair of pipes of our own, as an engine's."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    try:
        try:
            caller.room.hand_over(theirs_in, theirs_out)
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        status, text = upload(ours_in, ours_out, key.path, key.content)
    except OSError as error:
        raise StepError(Failure.ENGINE, f"the vault takes no key: {error}") from error
    finally:
        os.close(ours_in)
        os.close(ours_out)
    if status != OK:
        raise StepError(Failure.ENGINE, f"the vault takes no key: {text}")
