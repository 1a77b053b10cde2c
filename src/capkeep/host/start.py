"""Start one room, and the vault on the other end of its wire, without systemd."""

import os
import resource
import socket
from typing import Final, NamedTuple

from capkeep.host.bubblewrap import render
from capkeep.host.secrets import fetch
from capkeep.kernel import mounts
from capkeep.kernel.facts import host_namespaces
from capkeep.kernel.process import Child, spawn
from capkeep.plan import codec
from capkeep.plan.model import Access, Brief, Limits, Mode, Plan, Room, View

CALLER, BRIEF, WIRE = 0, 3, 4  # the descriptors a room's program finds


class Started(NamedTuple):
    """A room that runs, and its vault if it has one. The owner waits for both or kills them."""

    room: Child
    vault: Child | None

    def children(self) -> tuple[Child, ...]:
        """All processes to look after."""
        return (self.room,) if self.vault is None else (self.room, self.vault)


class Scene(NamedTuple):
    """How a room's view of the machine is put together."""

    staged: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


NO_SCENE: Final = Scene((), ())


def start(plan: Plan, room: Room, caller: socket.socket, peer_uid: int) -> Started:
    """Start `room` for a caller. Raises OSError or CapkeepError; then nothing is left running."""
    if room.wire is None:
        return Started(_start_one(plan, room, caller, peer_uid, None, None), None)
    near, far = socket.socketpair()
    with near, far:
        vault_room = plan.room(room.wire.vault)
        vault = _start_one(plan, vault_room, far, peer_uid, None, room.wire.access)
        try:
            return Started(_start_one(plan, room, caller, peer_uid, near, None), vault)
        except BaseException:
            vault.kill()
            raise


def _start_one(
    plan: Plan,
    room: Room,
    caller: socket.socket,
    peer_uid: int,
    wire: socket.socket | None,
    access: Access | None,
) -> Child:
    view = _view(plan, room)
    brief = _brief_descriptor(_brief(plan, room, peer_uid, access, view))
    stage = plan.places.stage if view.staged else ""

    def prepare() -> None:
        if stage:
            _stage(stage, view.staged)
        _limit(room.grant.limits)

    try:
        command = render(room, plan, stage)
        keep = {BRIEF: brief} | ({WIRE: wire.fileno()} if wire else {})
        fd = caller.fileno()
        return spawn(
            command.argv, env=dict(command.env), stdin=fd, stdout=fd, keep=keep, prepare=prepare
        )
    finally:
        os.close(brief)


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
    return Scene(() if plan.mode is Mode.USER else tuple(staged), tuple(left_out))


def _stage(stage: str, staged: tuple[str, ...]) -> None:
    """In the child that becomes the room: its own mount namespace with the source view in it."""
    mounts.unshare_mounts()
    for point in staged:
        mounts.bind_below(point, stage)


def _limit(limits: Limits) -> None:
    """setrlimit(2), inherited by all that runs in the room."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_NPROC, (limits.processes, limits.processes))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = limits.open_files if hard == resource.RLIM_INFINITY else min(limits.open_files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _brief(plan: Plan, room: Room, peer_uid: int, access: Access | None, view: Scene) -> Brief:
    return Brief(
        room=room,
        mode=plan.mode,
        places=plan.places,
        job=plan.job(room.job) if room.job else None,
        repository=plan.repository(room.repository) if room.repository else None,
        access=access,
        peer_uid=peer_uid,
        hostname=socket.gethostname(),
        host_namespaces=host_namespaces(),
        secrets=tuple((s.name, fetch(s, room.grant, plan.mode)) for s in room.secrets),
        left_out=view.left_out,
    )


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
