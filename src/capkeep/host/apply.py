"""Make this host what the plan says, and take it back: users, directories, the plan, the canary.

Every change is a value first (`Change`), so that `capkeep plan` shows what `apply` does.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from capkeep.errors import RefusedError
from capkeep.host import answerer, launchers, polkit, systemd, users
from capkeep.host.changes import (
    Change,
    Changes,
    Removal,
    Undo,
    directory_change,
    empty_directory,
    file_change,
    indented,
    put_directory,
    put_file,
)
from capkeep.host.files import Owner, hand_over, make_directory, remove_file, remove_tree
from capkeep.host.trust import files_below, untrusted
from capkeep.plan import codec
from capkeep.plan.exported import notes
from capkeep.plan.model import Mode, Places, Plan, Room, RoomKind, Starter
from capkeep.plan.places import METRICS_FILE

CANARY_BYTES: Final = 32


@contextmanager
def alone(places: Places, mode: Mode) -> Iterator[Changes]:
    """While one process changes what is on this host, no other does.

    An error on the way takes back what was changed. Raises RefusedError, OSError.
    """
    path = _lock_path(places)
    fd = -1
    try:
        with Changes() as changes:
            undo = put_directory(places.state, owner=_root(mode), mode=_open_mode(mode))
            changes.also(f"directory {places.state}", undo)
            new = not os.path.lexists(path)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            _lock(fd, path)
            if new:
                changes.also(path, partial(remove_file, path))
            yield changes
    finally:
        if fd >= 0:
            os.close(fd)


def _lock(fd: int, path: str) -> None:
    """Raises RefusedError, also for a lock that was taken away with an `apply` that failed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lost = os.fstat(fd).st_nlink == 0
    except BlockingIOError:
        lost = True
    if lost:
        raise RefusedError(
            "another `capkeep apply` or `capkeep remove` is under way here",
            hint=f"wait until it has ended ({path})",
        )


def note_users(places: Places, names: tuple[str, ...], mode: Mode) -> Undo:
    """Write down which users are about to be made: an `apply` that dies must not forget them."""
    content = json.dumps(names).encode() + b"\n"
    return put_file(_note(places), content, owner=_root(mode), mode=0o600)


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


def make_users(
    names: tuple[str, ...],
    group: str,
    starter: Starter,
    homes: Mapping[str, str] = users.NO_HOMES,
) -> Iterator[Change]:
    """The users that rooms run as, and the group that may ask; `homes`: of those who log in."""
    lines = {line.split()[1]: line for line in users.declared(names, group, homes)}
    by_systemd = starter is Starter.SYSTEMD
    for name in names:
        own = partial(users.make, name, homes.get(name, ""))
        how = partial(users.make_declared, lines[name]) if by_systemd else own
        make = partial(_make_user, how, name)
        yield Change(f"user {name}", partial(users.is_missing, name), make)
    if group not in names:
        how = partial(users.make_declared, lines[group])
        how = how if by_systemd else partial(users.make_group, group)
        make = partial(_make_user, how, group)
        yield Change(f"group {group}", lambda: not users.has_group(group), make)


def _make_user(make: Callable[[], None], name: str) -> Undo:
    make()
    return partial(users.remove, name)


def refuse_untrusted(plan: Plan, own_uid: int) -> None:
    """A plan must not execute what others can change, nor be exchanged itself.

    Raises RefusedError naming each file.
    """
    trusted = owners(plan.mode, own_uid)
    found = untrusted(trusted_paths(plan), trusted)
    for uid, program in lent_programs(plan):
        found += untrusted([program], trusted | {uid})
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
        yield directory_change(path, owner=owner, mode=mode)
    yield from answerer.changes(plan)
    yield file_change(
        f"plan {plan.places.plan}",
        plan.places.plan,
        codec.dumps(plan).encode() + b"\n",
        owner=Owner(_root(plan.mode).uid, plan.group),
        mode=0o640 if plan.mode is Mode.SYSTEM else 0o600,
        readable=indented,
    )


def renew_canary(plan: Plan) -> Undo:
    """New content at every apply: an engine that skips unchanged files must read it again."""
    content = secrets.token_hex(CANARY_BYTES).encode() + b"\n"
    return put_file(plan.places.canary, content, owner=_root(plan.mode), mode=0o600)


def _root(mode: Mode) -> Owner:
    return Owner(0, 0) if mode is Mode.SYSTEM else Owner(os.geteuid(), os.getegid())


def _open_mode(mode: Mode) -> int:
    """Of a directory that everybody on the host may pass through, where there is anybody else."""
    return 0o755 if mode is Mode.SYSTEM else 0o700


def _run_directories(plan: Plan) -> Iterator[tuple[str, Owner, int]]:
    opens = _root(plan.mode)  # who opens the doors
    if plan.starter is Starter.LAUNCHER:
        opens = Owner(plan.runner.grant.uid, plan.runner.grant.gid)
    yield plan.places.run, opens, _open_mode(plan.mode)
    yield plan.places.stage, opens, 0o700


def make_run_directories(plan: Plan) -> None:
    """Directories in memory are gone after a restart of the machine: make them as `apply` did."""
    for path, owner, mode in _run_directories(plan):
        make_directory(path, owner=owner, mode=mode)


def _directories(plan: Plan) -> Iterator[tuple[str, Owner, int]]:
    places, root, open_mode = plan.places, _root(plan.mode), _open_mode(plan.mode)
    runner = plan.runner.grant
    yield places.config, root, open_mode
    yield places.secrets, *launchers.secrets_directory(plan, root)
    yield places.state, root, open_mode
    yield places.records, Owner(runner.uid, plan.group), 0o750
    yield f"{places.state}/vault", root, 0o711
    if plan.dumps:
        yield f"{places.state}/dumps", root, 0o711
    yield places.cache, root, 0o711
    yield places.log, Owner(runner.uid, plan.group), 0o750
    yield from _run_directories(plan)
    yield places.stamps, Owner(runner.uid, plan.group), open_mode
    # One that is there already belongs to whoever collects from it.
    if plan.metrics and not os.path.isdir(plan.metrics):
        yield plan.metrics, Owner(runner.uid, plan.group), open_mode
    made = {places.records, places.log, places.stamps, plan.metrics}
    for room in plan.rooms:
        for path in room.grant.write:
            if path not in made:
                made.add(path)
                yield path, Owner(room.grant.uid, room.grant.gid), 0o700


def owners(mode: Mode, own_uid: int) -> frozenset[int]:
    """Who may change what rooms execute: root, and in user mode the user."""
    return frozenset({0} if mode is Mode.SYSTEM else {0, own_uid})


def engines(plan: Plan) -> frozenset[str]:
    """The programs that read files or reach repositories, and the interpreter of the rooms."""
    rclone = {v for r in plan.all_repositories for k, v in r.options if k == "rclone"}
    return frozenset({plan.interpreter, *(r.program for r in plan.all_repositories)} | rclone)


def trusted_paths(plan: Plan) -> list[str]:
    """Everything that must be changeable by root alone: what is executed, and the plan's own places."""
    commands = {s.source.command[0] for r in plan.rooms for s in r.secrets if s.source.command}
    mailers = {n.program for n in plan.notify if n.program}
    programs = {*engines(plan), "/usr/bin/bwrap", "/usr/bin/setpriv", *commands, *mailers}
    own = (plan.places.config, plan.places.state)
    seen = [p for p in own if os.path.isdir(p)]
    folders = {r.environment_folder for r in plan.all_repositories if r.environment_folder}
    below = [path for folder in sorted(folders) for path in files_below(folder)]
    return [*seen, *sorted(programs), *below, *files_below(f"{plan.package}/capkeep")]


def lent_programs(plan: Plan) -> Iterator[tuple[int, str]]:
    """What dumps and hooks execute, with the user who may change it: it runs as him.

    With a capability he has more rights in there than outside, so that nobody but root may.
    """
    for room in plan.rooms:
        if room.dump:
            dump = plan.dump(room.dump)
            for program in (*dump.command[:1], dump.program):
                if program:
                    yield room.grant.uid, program
        elif room.hook:
            capable = bool(room.grant.capabilities)
            words = plan.hook(room.hook).command
            scripts = [w for w in words[1:] if w.startswith("/") and os.path.isfile(w)]
            for program in (words[0], *(scripts if capable else ())):
                yield 0 if capable else room.grant.uid, program


def refuse_foreign_repositories(plan: Plan) -> None:
    """A repository directory that is already somebody else's is not taken over. Raises RefusedError."""
    for room, path, before in _foreign_repositories(plan):
        raise RefusedError(
            f"{path} holds files of uid {before.uid}, and {room.name} runs as {room.grant.user}",
            hint="to hand it over: capkeep apply --hand-over",
        )


def handed_over(plan: Plan) -> Iterator[Change]:
    """Such directories, given to the rooms that are to have them."""
    for room, path, before in _foreign_repositories(plan):
        # Of a mirror whose files belong to their owners the directory itself is enough.
        deep = not room.grant.changes_owners
        give = partial(hand_over, path, deep=deep)
        make = partial(_give, give, Owner(room.grant.uid, room.grant.gid), before)
        yield Change(f"repository {path} belongs to {room.grant.user}", lambda: True, make)


def _give(give: Callable[[Owner], None], after: Owner, before: Owner) -> Undo:
    try:
        give(after)
    except BaseException:
        give(before)
        raise
    return partial(give, before)


def _foreign_repositories(plan: Plan) -> Iterator[tuple[Room, str, Owner]]:
    """Directories of vaults that hold something and are somebody else's, with their owners."""
    found = set()
    for room in plan.rooms:
        for path in room.grant.write if room.kind is RoomKind.VAULT else ():
            if path in found or not os.path.isdir(path) or not os.listdir(path):
                continue
            state = os.stat(path)
            if state.st_uid != room.grant.uid:
                found.add(path)
                yield room, path, Owner(state.st_uid, state.st_gid)


def remove(
    plan: Plan, *, delete_records: bool = False, delete_data: bool = False
) -> Iterator[Removal]:
    """Take back what apply made; never secrets and configuration.

    Records and repositories on this host's disks only if that is asked for.
    """
    places = plan.places
    yield from answerer.removals(places)  # first, so that nobody comes in any more
    yield from launchers.removals(plan)
    if plan.starter is Starter.SYSTEMD:
        yield from systemd.remove(plan)
    if plan.mode is Mode.SYSTEM:
        yield from polkit.remove(plan)
    trees = [places.run, places.cache]
    provers = [room for room in plan.rooms if room.kind is RoomKind.PROVER]
    trees += [path for room in provers for path in room.grant.write[1:]]
    own = ("vault", "rooms", "root", "keys", "last-complete", "dumps")
    trees += [f"{places.state}/{name}" for name in own]
    if delete_records or delete_data:
        trees += [places.records, places.log, notes(places)]
    if delete_data:
        vaults = [r for r in plan.rooms if r.kind is RoomKind.VAULT and not r.grant.network]
        trees += [path for room in vaults for path in room.grant.write]
    for path in trees:
        yield Removal(f"directory {path}", partial(os.path.isdir, path), partial(remove_tree, path))
    yield _file_away(places.canary)
    if plan.metrics:
        yield _file_away(f"{plan.metrics}/{METRICS_FILE}")
    for name in dict.fromkeys((*plan.created_users, *noted_users(places))):
        yield Removal(f"user {name}", lambda: True, partial(users.remove, name))
    yield _file_away(_note(places))
    yield _file_away(places.plan)  # as long as it is there, `remove` can be asked again
    yield _file_away(_lock_path(places))
    yield empty_directory(places.state)


def _lock_path(places: Places) -> str:
    return f"{places.state}/apply.lock"


def _file_away(path: str) -> Removal:
    return Removal(f"file {path}", partial(os.path.lexists, path), partial(os.unlink, path))
