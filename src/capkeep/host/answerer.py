"""On a target: the login that servers' keys are let in with, and the one program that each starts.

The login has no password, no capability and nothing of its own: whatever a client asks for, sshd starts
the answerer for it (`command=`), without a terminal, forwarding or start-up file (`restrict`), and the
answerer reaches one reader's door. All files here are root's, so nobody can add a key to them but root.

Sources: sshd(8), "AUTHORIZED_KEYS FILE FORMAT"; sshd_config(5).
"""

import os
import shlex
from collections.abc import Iterator
from functools import partial
from typing import Final

from capkeep.errors import RefusedError
from capkeep.host import ssh_keys, users
from capkeep.host.changes import Change, Removal, directory_change, file_change
from capkeep.host.files import Owner, remove_tree
from capkeep.kernel.process import python
from capkeep.plan.model import Answer, Places, Plan

MODULE: Final = "capkeep.rooms.answerer"
MADE_BY: Final = "# Made by `capkeep apply`; changes are overwritten."
ROOT: Final = Owner(0, 0)


def home(places: Places) -> str:
    """Its home: root's, and all that is in it."""
    return f"{places.state}/answerer"


def keys_path(places: Places) -> str:
    """Where sshd looks for the keys that may log in."""
    return f"{home(places)}/.ssh/authorized_keys"


def logins(plan: Plan) -> dict[str, str]:
    """Each login with its home."""
    return {answer.user: home(plan.places) for answer in plan.answers}


def command(plan: Plan, answer: Answer) -> str:
    """What sshd gives the login's shell: the answerer, for which repository, and its reader's door.

    Where nobody opens doors its launcher stands in the door's place.
    """
    room = plan.room(answer.reader)
    place = plan.places.launcher(room.name) if room.door is None else room.door.path
    words = (plan.interpreter, *python(plan.package, MODULE), answer.repository, place)
    return f"exec {shlex.join(words)}"


def key_line(forced: str, key: str) -> str:
    """A line of authorized_keys(5) by which a key starts that command and nothing else.

    Raises RefusedError for what a line cannot hold, KeyTextError.
    """
    # sshd takes \" for ", and everything else as it is; a \ before its closing quote would be lost.
    if not forced.isprintable() or forced.endswith("\\"):
        raise RefusedError(
            f"sshd cannot be told to start this: {forced!r}",
            hint="install capkeep where the path has no control characters",
        )
    quoted = forced.replace('"', '\\"')
    return f'restrict,command="{quoted}" {ssh_keys.parse(key).line}'


def authorized_keys(plan: Plan) -> str:
    """The whole file, a line for each answer. Raises as `key_line` does."""
    lines = (key_line(command(plan, answer), answer.key) for answer in plan.answers)
    return "\n".join((MADE_BY, *lines, ""))


def changes(plan: Plan) -> Iterator[Change]:
    """The login as sshd needs it, and its keys, once the user is there."""
    for name, place in logins(plan).items():
        yield Change(
            f"login {name}: by key alone, home {place}, shell {users.LOGIN_SHELL}",
            partial(users.login_differs, name, place),
            partial(users.make_login, name, place),
        )
    if plan.answers:
        for path in (home(plan.places), os.path.dirname(keys_path(plan.places))):
            yield directory_change(path, owner=ROOT, mode=0o755)
        path, content = keys_path(plan.places), authorized_keys(plan).encode()
        yield file_change(f"file {path}", path, content, owner=ROOT, mode=0o644)


def obsolete(plan: Plan) -> Iterator[Removal]:
    """The keys, where nobody is to be answered any more; the user then can log in nowhere."""
    if not plan.answers:
        yield from removals(plan.places)


def removals(places: Places) -> Iterator[Removal]:
    """The login's home with the keys."""
    path = home(places)
    yield Removal(f"directory {path}", partial(os.path.isdir, path), partial(remove_tree, path))
