"""The launchers of a host's readers: what each is, and the changes that put it there.

A launcher is root's, mode 0750, and its group is that of the one user who starts that reader. What it
becomes is fixed in it (`kernel/launcher.py`): Python with `host/launched.py`, the room's name and the
host's places. Nothing that its caller says decides what is read.
"""

import errno
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Final

from capkeep.errors import RefusedError
from capkeep.host.changes import Change, Removal, Undo, directory_change
from capkeep.host.files import (
    Owner,
    file_differs,
    make_directory,
    remove_file,
    remove_tree,
    write_atomic,
)
from capkeep.host.finding import APPLY, Finding, Kind
from capkeep.kernel.launcher import ATTRIBUTE, MACHINES, Mark, attribute, program
from capkeep.kernel.process import python
from capkeep.plan.model import Mode, Places, Plan, Room, Starter
from capkeep.values import is_at_or_below

MODULE: Final = "capkeep.host.launched"
MODE: Final = 0o750
OTHERWISE: Final = 'write start = "doors" or start = "systemd" in [host]'
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
GIVEN_UP: Final = (
    (
        "namespaces for readers: a launcher has no right to make any. Landlock and a system call filter"
        " keep their engines from writing, from files that are not the job's, and from every socket;"
        " other processes and the names of files stay in sight"
    ),
    "users for each kind of room: the rooms' one user can start each reader, and has the passwords",
)


def content(plan: Plan, room: Room) -> bytes:
    """The whole file. Raises RefusedError where its machine language is not known."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise RefusedError(
            f"no launcher can be made for {machine}, only for {', '.join(MACHINES)}",
            hint=OTHERWISE,
        )
    argv = (plan.interpreter, *python(plan.package, MODULE), room.name, *plan.places)
    return program(machine, argv, ENVIRONMENT)


def launched(plan: Plan) -> Iterator[Room]:
    """The readers that have one."""
    return (room for room in plan.rooms if plan.launched(room))


def secrets_directory(plan: Plan, root: Owner) -> tuple[Owner, int]:
    """Whose the directory of secrets is: without a root parent the rooms' one user reaches its own."""
    if plan.starter is Starter.LAUNCHER:
        return Owner(root.uid, plan.runner.grant.gid), 0o710
    return root, 0o700


def secret_file(plan: Plan, root: Owner) -> tuple[Owner, int]:
    """The same of the file of a secret: nobody else is to read it, whoever is in that user's group."""
    if plan.starter is Starter.LAUNCHER:
        return Owner(plan.runner.grant.uid, 0), 0o400
    return root, 0o600


def changes(plan: Plan) -> Iterator[Change]:
    """The launchers, and the secrets that their user's rooms read. Raises RefusedError."""
    rooms = tuple(launched(plan))
    if plan.mode is Mode.SYSTEM:
        yield from _secrets(plan)
    if rooms:
        yield directory_change(plan.places.launchers, owner=Owner(0, 0), mode=0o755)
        _refuse_powerless(plan.places)
    for room in rooms:
        wanted = content(plan, room), Owner(0, room.grant.gid), attribute(Mark(plan.launcher_mark))
        place = plan.places.launcher(room.name)
        what = f"launcher {place} (cap_dac_read_search={plan.launcher_mark}, for {room.grant.user})"
        yield Change(
            what, partial(_differs, place, *wanted), partial(_put, place, *wanted), path=place
        )


def _refuse_powerless(places: Places) -> None:
    """Raises RefusedError where programs get no capability from their files."""
    there = places.launchers if os.path.isdir(places.launchers) else os.path.dirname(places.state)
    with suppress(FileNotFoundError):
        flags = os.statvfs(there).f_flag
        if flags & (os.ST_NOSUID | os.ST_NOEXEC):
            name = "nosuid" if flags & os.ST_NOSUID else "noexec"
            raise RefusedError(
                f"{there} is mounted {name}: no launcher there would get its capability",
                hint=f'mount it without {name}, or write start = "doors" in [host]',
            )


def _differs(place: str, content: bytes, owner: Owner, mark: bytes) -> bool:
    return file_differs(place, content, owner=owner, mode=MODE) or _mark(place) != mark


def _mark(place: str) -> bytes:
    """What the kernel will give to whoever runs it; empty for nothing."""
    try:
        return os.getxattr(place, ATTRIBUTE, follow_symlinks=False)
    except OSError:
        return b""


def _put(place: str, content: bytes, owner: Owner, mark: bytes) -> Undo:
    """Write it with its mark; returns the way back. Raises RefusedError, OSError."""
    undo = partial(remove_file, place)
    with suppress(FileNotFoundError):
        state = os.lstat(place)
        if stat.S_ISREG(state.st_mode):
            with open(place, "rb") as file:
                before = file.read()
            undo = partial(
                write_atomic, place, before, owner=Owner(state.st_uid, state.st_gid),
                mode=stat.S_IMODE(state.st_mode), mark=_mark(place),
            )  # fmt: skip
    try:
        write_atomic(place, content, owner=owner, mode=MODE, mark=mark)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
        raise RefusedError(
            f"{place} cannot be marked with a capability: {error.strerror}",
            hint=f"`capkeep doctor` tells more; {OTHERWISE}",
        ) from error
    return undo


def _secret_files(plan: Plan) -> tuple[str, ...]:
    """Files that rooms read without a capability; a launched reader reads root's own."""
    sources = (s.source for room in plan.rooms if not plan.launched(room) for s in room.secrets)
    return tuple(dict.fromkeys(source.file for source in sources if source.file))


def _secrets(plan: Plan) -> Iterator[Change]:
    """Their owners as whoever starts the rooms needs them. Raises RefusedError for one that is elsewhere.

    A file in another place may be somebody else's too, such as the key with which root logs in.
    """
    owner, mode = secret_file(plan, Owner(0, 0))
    owners = {0, plan.runner.grant.uid}
    for place in _secret_files(plan):
        try:
            uid = os.stat(place).st_uid
        except OSError:
            continue  # told by whoever checks the configuration
        if plan.starter is not Starter.LAUNCHER and uid == 0:
            continue  # as it was always root's
        if not _is_own(plan, place):
            whose = plan.runner.grant.user if owner.uid else "root"
            raise RefusedError(
                f"the secret {place} would have to be given to {whose}",
                hint=f"put it, or a copy of it, into {plan.places.secrets}",
            )
        yield _secret(os.path.realpath(place), owner, mode, owners)


def _is_own(plan: Plan, place: str) -> bool:
    """Whether a secret lies where all are capkeep's, whatever links lead there."""
    return is_at_or_below(os.path.realpath(place), os.path.realpath(plan.places.secrets))


def _secret(place: str, owner: Owner, mode: int, owners: set[int]) -> Change:
    """A secret's file, for the rooms' one user or for root alone to read."""

    def differs() -> bool:
        try:
            state = os.stat(place)
        except OSError:
            return False
        if owner.uid == state.st_uid == 0:
            return False
        return (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) != (*owner, mode)

    def make() -> Undo:
        state = os.stat(place)
        was = Owner(state.st_uid, state.st_gid)
        _give(place, owner, mode, owners)
        return partial(_give, place, was, stat.S_IMODE(state.st_mode), owners)

    what = f"secret {place} (owner {owner.uid}:{owner.gid}, mode {mode:04o})"
    return Change(what, differs, make, path=place)


def _give(place: str, owner: Owner, mode: int, owners: set[int]) -> None:
    """Raises RefusedError for what is no file, or somebody else's than `owners`; OSError."""
    fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or state.st_uid not in owners:
            raise RefusedError(f"{place} is not a file of root's")
        os.fchmod(fd, 0o400)  # first: between the two nobody but one of the owners reads it
        os.fchown(fd, owner.uid, owner.gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def findings(plan: Plan) -> Iterator[Finding]:
    """What is wrong with them: a capability that is lost, others who start them, files that are not ours."""
    for room in launched(plan):
        place = plan.places.launcher(room.name)
        wanted, owner = content(plan, room), Owner(0, room.grant.gid)
        if not os.path.lexists(place):
            yield Finding(Kind.DRIFT, place, "is missing; no backup of it can run", APPLY)
        elif file_differs(place, wanted, owner=owner, mode=MODE):
            yield Finding(Kind.DRIFT, place, _wrong(place, owner), APPLY)
        elif _mark(place) != attribute(Mark(plan.launcher_mark)):
            had = "another mark" if _mark(place) else "lost its capability"
            text = f"has {had}; it was cap_dac_read_search={plan.launcher_mark}"
            yield Finding(Kind.DRIFT, place, text, APPLY)
    yield from strangers(plan)
    known = {room.name for room in launched(plan)}
    with suppress(OSError):
        for name in sorted({*os.listdir(plan.places.launchers)} - known):
            text = "is not in the plan, and may carry a capability"
            yield Finding(Kind.DRIFT, f"{plan.places.launchers}/{name}", text, APPLY)
    if plan.starter is Starter.LAUNCHER:
        text = f"is not {plan.runner.grant.user}'s alone to read"
        needed = (change.path for change in _secrets(plan) if change.needed())
        yield from (Finding(Kind.DRIFT, place, text, APPLY) for place in needed)


def strangers(plan: Plan) -> Iterator[Finding]:
    """Who else can start a launcher: its reader refuses them, after Python has begun with the capability."""
    grants = dict.fromkeys(
        (room.grant.user, room.grant.uid, room.grant.gid) for room in launched(plan)
    )
    for user, uid, gid in grants:
        try:
            group = grp.getgrgid(gid)
        except KeyError:
            continue  # told already
        own = [entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == gid]
        for name in dict.fromkeys((*own, *group.gr_mem)):
            if _uid(name) in (0, uid):
                continue
            text = f"is in group {group.gr_name}, and can start launchers that are for {user} alone"
            word = shlex.quote(name)
            away = f"usermod -g ANOTHER-GROUP {word}" if name in own else ""
            given = f"gpasswd -d {word} {group.gr_name}" if name in group.gr_mem else ""
            mend = "; ".join(filter(None, (away, given)))
            yield Finding(Kind.LOGIN, f"user {name}", text, mend)


def _uid(name: str) -> int:
    """-1 for a member whom nobody is."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return -1


def _wrong(place: str, owner: Owner) -> str:
    state = os.lstat(place)
    if (state.st_uid, state.st_gid) != owner or stat.S_IMODE(state.st_mode) != MODE:
        found = f"{state.st_uid}:{state.st_gid}, mode {stat.S_IMODE(state.st_mode):04o}"
        return f"has a wrong owner or mode (owner {found}, for {owner.uid}:{owner.gid}, mode {MODE:04o})"
    return "is another program than `capkeep apply` makes"


def obsolete(plan: Plan) -> Iterator[Removal]:
    """Launchers that the plan has no use for, and the directory of sockets where root has another."""
    known = {room.name for room in launched(plan)}
    if not known:
        yield removal(plan.places)
    else:
        with suppress(FileNotFoundError):
            for name in sorted({*os.listdir(plan.places.launchers)} - known):
                place = f"{plan.places.launchers}/{name}"
                there = partial(os.path.lexists, place)
                yield Removal(f"launcher {place}", there, partial(os.unlink, place))
    if run := plan.places.other_run:
        yield Removal(f"directory {run}", partial(os.path.isdir, run), partial(remove_tree, run))


def removals(plan: Plan) -> Iterator[Removal]:
    """All launchers, and the user of secrets: its number may be somebody else's one day."""
    yield removal(plan.places)
    if plan.starter is not Starter.LAUNCHER:
        return
    uid, gid = plan.runner.grant.uid, plan.runner.grant.gid
    for place in _given_secrets(plan):
        take = partial(_give, place, Owner(0, 0), 0o600, {uid})
        yield Removal(f"user {uid} from secret {place}", partial(_has_owner, place, uid), take)
    place = plan.places.secrets
    close = partial(make_directory, place, owner=Owner(0, 0), mode=0o700)
    yield Removal(f"group {gid} from {place}", partial(_has_group, place, gid), close)


def _given_secrets(plan: Plan) -> tuple[str, ...]:
    """Files that may have been given away, also those that the configuration does not name any more."""
    folder, left = plan.places.secrets, []
    with suppress(OSError):
        left = [f"{folder}/{name}" for name in sorted(os.listdir(folder))]
    named = map(os.path.realpath, filter(partial(_is_own, plan), _secret_files(plan)))
    return tuple(dict.fromkeys((*named, *left)))


def _has_owner(place: str, uid: int) -> bool:
    try:
        state = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISREG(state.st_mode) and state.st_uid == uid


def _has_group(place: str, gid: int) -> bool:
    try:
        return os.lstat(place).st_gid == gid
    except OSError:
        return False


def removal(places: Places) -> Removal:
    """All of them."""
    where = places.launchers
    return Removal(f"directory {where}", partial(os.path.isdir, where), partial(remove_tree, where))
