"""Start one room, and the vault on the other end of its wire, without systemd."""

import os
import resource
import socket
import stat
from typing import Final, NamedTuple

from capkeep.errors import Failure, StepError
from capkeep.host.bubblewrap import DEVICES, render, walls
from capkeep.host.files import open_log
from capkeep.host.secrets import fetch
from capkeep.kernel import fuse, libc, mounts
from capkeep.kernel.facts import host_namespaces, own_bounding
from capkeep.kernel.priority import step_back
from capkeep.kernel.process import Child, become_user, spawn
from capkeep.plan import codec
from capkeep.plan.model import (
    Access,
    Brief,
    Grant,
    Limits,
    Mode,
    Origin,
    Plan,
    Room,
    RoomKind,
    Starter,
    View,
    outline,
)

STDERR, BRIEF, WIRE = 2, 3, 4  # the descriptors a room's program finds beside its caller
TARGET = 5  # closed before the room's program starts
ORIGIN = 6  # a copier's or mounter's second wire
DEVICE = 7  # a mounter's /dev/fuse


class Started(NamedTuple):
    """A room that runs, and its vault if it has one. The owner waits for both or kills them."""

    room: Child
    vault: Child | None
    origin: Child | None = None  # the vault of what a copier copies from, a mounter's link

    def children(self) -> tuple[Child, ...]:
        """All processes to look after."""
        return (self.room, *self.vaults())

    def vaults(self) -> tuple[Child, ...]:
        """Those on the other ends of its wires."""
        return tuple(filter(None, (self.vault, self.origin)))


class Scene(NamedTuple):
    """How a room's view of the machine is put together."""

    staged: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


NO_SCENE: Final = Scene((), ())


class Target(NamedTuple):
    """A directory that a room may write, held open: its path may lead elsewhere by now."""

    path: str  # one of the room's `grant.write`
    fd: int


def start(
    plan: Plan,
    room: Room,
    caller: socket.socket,
    peer_uid: int,
    target: Target | None = None,
    password: str = "",
) -> Started:
    """Start `room` for a caller, who may bring the repository's password along.

    Raises OSError or CapkeepError; then nothing is left running.
    """
    _refuse_lost_capabilities(room)
    _refuse_missing_engine(plan, room)
    if room.wire is None:
        return Started(_start_one(plan, room, caller, peer_uid, target=target), None)
    if room.origin is not None:
        return _start_with_two(plan, room, room.origin, caller, peer_uid)
    near, far = socket.socketpair()
    with near, far:
        # The room first: it has more to do than its vault before the engine can start.
        main = _start_one(plan, room, caller, peer_uid, wire=near, target=target, password=password)
        try:
            vault_room = plan.room(room.wire.vault)
            vault = _start_one(plan, vault_room, far, peer_uid, access=room.wire.access)
        except BaseException:
            main.kill()
            raise
        return Started(main, vault)


def _start_with_two(
    plan: Plan, room: Room, origin: Origin, caller: socket.socket, peer_uid: int
) -> Started:
    """A room with two wires. Raises as `start` does."""
    assert room.wire is not None, "a copier or mounter writes into a repository"
    near, far = socket.socketpair()
    origin_near, origin_far = socket.socketpair()
    made: list[Child] = []
    with near, far, origin_near, origin_far:
        try:
            made.append(_start_one(plan, room, caller, peer_uid, wire=near, origin=origin_near))
            for wire, end in ((room.wire, far), (origin.wire, origin_far)):
                vault = plan.room(wire.vault)
                made.append(_start_one(plan, vault, end, peer_uid, access=wire.access))
        except BaseException:
            for child in made:
                child.kill()
            raise
    return Started(*made)


def _refuse_lost_capabilities(room: Room) -> None:
    """What nobody on this host has, no room can be given. Raises StepError naming it."""
    lost = sorted(set(room.grant.held_first) - set(own_bounding()))
    if lost:
        raise StepError(
            Failure.WEAKENED,
            f"{', '.join(lost)} cannot be given to {room.name}: this host, or a container around"
            " it, has taken it away for good",
        )


def _refuse_missing_engine(plan: Plan, room: Room) -> None:
    """Without its program no room or vault can be built. Raises StepError naming it."""
    if room.repository and not os.path.exists(program := plan.repository(room.repository).program):
        raise StepError(
            Failure.ENGINE,
            f"the engine {program} is not there; install it again, or apply a configuration that"
            " names its new place",
        )


def _start_one(
    plan: Plan,
    room: Room,
    caller: socket.socket,
    peer_uid: int,
    *,
    wire: socket.socket | None = None,
    origin: socket.socket | None = None,
    access: Access | None = None,
    target: Target | None = None,
    password: str = "",
) -> Child:
    if plan.launched(room):
        return _launch(plan, room, caller, wire)
    view = _view(plan, room)
    mode = plan.mode_of(room)
    own_user = mode is Mode.USER
    held = None if own_user else target  # without root nobody can be led to where he may not go
    told = _brief(plan, room, peer_uid, access, view)
    if password:
        told = told._replace(secrets=(*told.secrets, ("password", password)))
    brief = _brief_descriptor(told)
    log = _log(plan, room)
    device = -1

    def prepare() -> None:
        if own_user and plan.starter is Starter.LAUNCHER:
            _step_down(room.grant)
            libc.clear_ambient()  # of a login's or a container's; bubblewrap refuses to have any
        if held:
            mounts.show_directory(TARGET, plan.places.stage)
            os.close(TARGET)
        elif view.staged:
            _stage(plan.places.stage, view.staged)
        if room.grant.changes_owners:
            _keep_devices(own_mounts=held is not None)
        limit(room.grant.limits, processes=mode is Mode.SYSTEM)

    try:
        if room.grant.mounts:  # where nothing like udev lets everybody open it, the room could not
            device = os.open(fuse.DEVICE, os.O_RDWR | os.O_CLOEXEC)
        command = render(
            room, plan, plan.places.stage if view.staged else "", held.path if held else ""
        )
        keep = {BRIEF: brief}
        keep |= {WIRE: wire.fileno()} if wire else {}
        keep |= {ORIGIN: origin.fileno()} if origin else {}
        keep |= {TARGET: held.fd} if held else {}
        keep |= {DEVICE: device} if device >= 0 else {}
        fd = caller.fileno()
        return spawn(
            command.argv, env=dict(command.env), stdin=fd, stdout=fd, stderr=log, keep=keep,
            prepare=prepare,
        )  # fmt: skip
    finally:
        os.close(brief)
        os.close(log)
        if device >= 0:
            os.close(device)


def _launch(plan: Plan, room: Room, caller: socket.socket, wire: socket.socket | None) -> Child:
    """A reader by its launcher: it finds out by itself what it is for. Raises StepError, OSError."""
    program = plan.places.launcher(room.name)
    log = _log(plan, room)
    try:
        fd = caller.fileno()
        keep = {WIRE: wire.fileno()} if wire else {}
        return spawn(
            [program], env={}, stdin=fd, stdout=fd, stderr=log, keep=keep,
            prepare=lambda: _step_down(room.grant),
        )  # fmt: skip
    except (FileNotFoundError, PermissionError) as error:
        raise StepError(
            Failure.WEAKENED,
            f"the launcher {program} cannot be run: {error.strerror}; `capkeep apply` makes it anew",
        ) from error
    finally:
        os.close(log)


def _step_down(grant: Grant) -> None:
    """In the child: the rooms' one user, where root starts for a moment what that user else does."""
    if os.geteuid() == 0 != grant.uid:
        become_user(grant.uid, grant.gid)


def _log(plan: Plan, room: Room) -> int:
    """Where a room says what went wrong: our standard error, unless that is a terminal.

    A room that holds a terminal could read what is typed there, and write on it what it likes. A vault
    that may change owners could change a log's: it has none. Nor has any room that root starts where
    another user opens the doors: what root has open is not that user's to write.
    """
    if os.geteuid() != plan.opener:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # the log's place is its user's
    log = os.dup(STDERR) if not os.isatty(STDERR) else open_log(plan.places.rooms_log)
    owned = room.kind is RoomKind.VAULT and room.grant.changes_owners
    if not owned or not stat.S_ISREG(os.fstat(log).st_mode):
        return log
    os.close(log)
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _keep_devices(*, own_mounts: bool) -> None:
    """The machine's own devices are in the room: nobody in there is to change their owners or modes.

    On a read-only mount a device can be written to all the same.
    """
    if not own_mounts:
        mounts.unshare_mounts()
    for name in DEVICES:
        mounts.bind(f"/dev/{name}", f"/dev/{name}")
        mounts.remount_readonly(f"/dev/{name}", nodev=False)


def _view(plan: Plan, room: Room) -> Scene:
    """One bind per source filesystem, and what is not shown although it lies below a source."""
    if room.grant.view is not View.HOST:
        return NO_SCENE
    programs = (plan.interpreter, plan.package, plan.repository(room.repository).program)
    one = plan.job(room.job).one_file_system
    staged, left_out = mounts.source_mounts(
        mounts.read_mounts(), room.grant.sources, one_file_system=one, programs=programs
    )
    # Without root the kernel shows the machine's mounts as one locked tree (mount_namespaces(7)):
    # what is left out is then hidden from the engine by excludes, not by the view.
    own = plan.mode_of(room) is Mode.USER
    return Scene(() if own else tuple(staged), tuple(left_out))


def _stage(stage: str, staged: tuple[str, ...]) -> None:
    """In the child that becomes the room: its own mount namespace with the source view in it."""
    mounts.unshare_mounts()
    for point in staged:
        mounts.bind_below(point, stage)


def limit(limits: Limits, *, processes: bool) -> None:
    """setrlimit(2), inherited by all that runs in the room; never above what we have ourselves.

    Without root the number of `processes` is limited only inside the room.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_DATA, limits.memory_bytes)
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    if processes:
        _lower(resource.RLIMIT_NPROC, limits.processes)
    if limits.nice or limits.io_class or limits.cpu_percent:
        step_back(limits)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _brief(plan: Plan, room: Room, peer_uid: int, access: Access | None, view: Scene) -> Brief:
    return outline(plan, room, walls(room.grant, plan.mode_of(room)))._replace(
        access=access,
        peer_uid=peer_uid,
        hostname=socket.gethostname(),
        host_namespaces=host_namespaces(),
        secrets=tuple((s.name, fetch(s, room.grant, _fetcher(plan))) for s in room.secrets),
        left_out=view.left_out,
    )


def _fetcher(plan: Plan) -> Mode:
    """As whom programs are started that print secrets: root lets the room's user do it."""
    return plan.mode if os.geteuid() == 0 or plan.starter is not Starter.LAUNCHER else Mode.USER


def _brief_descriptor(brief: Brief) -> int:
    """The brief in anonymous memory, at its beginning (memfd_create(2))."""
    fd = os.memfd_create("brief", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(codec.dumps(brief).encode("utf-8", "surrogateescape"))
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
