"""Make this host what the plan says, and take it back: users, directories, the plan, the canary.

Every change is a value first (`Change`), so that `capkeep plan` shows what `apply` does.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

from capkeep.errors import RefusedError
from capkeep.host import users
from capkeep.host.files import (
    Owner,
    directory_differs,
    file_differs,
    make_directory,
    remove_tree,
    write_atomic,
)
from capkeep.host.trust import files_below, untrusted
from capkeep.plan import codec
from capkeep.plan.model import Mode, Places, Plan, RoomKind

CANARY_BYTES: Final = 32


class Change(NamedTuple):
    """One thing that this host must have, whether that is still to be made, and how."""

    what: str
    needed: Callable[[], bool]
    make: Callable[[], None]


@contextmanager
def alone(places: Places, mode: Mode) -> Iterator[None]:
    """While one process changes what is on this host, no other does. Raises RefusedError, OSError."""
    make_directory(places.state, owner=_root(mode), mode=_open_mode(mode))
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{places.state}/apply.lock", flags, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                "another `capkeep apply` or `capkeep remove` is under way here",
                hint="wait until it has ended",
            ) from error
        yield
    finally:
        os.close(fd)


def note_users(places: Places, names: tuple[str, ...], mode: Mode) -> None:
    """Write down which users are about to be made: an `apply` that dies must not forget them."""
    content = json.dumps(names).encode() + b"\n"
    write_atomic(_note(places), content, owner=_root(mode), mode=0o600)


def noted_users(places: Places) -> tuple[str, ...]:
    """The users that an `apply` meant to make, and did not live to write into a plan."""
    try:
        with open(_note(places), "rb") as file:
            names = json.load(file)
    except (OSError, ValueError):
        return ()
    return tuple(filter(users.is_name, names)) if isinstance(names, list) else ()


def drop_note(places: Places) -> None:
    """The plan says it now."""
    with suppress(FileNotFoundError):
        os.unlink(_note(places))


def _note(places: Places) -> str:
    return f"{places.state}/users-to-be-made"


def make_users(names: tuple[str, ...], group: str) -> Iterator[Change]:
    """The users that rooms run as, and the group that may ask."""
    for name in names:
        yield Change(f"user {name}", partial(users.is_missing, name), partial(users.make, name))
    if group not in names:
        yield Change(
            f"group {group}",
            lambda: not users.has_group(group),
            partial(users.make_group, group),
        )


def refuse_untrusted(plan: Plan, own_uid: int) -> None:
    """A plan must not execute what others can change, nor be exchanged itself.

    Raises RefusedError naming each file.
    """
    programs = {plan.interpreter, "/usr/bin/bwrap", "/usr/bin/setpriv"}
    programs |= {r.program for r in plan.repositories}
    programs |= {v for r in plan.repositories for k, v in r.options if k == "rclone"}
    programs |= {s.source.command[0] for r in plan.rooms for s in r.secrets if s.source.command}
    owners = frozenset({0} if plan.mode is Mode.SYSTEM else {0, own_uid})
    own = (plan.places.config, plan.places.state)
    seen = [p for p in own if os.path.isdir(p)]
    found = untrusted([*seen, *sorted(programs), *files_below(f"{plan.package}/capkeep")], owners)
    if found:
        shown = "\n  ".join(found[:10])
        more = f"\n  and {len(found) - 10} more" if len(found) > 10 else ""
        raise RefusedError(
            f"the rooms would execute what others than root can change:\n  {shown}{more}",
            hint="install capkeep and the engines where only root can write (a system package, or a"
            " virtual environment made by root below /opt), and its own files likewise",
        )


def changes(plan: Plan) -> Iterator[Change]:
    """What makes the host as planned, users apart, in the order in which it is done."""
    for path, owner, mode in _directories(plan):
        yield Change(
            f"directory {path} (owner {owner.uid}:{owner.gid}, mode {mode:04o})",
            partial(directory_differs, path, owner=owner, mode=mode),
            partial(make_directory, path, owner=owner, mode=mode),
        )
    content = codec.dumps(plan).encode() + b"\n"
    owner = Owner(_root(plan.mode).uid, plan.group)
    mode = 0o640 if plan.mode is Mode.SYSTEM else 0o600
    yield Change(
        f"plan {plan.places.plan}",
        partial(file_differs, plan.places.plan, content, owner=owner, mode=mode),
        partial(write_atomic, plan.places.plan, content, owner=owner, mode=mode),
    )


def renew_canary(plan: Plan) -> None:
    """New content at every apply: an engine that skips unchanged files must read it again."""
    content = secrets.token_hex(CANARY_BYTES).encode() + b"\n"
    write_atomic(plan.places.canary, content, owner=_root(plan.mode), mode=0o600)


def _root(mode: Mode) -> Owner:
    return Owner(0, 0) if mode is Mode.SYSTEM else Owner(os.geteuid(), os.getegid())


def _open_mode(mode: Mode) -> int:
    """Of a directory that everybody on the host may pass through, where there is anybody else."""
    return 0o755 if mode is Mode.SYSTEM else 0o700


def _run_directories(plan: Plan) -> Iterator[tuple[str, Owner, int]]:
    yield plan.places.run, _root(plan.mode), _open_mode(plan.mode)
    yield plan.places.stage, _root(plan.mode), 0o700


def make_run_directories(plan: Plan) -> None:
    """Directories in memory are gone after a restart of the machine: make them as `apply` did."""
    for path, owner, mode in _run_directories(plan):
        make_directory(path, owner=owner, mode=mode)


def _directories(plan: Plan) -> Iterator[tuple[str, Owner, int]]:
    places, root, open_mode = plan.places, _root(plan.mode), _open_mode(plan.mode)
    runner = next(r.grant for r in plan.rooms if r.kind is RoomKind.RUNNER)
    yield places.config, root, open_mode
    yield places.secrets, root, 0o700
    yield places.state, root, open_mode
    yield places.records, Owner(runner.uid, plan.group), 0o750
    yield f"{places.state}/vault", root, 0o711
    yield places.cache, root, 0o711
    yield places.log, Owner(runner.uid, plan.group), 0o750
    yield from _run_directories(plan)
    made = {places.records, places.log}
    for room in plan.rooms:
        for path in room.grant.write:
            if path not in made:
                made.add(path)
                yield path, Owner(room.grant.uid, room.grant.gid), 0o700


def refuse_foreign_repositories(plan: Plan) -> None:
    """A repository directory that is already somebody else's is not taken over. Raises RefusedError."""
    for room in plan.rooms:
        for path in room.grant.write if room.kind is RoomKind.VAULT else ():
            if not os.path.isdir(path) or not os.listdir(path):
                continue
            owner = os.stat(path).st_uid
            if owner != room.grant.uid:
                raise RefusedError(
                    f"{path} holds files of uid {owner}, and {room.name} runs as {room.grant.user}",
                    hint=f"to hand it over: chown -R {room.grant.user}: {path}",
                )


def remove(plan: Plan, *, delete_records: bool) -> Iterator[Change]:
    """Take back what apply made; never a repository, nor secrets and configuration."""
    places = plan.places
    trees = [places.run, places.cache, f"{places.state}/vault"]
    if delete_records:
        trees += [places.records, places.log]
    for path in trees:
        yield Change(f"directory {path}", partial(os.path.isdir, path), partial(remove_tree, path))
    yield _file_away(places.canary)
    for name in dict.fromkeys((*plan.created_users, *noted_users(places))):
        yield Change(f"user {name}", lambda: True, partial(users.remove, name))
    yield _file_away(_note(places))
    yield _file_away(places.plan)  # last: as long as it is there, `remove` can be asked again


def _file_away(path: str) -> Change:
    return Change(f"file {path}", partial(os.path.lexists, path), partial(os.unlink, path))
