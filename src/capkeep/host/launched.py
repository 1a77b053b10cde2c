"""A reader that a launcher has started: it finds out everything itself, and closes itself in.

Nobody stands above it who could be believed: whoever may run the launcher may be hostile. So it takes
nothing from its caller but a connection, and the wire to a vault. What it reads, with which password and
for whom stands in the plan, which is root's. It looks first whether it has the capability: a file loses
that when it is copied or restored, and then nothing is to be started.

It has no namespaces of its own. What a mount namespace would hide, Landlock does not let it open: it
reads its job's sources, programs and /proc, and writes its cache; and it tries whether that holds
(`kernel/trial.py`). Its engine is closed in once more, as in every room (`rooms/base.py`), and may make no
socket at all.
"""

import fcntl
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from capkeep.errors import CapkeepError, Failure, StepError
from capkeep.host.bubblewrap import ETC, USR_MERGE
from capkeep.host.secrets import fetch
from capkeep.host.start import WIRE, limit
from capkeep.host.trust import files_below, untrusted
from capkeep.kernel import landlock, libc, mounts, trial
from capkeep.kernel.facts import CAPABILITIES, host_namespaces, own_ambient, peer_uid
from capkeep.kernel.launcher import ATTRIBUTE, CAPABILITY, Mark, attribute
from capkeep.plan.load import load_plan
from capkeep.plan.model import NO_WALLS, Brief, Mode, Places, Plan, Room, outline
from capkeep.rooms import reader
from capkeep.values import is_at_or_below

CALLER, ANSWER, LOG = 0, 1, 2
SEEN: Final = ("/usr", *USR_MERGE, *(f"/etc/{name}" for name in ETC), "/proc", "/dev/null",
               "/dev/zero", "/dev/random", "/dev/urandom")  # fmt: skip


def main() -> int:
    """A reader's whole life. The arguments are the launcher's: the room's name, and the places."""
    name, *places = sys.argv[1:]
    _tidy()
    return reader.main(lambda: _brief(name, Places(*places)))


def _tidy() -> None:
    """Nothing of what a caller can leave to a program that it starts is to matter."""
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o077)
    os.chdir("/")
    with suppress(OSError):  # it leads a group of processes already, and has no terminal of others
        os.setsid()
    kept = {CALLER, ANSWER, LOG, WIRE}
    opened = {int(name) for name in os.listdir("/proc/self/fd")}
    for fd in opened - kept:
        with suppress(OSError):  # the one by which they were listed
            os.close(fd)
    for _ in {CALLER, ANSWER, LOG} - opened:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _brief(name: str, places: Places) -> Brief:
    """What the plan says of this reader, once it is closed in. Raises StepError."""
    _refuse_lost(name, places)
    try:
        plan = _plan(places)
        room = plan.room(name)
        _refuse_strangers(room)
        _refuse_second(room)
        _refuse_changeable(plan, room)
        limit(room.grant.limits, processes=True)
        with _capability_kept_back():
            secrets = tuple((s.name, fetch(s, room.grant, Mode.USER)) for s in room.secrets)
        one = plan.job(room.job).one_file_system
        _, left_out = mounts.source_mounts(
            mounts.read_mounts(), room.grant.sources, one_file_system=one
        )
        with socket.socket(fileno=os.dup(CALLER)) as caller:
            uid = peer_uid(caller)
        _close_in(plan, room, dict(left_out))
    except KeyError as error:
        raise StepError(
            Failure.REFUSED, f"the plan has no room {name}", hint="apply again"
        ) from error
    except (CapkeepError, OSError) as error:
        if isinstance(error, StepError):
            raise
        hint = error.hint if isinstance(error, CapkeepError) else ""
        raise StepError(Failure.REFUSED, f"{name} cannot begin: {error}", hint=hint) from error
    return outline(plan, room, NO_WALLS)._replace(
        peer_uid=uid,
        hostname=socket.gethostname(),
        host_namespaces=host_namespaces(),
        secrets=secrets,
        left_out=left_out,
    )


def _refuse_lost(name: str, places: Places) -> None:
    """Raises StepError where the launcher gave no capability, with what takes it away and what mends it."""
    if own_ambient() == (CAPABILITY,):
        return
    path = places.launcher(name)
    try:
        mark = os.getxattr(path, ATTRIBUTE, follow_symlinks=False)
    except OSError:
        mark = b""
    text = f"{name} has lost {CAPABILITY}, and no engine was started: "
    if mark == attribute(Mark.PERMITTED):
        text += f"{path} is marked, but something above it keeps programs from gaining anything"
        hint = "no_new_privs, a bounding set without it, a debugger, or a mount with nosuid"
    elif mark == attribute(Mark.INHERITABLE):
        text += f"{path} gives it only to whom his login has made it inheritable"
        hint = (
            "a line `cap_dac_read_search USER` in /etc/security/capability.conf; or write"
            ' launcher-mark = "ep" in [host], and `capkeep apply`'
        )
    else:
        text += f"{path} has lost its mark"
        hint = f"`capkeep apply`, or: setcap cap_dac_read_search=ep {path}"
    raise StepError(Failure.WEAKENED, text, hint=hint)


def _plan(places: Places) -> Plan:
    """The plan, if it is root's: ours could have been written by our user. Raises CapkeepError."""
    if os.stat(places.plan).st_uid != 0:
        raise StepError(Failure.REFUSED, f"{places.plan} is not root's", hint="apply again")
    return load_plan(places)


def _refuse_strangers(room: Room) -> None:
    """Whoever runs the launcher must be the one that it was made for, and be connected. Raises StepError."""
    grant = room.grant
    if {*os.getresuid()} != {grant.uid} or {*os.getresgid()} != {grant.gid}:
        raise StepError(Failure.REFUSED, f"{room.name} is for {grant.user} alone to start")
    ends = {CALLER, ANSWER} | ({WIRE} if room.wire else set())
    for fd in ends:
        try:
            there = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            there = False
        if not there:
            raise StepError(
                Failure.REFUSED, f"{room.name} is started with a socket as descriptor {fd}"
            )
    if not room.wire:
        with suppress(OSError):
            os.close(WIRE)


def _refuse_second(room: Room) -> None:
    """One at a time, as where a door is opened: the lock is held until this process ends.

    On the cache, which is what two would get into each other's way in, and its user's alone: nobody
    else can keep the reader out by it. Raises StepError, OSError.
    """
    cache = room.grant.write[0]
    fd = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StepError(Failure.LOCKED, f"{room.name} is busy") from error


def _refuse_changeable(plan: Plan, room: Room) -> None:
    """What is executed must be root's alone: whoever runs it may not have asked. Raises StepError."""
    repository = plan.repository(room.repository)
    folders = (f"{plan.package}/capkeep", repository.environment_folder)
    below = (path for folder in folders if folder for path in files_below(folder))
    if found := untrusted((plan.interpreter, repository.program, *below)):
        raise StepError(
            Failure.REFUSED,
            f"{room.name} would execute what others than root can change: {found[0]}",
            hint="`capkeep audit` names all of it, and what mends it",
        )


@contextmanager
def _capability_kept_back() -> Iterator[None]:
    """While programs are started that print secrets, they get nothing of it."""
    libc.clear_ambient()
    try:
        yield
    finally:
        libc.raise_ambient(CAPABILITIES.index(CAPABILITY))


def _close_in(plan: Plan, room: Room, left_out: dict[str, str]) -> None:
    """Landlock for this program and its engine. Raises StepError without it, OSError."""
    kept_from = [
        path
        for path in _secret_files(plan)
        if not any(is_at_or_below(path, w) for w in room.grant.write)
    ]
    reading = allowed(plan, room, frozenset(left_out))
    if not landlock.restrict(room.grant.write, network=False, reading=reading):
        raise StepError(
            Failure.WEAKENED,
            f"this kernel offers no Landlock, and {room.name} has nothing else to close itself in with",
            hint='boot with Landlock (lsm=landlock,…), or write start = "doors" in [host]',
        )
    for path in kept_from:
        if trial.can_read(path):
            raise StepError(Failure.WEAKENED, f"Landlock does not keep {room.name} from {path}")


def _secret_files(plan: Plan) -> tuple[str, ...]:
    """Every file with a secret of any room's, under the name that no link leads to."""
    files = {s.source.file for room in plan.rooms for s in room.secrets if s.source.file}
    return tuple(sorted(map(os.path.realpath, files)))


def allowed(plan: Plan, room: Room, left_out: frozenset[str]) -> landlock.Reading:
    """What the reader of a job and its engine may read: programs, and the sources.

    What is hidden may lie among the programs as well (a repository in /usr/local).
    """
    repository = plan.repository(room.repository)
    programs = (plan.interpreter, sys.base_prefix, f"{plan.package}/capkeep", repository.program,
                repository.environment_folder)  # fmt: skip
    names = [os.path.realpath(plan.package)]  # Python looks in there for the package's name
    whole: list[str] = []
    for path in dict.fromkeys(os.path.realpath(path) for path in (*SEEN, *programs) if path):
        _open(path, room.grant.hide, frozenset(), whole, names)
    reading = readable(room.grant.sources, room.grant.hide, left_out)
    return landlock.Reading((*whole, *reading.whole), (*names, *reading.names))


def readable(
    sources: tuple[str, ...], hidden: tuple[str, ...], left_out: frozenset[str]
) -> landlock.Reading:
    """What the job's sources come to without what is hidden from readers.

    Landlock knows no exception: of a directory above something hidden, or above a filesystem that is
    left out, everything else in it is named as it is now, and what is put there later cannot be read in
    this run. The names below it can, and those below the directory that a source lies in.
    """
    whole: list[str] = []
    names: list[str] = []
    for source in sources:
        # A link that is a source is kept as a link: what it leads to is nobody's to read for that.
        above = os.path.realpath(os.path.dirname(source))
        path = os.path.join(above, os.path.basename(source))
        names.append(above)  # borg opens it on its way
        if not os.path.islink(path):
            _open(path, hidden, left_out, whole, names)
    return landlock.Reading(tuple(whole), tuple(names))


def _open(
    path: str, hidden: tuple[str, ...], left_out: frozenset[str], whole: list[str], names: list[str]
) -> None:
    if path in left_out or any(is_at_or_below(path, place) for place in hidden):
        return
    if not any(is_at_or_below(place, path) for place in (*hidden, *left_out)):
        whole.append(path)
        return
    names.append(path)
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if not entry.is_symlink():
                _open(entry.path, hidden, left_out, whole, names)
