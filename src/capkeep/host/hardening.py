"""What systemd takes away from every room, and what it can give by its version; pure.

Source: systemd.exec(5) of systemd 252 to 262.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from capkeep.plan.model import LENT, Grant, Plan, Room, RoomKind, Starter, View, Walls

# What no room needs, and systemd can take away without hiding anything that is backed up: the
# reader sees the machine's files below SOURCE_ROOT, whatever is hidden elsewhere.
HARDENING: Final = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "DevicePolicy=closed",
    "PrivateMounts=yes",
    "MountFlags=private",
    "PrivateIPC=yes",
    "RemoveIPC=yes",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "ProtectControlGroups=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelLogs=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    # With what rooms confine themselves and their engines further; no group of 252 has it.
    ("SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule"
    " landlock_restrict_self"),
    ("SystemCallFilter=~@privileged @resources @mount @swap @reboot @raw-io @obsolete @module @debug"
    " @cpu-emulation @clock @aio @keyring @memlock @pkey @setuid"),
    "UMask=0077",
)  # fmt: skip

# Mounts that are not read-only, with nothing in them that a room's user could write and keep.
LEFT_WRITABLE_FOR_NOTHING: Final = ("/proc",)
# Writable for the room's user unless they are hidden. No room reads /sys, and hidden it is one mount
# instead of a read-only one for each that is in it: systemd reads the table of all mounts anew for
# every one that it makes or changes.
HIDDEN: Final = ("/tmp", "/var/tmp", "/sys")
# Writable too, and with everybody's terminals: who may read any file could read what is typed there.
# An empty file system over each costs a start a third of what hiding it costs.
EMPTIED: Final = ("/dev/shm", "/dev/mqueue", "/dev/hugepages", "/dev/pts")

HOMES: Final = ("/home", "/root", "/run/user")  # what ProtectHome= closes


class Host(NamedTuple):
    """What of this host decides about its units."""

    version: int  # systemd's
    mounts: Mapping[str, tuple[str, ...]]  # by reader: the mount points that hold its sources
    large_ids: bool  # whether a file may belong to a uid or gid above 65535, or to nobody
    pulls: bool = False  # whether files of other hosts are kept here, whose ids nobody here knows

    @property
    def opens_sockets(self) -> bool:
        """Whether systemd connects to a socket for a service (systemd.service(5), OpenFile=)."""
        return self.version >= 253


def capabilities(grant: Grant) -> Iterator[str]:
    """The grant's capabilities and no other."""
    names = " ".join(grant.held_first)
    yield f"CapabilityBoundingSet={names}"
    yield f"AmbientCapabilities={names}"


def ids(grant: Grant, host: Host) -> Iterator[str]:
    """A user namespace of its own, as far as this systemd can without losing owners.

    `identity` (257) maps the first 65536 ids only: all others look like nobody's.
    """
    if grant.mounts:
        return  # the mount would know no more ids than the namespace that it is made in
    if grant.subordinate[1]:
        return  # it makes one itself, with ids that no directive can give
    if grant.callers and host.version < 258:
        return  # whoever has an id above 65535 would look like nobody to it
    # A capability counts for files of those ids alone that the namespace has.
    anybodys = grant.view is View.HOST or bool(grant.capabilities)
    large = host.large_ids or (grant.changes_owners and host.pulls)
    if host.version >= 258:
        yield "PrivateUsers=full"
    elif host.version >= 257 and not (anybodys and large):
        yield "PrivateUsers=identity"
    elif not anybodys and not grant.writable and not grant.groups:
        yield "PrivateUsers=yes"  # all others look like nobody, and it has no files of any


def lent(room: Room) -> Iterator[str]:
    """What is different for a room that runs as a user who is there already, and has more to do.

    RemoveIPC= would take a server's shared memory away when the room ends (systemd.exec(5)), and
    what ProtectHome= closes cannot be shown again in part. There are no homes in its root directory.
    """
    if room.kind in LENT:
        yield "RemoveIPC=no"
        shown = (*room.grant.read, *room.grant.sockets, *room.grant.shared)
        if any(f"{path}/".startswith(f"{home}/") for path in shown for home in HOMES):
            yield "ProtectHome=read-only"


def restoring(room: Room) -> Iterator[str]:
    """What a room needs that makes files with their owners and modes; nothing of it is the host's."""
    if room.kind is RoomKind.VAULT and room.grant.changes_owners:
        yield "SystemCallFilter=@chown"
    if room.kind is RoomKind.PROVER:
        yield "RestrictSUIDSGID=no"
        # Of what is taken away above: owners, and its own namespace. Its engine may not do the latter.
        yield "SystemCallFilter=@chown unshare capset"
        if room.grant.subordinate[1]:
            yield "RestrictNamespaces=user"
        if room.grant.servers:
            yield "SystemCallFilter=setgroups setresgid setresuid"


def mounting(room: Room) -> Iterator[str]:
    """What a room needs that makes itself a mount, before its own filter takes that away for good."""
    if room.grant.mounts:
        yield "RestrictNamespaces=mnt"
        yield "SystemCallFilter=@mount unshare capset"
        yield "BindReadOnlyPaths=/dev/fuse"  # a device may be written to all the same
        yield "DeviceAllow=/dev/fuse rw"


def newer(host: Host) -> Iterator[str]:
    """What only newer versions know."""
    if host.version >= 254:
        yield "MemoryPressureWatch=off"  # else a file of the control group is mounted writable


def emptied() -> Iterator[str]:
    """Nothing in the places that are nobody's, and nothing to be put there."""
    yield from (f"TemporaryFileSystem={path}:ro,mode=0000" for path in EMPTIED)


def own_root(host: Host) -> Iterator[str]:
    """What is left out of a root directory of a room's own that systemd would show there."""
    if host.version >= 257:
        yield "BindLogSockets=no"  # the journal is on descriptor 2


def walls(plan: Plan, grant: Grant, host: Host) -> Walls:
    """What a room of these units has of its own. systemd gives no process namespace of use here."""
    own = ["mnt", "ipc", "uts"]
    own += [] if grant.network else ["net"]
    own += ["user"] if grant.subordinate[1] or any(ids(grant, host)) else []
    return Walls(tuple(own), LEFT_WRITABLE_FOR_NOTHING, Starter.SYSTEMD, plan.accepted)


def left_out(plan: Plan, host: Host) -> tuple[str, ...]:
    """Protections that this systemd cannot give without losing something; told to people."""
    if host.version < 257:
        return (f"PrivateUsers: systemd {host.version} has no map that keeps owners (257 has)",)
    if host.version > 257:
        return ()
    said = []
    if host.large_ids and any(r.grant.view is View.HOST for r in plan.rooms):
        said.append(
            "PrivateUsers for readers: files of nobody, or of ids above 65535, would be kept with a"
            f" wrong owner under systemd {host.version} (258 can)"
        )
    if host.pulls and any(r.kind is RoomKind.VAULT and r.grant.changes_owners for r in plan.rooms):
        said.append(
            "PrivateUsers for vaults with `owners`: files of targets may be of ids above 65535, which"
            f" systemd {host.version} cannot give them there (258 can)"
        )
    return tuple(said)


def limits(grant: Grant) -> Iterator[str]:
    """The grant's limits of resources."""
    most = grant.limits
    yield "LimitCORE=0"
    yield f"LimitDATA={most.memory_bytes}"
    yield f"LimitNOFILE={most.open_files}"
    # The second one also counts where systemd has no control over numbers of processes, as in many
    # containers, and says nothing; it counts all that runs as the room's user.
    yield f"TasksMax={most.processes}"
    yield f"LimitNPROC={most.processes}"
    if most.nice:
        yield f"Nice={most.nice}"
    if most.io_class:
        yield f"IOSchedulingClass={most.io_class}"
        if most.io_class != "idle":
            yield f"IOSchedulingPriority={most.io_priority}"
    if most.cpu_percent:
        yield f"CPUQuota={most.cpu_percent}%"
    if most.all_memory_bytes:
        # The wires' and pipes' pages count too, and swap would make a limit none.
        yield f"MemoryMax={most.all_memory_bytes}"
        yield "MemorySwapMax=0"
