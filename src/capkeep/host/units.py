"""Render a plan as systemd units; pure but for looking at paths.

Sources: systemd.exec(5), systemd.socket(5), systemd.timer(5), systemd.resource-control(5) of systemd
252 to 262. A room is a socket with `Accept=yes` and a template service: whoever may connect gets a
room of his own, with the connection as its standard input and output.
"""

import os
from collections.abc import Iterator
from typing import Final

from capkeep.host import hardening, timers, unit_secrets, unit_text
from capkeep.host.bubblewrap import (
    ETC,
    ETC_NETWORK,
    ETC_PYTHON,
    ETC_RUNNER,
    MODULES,
    PROGRAM_PATH,
    USR_MERGE,
)
from capkeep.host.hardening import Host
from capkeep.host.unit_text import Unit
from capkeep.kernel.process import python
from capkeep.plan.model import OPEN_TO_MEMBERS, Access, Plan, Room, RoomKind, View, Wire, room_user
from capkeep.rooms.base import ORIGIN_NAME, WIRE_NAME

SOURCE_ROOT: Final = "/run/room/src"  # in a reader's room: the machine's files
WIRE: Final = "/run/room/wire"  # in a room with an engine: its vault's socket
ORIGIN: Final = "/run/room/origin"  # in a copier: that of the vault that it copies from
VAULT_CALLERS: Final = 16
ASKERS: Final = {  # who has a vault's socket of that right, where rooms connect by themselves
    Access.APPEND: RoomKind.READER, Access.ADMIN: RoomKind.KEEPER,
    Access.READ: RoomKind.COPIER, Access.COPY: RoomKind.COPIER,
}  # fmt: skip


def render(plan: Plan, host: Host) -> tuple[Unit, ...]:
    """Every unit of the plan, sockets before what they start."""
    return tuple(_units(plan, host))


def enabled(plan: Plan) -> tuple[str, ...]:
    """The units that are started at boot and by `apply`: sockets and timers."""
    names = [name for room in plan.rooms for name in sockets_of(plan, room)]
    sockets = [f"{name}.socket" for name in (*unit_secrets.sockets(plan), *names)]
    return (*sockets, *timers.names(plan))


def sockets_of(plan: Plan, room: Room) -> tuple[str, ...]:
    """The names, without suffix, of a room's sockets; a vault has one for each right."""
    if room.kind is RoomKind.VAULT:
        rights = {w.access for r in plan.rooms for w in r.wires if w.vault == room.name}
        return tuple(f"{plan.name}-{room.name}-{access}" for access in Access if access in rights)
    return (f"{plan.name}-{room.name}",) if room.door else ()


def brief_path(plan: Plan, unit: str) -> str:
    """The file that holds a room's brief, without its secrets; by the unit's name."""
    return f"{plan.places.state}/rooms/{unit}.json"


def wire_socket(plan: Plan, vault: str, access: Access) -> str:
    """Where a room with that right reaches its vault."""
    return f"{plan.places.run}/{vault}-{access}.sock"


def _units(plan: Plan, host: Host) -> Iterator[Unit]:
    yield _host_service(plan)
    for room in plan.rooms:
        for name in sockets_of(plan, room):
            yield _socket(plan, room, name, host)
            yield _service(plan, room, name, host)
    yield from unit_secrets.units(plan)
    yield from timers.units(plan, host_facts(plan))


def _socket(plan: Plan, room: Room, name: str, host: Host) -> Unit:
    if room.kind is RoomKind.VAULT:
        access = Access(name.rpartition("-")[2])
        path, callers = wire_socket(plan, room.name, access), [f"MaxConnections={VAULT_CALLERS}"]
        owner, group, mode = _asker(plan, room, access, host), "root", 0o600
        provers = any(r.kind in (RoomKind.PROVER, RoomKind.GIVER) for r in plan.rooms)
        if access is Access.APPEND and provers and owner != "root":
            group, mode = room_user(plan.name, RoomKind.PROVER), 0o660
    else:
        assert room.door is not None, "a room with a unit has a door"
        path, most = room.door.path, room.door.connections
        callers = [f"MaxConnections={most}"]
        anybodys = room.kind in OPEN_TO_MEMBERS
        logins = [answer.user for answer in plan.answers if answer.reader == room.name]
        owner = "root" if anybodys else next(iter(logins), plan.name)
        group, mode = (str(room.door.gid) if anybodys else "root"), room.door.mode
        if anybodys:
            # Of every user so many: nobody can keep it from others (systemd.socket(5)).
            callers = [f"MaxConnections={max(most * 4, 16)}", f"MaxConnectionsPerSource={most}"]
    lines = [
        "[Unit]",
        f"Description={unit_text.plain(f'capkeep: the door of {room.name}')}",
        "",
        "[Socket]",
        f"ListenStream={unit_text.plain(path)}",
        "Accept=yes",
        *callers,
        f"SocketUser={owner}",
        f"SocketGroup={group}",
        f"SocketMode={mode:04o}",
        "RemoveOnStop=yes",
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    return Unit(f"{name}.socket", unit_text.text(lines))


def _asker(plan: Plan, room: Room, access: Access, host: Host) -> str:
    """Who connects to a vault for that right: systemd on behalf of a room, or the rooms' user."""
    if host.opens_sockets:
        return "root"
    wire = Wire(room.name, access)
    pulled = any(r.kind is RoomKind.PULLER and wire in r.wires for r in plan.rooms)
    return room_user(plan.name, RoomKind.PULLER if pulled else ASKERS[access])


def _service(plan: Plan, room: Room, name: str, host: Host) -> Unit:
    grant = room.grant
    first = f"{plan.name}-host.service"
    lines = [
        "[Unit]",
        f"Description={unit_text.plain(f'capkeep: {room.name}')} (%i)",
        f"Wants={first}",
        f"After={first}",
        "CollectMode=inactive-or-failed",
        "",
        "[Service]",
        f"ExecStart={unit_text.command((plan.interpreter, *python(plan.package, MODULES[room.kind])))}",
        "StandardInput=socket",
        "StandardOutput=socket",
        "StandardError=journal",
        f"Environment=PATH={PROGRAM_PATH} LANG=C.UTF-8",
        f"User={grant.uid}",
        f"Group={grant.gid}",
        *hardening.capabilities(grant),
        unit_secrets.credential("brief", brief_path(plan, name)),
        unit_secrets.credential("host", host_facts(plan)),
        *unit_secrets.credentials(plan, room),
        *hardening.HARDENING,
        *hardening.lent(room),
        *hardening.restoring(room),
        *hardening.newer(host),
        *hardening.ids(grant, host),
        *_network(room, host),
        *(
            _host_view(plan, room, host)
            if grant.view is View.HOST
            else _tools_view(plan, room, host)
        ),
        *hardening.limits(grant),
    ]
    return Unit(f"{name}@.service", unit_text.text(lines))


def _network(room: Room, host: Host) -> Iterator[str]:
    if room.kind is RoomKind.NOTIFIER:
        # Names are looked up without asking the kernel which addresses this host has.
        yield "RestrictAddressFamilies=AF_INET AF_INET6"
        return
    if room.grant.network:
        yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
        return
    yield "PrivateNetwork=yes"
    yield "IPAddressDeny=any"
    connects = room.wire is not None and not host.opens_sockets
    asks = room.kind in (RoomKind.RUNNER, RoomKind.DUMPER, RoomKind.HOOK)
    needs_unix = connects or asks or room.grant.servers
    yield f"RestrictAddressFamilies={'AF_UNIX' if needs_unix else 'none'}"


def _host_view(plan: Plan, room: Room, host: Host) -> Iterator[str]:
    """The machine's own root, with the sources once more below SOURCE_ROOT, one bind for each.

    What hides places from the room (ProtectHome, PrivateTmp…) then hides nothing of the backup. The
    root directory stays the machine's own: an engine that stands in SOURCE_ROOT takes it for "/".
    """
    yield "WorkingDirectory=/"
    yield "TemporaryFileSystem=/run:ro"
    for point in host.mounts[room.name]:
        target = SOURCE_ROOT + point.rstrip("/")
        optional = "" if point == "/" else "-"
        yield f"BindReadOnlyPaths={optional}{unit_text.bind(point, target)}:norbind"
    yield from (f"InaccessiblePaths={unit_text.word(p)}" for p in hardening.HIDDEN)
    yield from hardening.emptied()
    for path in room.grant.hide:
        yield f"InaccessiblePaths=-{unit_text.word(SOURCE_ROOT + path)}"
        # What the room may write can only be shown again in a place that may be passed through.
        passed = any(w.startswith(f"{path}/") for w in room.grant.write)
        yield (
            f"TemporaryFileSystem={unit_text.word(path)}:ro"
            if passed
            else f"InaccessiblePaths=-{unit_text.word(path)}"
        )
    yield from (f"BindPaths={unit_text.word(p)}" for p in room.grant.write)
    yield from _wire(plan, room, host)


def _tools_view(plan: Plan, room: Room, host: Host) -> Iterator[str]:
    """Programs and a few public files, in a root directory of its own."""
    grant = room.grant
    yield f"RootDirectory={unit_text.plain(root_directory(plan))}"
    yield "MountAPIVFS=yes"
    yield "WorkingDirectory=/"
    yield "TemporaryFileSystem=/run:ro"
    programs = [plan.interpreter, f"{plan.package}/capkeep"]
    if room.repository:
        repository = plan.repository(room.repository)
        programs += [
            repository.environment_folder or repository.program,
            *(v for k, v in repository.options if k == "rclone"),
        ]
    linked = dict(links())
    merged = [p for p in USR_MERGE if os.path.isdir(p) and p not in linked]
    etc = [f"-/etc/{name}" for name in _etc(room)]
    own = [p for p in programs if not p.startswith(("/usr/", "/bin/"))]
    for path in ("/usr", *merged, *etc, *own, *grant.read):
        yield f"BindReadOnlyPaths={unit_text.word(path)}"
    if grant.network and os.path.realpath("/etc/resolv.conf").startswith("/run/"):
        yield f"BindReadOnlyPaths=-{unit_text.word(os.path.realpath('/etc/resolv.conf'))}"
    yield from hardening.own_root(host)
    yield from (f"InaccessiblePaths=-+{p}" for p in hardening.HIDDEN)
    yield from hardening.emptied()
    for path in grant.write:
        # A directory for metrics may be gone; no backup fails for that.
        yield f"BindPaths={'-' if path == plan.metrics else ''}{unit_text.word(path)}"
    yield from (f"BindReadOnlyPaths=-{unit_text.word(p)}" for p in grant.sockets)
    yield from (f"BindPaths=-{unit_text.word(p)}" for p in grant.shared)
    yield from _wire(plan, room, host)


def _etc(room: Room) -> tuple[str, ...]:
    """The public files of /etc that a room's programs read; each costs its start a mount or three."""
    if room.grant.network:
        return ETC + ETC_NETWORK
    if room.kind is RoomKind.VAULT and not room.grant.changes_owners:
        return ETC_PYTHON  # on a local disk it starts no other program, and asks for no names
    return ETC_RUNNER if room.kind is RoomKind.RUNNER else ETC


def links() -> Iterator[tuple[str, str]]:
    """The directories of programs at the root that are links into /usr, as Debian 12 and 13 have them.

    They are links in a room's root directory too: a bind for each would cost every start 2 ms.
    """
    for path in USR_MERGE:
        if os.path.islink(path):
            target = os.path.normpath(f"/{os.readlink(path)}")
            if target.startswith("/usr/"):
                yield path, target[1:]


def _wire(plan: Plan, room: Room, host: Host) -> Iterator[str]:
    """The connections to vaults: made by systemd, which starts all at once, or by the room."""
    ends: list[tuple[Wire | None, str, str]] = [(room.wire, WIRE_NAME, WIRE)]
    ends += [(room.origin.wire, ORIGIN_NAME, ORIGIN)] if room.origin else []
    for wire, name, place in ends:
        if wire is None:
            continue
        vault = wire_socket(plan, wire.vault, wire.access)
        if host.opens_sockets:
            # Without it the room starts all the same, and says what is missing.
            yield f"OpenFile={unit_text.word(vault)}:{name}:graceful"
        else:
            yield f"BindReadOnlyPaths=-{unit_text.bind(vault, place)}"


def root_directory(plan: Plan) -> str:
    """A directory with nothing but links into /usr: systemd puts a room's root together over it."""
    return f"{plan.places.state}/root"


def host_facts(plan: Plan) -> str:
    """Where the host's namespaces are written down, once after each start of the machine."""
    return f"{plan.places.run}/host/facts.json"


def _host_service(plan: Plan) -> Unit:
    """Writes down the host's namespaces, so that each room can see that its own are others."""
    runner = plan.runner.grant
    program = (plan.interpreter, *python(plan.package, "capkeep.rooms.host"), host_facts(plan))
    return Unit(
        f"{plan.name}-host.service",
        unit_text.text([
            "[Unit]",
            "Description=capkeep: note the host's namespaces for its rooms to compare",
            "",
            "[Service]",
            "Type=oneshot",
            "RemainAfterExit=yes",
            f"ExecStart={unit_text.command(program)}",
            f"User={runner.uid}",
            f"Group={runner.gid}",
            "CapabilityBoundingSet=",
            "NoNewPrivileges=yes",
        ]),
    )  # fmt: skip
