"""Keys that open a repository without delay, made in the keeper's room for passwords nobody can guess."""

import json
import os
from typing import Final

from capkeep.engines.base import NewKey
from capkeep.errors import Failure, StepError
from capkeep.rooms.calls import HOUR, Caller
from capkeep.rooms.rest.client import ask

OK: Final = 200


def put_key(caller: Caller, password: str) -> NewKey | None:
    """Let a password open the repository at once; None where that is left to the engine's own keys.

    Raises StepError.
    """
    command = caller.engine.master(caller.call, password) if caller.room.relay() else None
    if command is None:
        return None
    key = caller.engine.make_key(caller.output(command, HOUR), password)
    if key is not None:
        _ask_vault(caller, "POST", f"{key.folder}{key.id}", key.content)
    return key


def exchange_key(caller: Caller) -> None:
    """After a repository was made: put a quick key in the place of the one that the engine made.

    Cut off in between it has both, and each opens it. Raises StepError.
    """
    new = put_key(caller, caller.call.password)
    if new is None:
        return
    call = caller.call._replace(key=new.id, unlocked=True)
    keys = caller.engine.parse_keys(caller.output(caller.engine.keys(call), HOUR))
    if not any(k.current and new.id.startswith(k.id) for k in keys):  # some versions shorten them
        raise StepError(Failure.ENGINE, "the engine does not open the repository with its new key")
    # Not by the engine, which wants the repository for itself: a backup may have begun already.
    for name in json.loads(_ask_vault(caller, "GET", new.folder)):
        if name != new.id:
            _ask_vault(caller, "DELETE", f"{new.folder}{name}")


def _ask_vault(caller: Caller, method: str, path: str, content: bytes = b"") -> str:
    """Over a pair of pipes of our own, as an engine's; what it answers. Raises StepError."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    try:
        try:
            caller.room.hand_over(theirs_in, theirs_out)
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        status, text = ask(ours_in, ours_out, method, path, content)
    except OSError as error:
        raise StepError(Failure.ENGINE, f"the vault does not answer: {error}") from error
    finally:
        os.close(ours_in)
        os.close(ours_out)
    if status != OK:
        raise StepError(Failure.ENGINE, f"the vault does not do as it is asked: {text}")
    return text
