"""Compare what the kernel says of a process with what its room was granted; pure.

Only the kernel's word counts: a directive that was not applied, a container that took a namespace
away or a capability that was lost shows here, before an engine starts.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from capkeep.kernel import trial
from capkeep.kernel.facts import OVERFLOW_ID, Facts
from capkeep.plan.model import Grant, Mode, Room, Starter, Walls

ENGINE: Final = "engine"
FILTERING: Final = 2  # seccomp's filter mode, proc(5)
SAME_IDS: Final = 1 << 16  # ids that PrivateUsers=identity leaves as they are (systemd.exec(5))
HOW_WEAKENED: Final = (
    "no engine was started; `capkeep audit` tells more, and the kernel or a container around this"
    " host may be what takes the protection away"
)
# What a room has of /dev: devices that keep nothing of what is written to them.
OWN_PLACES: Final = frozenset(
    ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
)
# Which of a unit's directives (host/units.py) gives a room a namespace of its own.
NAMESPACES: Final = {
    "ipc": "PrivateIPC",
    "mnt": "PrivateMounts",
    "net": "PrivateNetwork",
    "user": "PrivateUsers",
    "uts": "ProtectHostname",
}
# Which of them hides what in a room's /proc; the second form is that of kernels before 5.8.
PROC: Final = {
    "ProtectProc": frozenset(("hidepid=invisible", "hidepid=2")),
    "ProcSubset": frozenset(("subset=pid",)),
}
# Which of them keeps a mount from being writable, the first that fits; else it is ProtectSystem.
MOUNTS: Final = (
    ("/dev/hugepages", "TemporaryFileSystem"),
    ("/dev/mqueue", "TemporaryFileSystem"),
    ("/dev/shm", "TemporaryFileSystem"),
    ("/tmp", "InaccessiblePaths"),
    ("/var/tmp", "InaccessiblePaths"),
    ("/dev", "PrivateDevices"),
    ("/home", "ProtectHome"),
    ("/root", "ProtectHome"),
    ("/run/user", "ProtectHome"),
    ("/run/room/src", "BindReadOnlyPaths"),
    ("/run", "TemporaryFileSystem"),
    ("/sys/fs/cgroup", "ProtectControlGroups"),
    ("/proc", "ProtectKernelTunables"),
    ("/sys", "ProtectKernelTunables"),
)


class Weakness(NamedTuple):
    """One way in which a process has more, or less, than its room was granted."""

    directive: str  # of systemd.exec(5): what a unit has to prevent it
    text: str


class Judgement(NamedTuple):
    """A sentence for each weakness: those that end the step, and those that the plan accepts."""

    weaker: tuple[str, ...]
    accepted: tuple[str, ...]


def judge(facts: Facts, room: Room, walls: Walls, mode: Mode, process: str) -> Judgement:
    """What of a process is weaker than granted.

    `process` is "room", "vault" or "engine". An engine is looked at from outside, where the kernel
    may refuse to name its namespaces; it inherits the room's, which the room has proven itself.
    """
    weaker, accepted = [], []
    for found in weaknesses(facts, room, walls, mode, process):
        if found.directive in walls.accepted:
            accepted.append(f"{found.text}; accept-missing allows it ({found.directive}=)")
        elif walls.starter is Starter.SYSTEMD:
            weaker.append(f"{found.text} ({found.directive}= was not applied)")
        else:
            weaker.append(found.text)
    return Judgement(tuple(weaker), tuple(accepted))


def weaknesses(
    facts: Facts, room: Room, walls: Walls, mode: Mode, process: str
) -> Iterator[Weakness]:
    """All of them, whatever is accepted."""
    grant = room.grant
    yield from _identity(facts, grant, mode)
    yield from _capabilities(facts, grant, walls)
    yield from _confinement(facts, walls, process)
    yield from _namespaces(facts, walls, process)
    if walls.starter is Starter.LAUNCHER:
        yield from _in_sight(facts)
    else:
        yield from _reach(facts, grant, walls)


def _identity(facts: Facts, grant: Grant, mode: Mode) -> Iterator[Weakness]:
    if set(facts.uids) != {grant.uid}:
        yield Weakness("User", f"runs as uid {_numbers(facts.uids)}, granted {grant.uid}")
    if set(facts.gids) != {grant.gid}:
        yield Weakness("Group", f"runs as gid {_numbers(facts.gids)}, granted {grant.gid}")
    extra = set(facts.groups) - {grant.gid, *grant.groups}
    if max(grant.groups, default=0) >= SAME_IDS:
        extra.discard(OVERFLOW_ID)  # a granted one without a number in the room's user namespace
    if mode is Mode.USER:
        extra.discard(OVERFLOW_ID)  # one's own groups cannot be given up without privilege
    if extra:
        yield Weakness("SupplementaryGroups", f"is in groups not granted: {_numbers(extra)}")


def _capabilities(facts: Facts, grant: Grant, walls: Walls) -> Iterator[Weakness]:
    granted = set(grant.capabilities)
    sets = {
        "inheritable": facts.inheritable,
        "permitted": facts.permitted,
        "effective": facts.effective,
        "bounding": facts.bounding,
        "ambient": facts.ambient,
    }
    if walls.starter is Starter.LAUNCHER:
        # A launcher may not shrink it (CAP_SETPCAP); with no_new_privs no program gains from it.
        del sets["bounding"]
    for name, found in sets.items():
        directive = "CapabilityBoundingSet" if name == "bounding" else "AmbientCapabilities"
        if missing := granted - set(found):
            yield Weakness(directive, f"{_names(missing)} missing from the {name} set")
        if extra := set(found) - granted:
            yield Weakness(directive, f"{_names(extra)} not granted but in the {name} set")


def _confinement(facts: Facts, walls: Walls, process: str) -> Iterator[Weakness]:
    if not facts.no_new_privs:
        text = "NoNewPrivs is off: setuid programs would gain privileges"
        yield Weakness("NoNewPrivileges", text)
    # Every program of ours loads a filter itself, and its engine one more.
    own = walls.filters + (2 if process == ENGINE else 1)
    if facts.seccomp != FILTERING:
        yield Weakness("SystemCallFilter", "no system call filter is in force")
    elif walls.starter is Starter.SYSTEMD and 0 < facts.seccomp_filters <= own:
        yield Weakness("SystemCallFilter", "no system call filter but capkeep's own is in force")


def _namespaces(facts: Facts, walls: Walls, process: str) -> Iterator[Weakness]:
    known = {name for name, _ in facts.namespaces}
    for name in walls.namespaces:
        if name in facts.separated or (process == ENGINE and name not in known):
            continue
        how = "is the host's" if name in known else "cannot be read"
        yield Weakness(NAMESPACES.get(name, name), f"the {name} namespace {how}")


def _in_sight(facts: Facts) -> Iterator[Weakness]:
    """In the machine's own namespaces: what Landlock and the filter keep it from, as it was tried."""
    if trial.WRITE not in facts.refused:
        yield Weakness("Landlock", "Landlock does not keep it from writing")
    if trial.READ not in facts.refused:
        yield Weakness("Landlock", "Landlock does not keep it from files that are not its job's")
    if trial.SOCKET not in facts.refused:
        yield Weakness("SystemCallFilter", "it can make sockets, and so has the network")


def _reach(facts: Facts, grant: Grant, walls: Walls) -> Iterator[Weakness]:
    foreign = set(facts.interfaces) - {"lo"}
    if foreign and not grant.network:
        yield Weakness("PrivateNetwork", f"has network interfaces: {_names(foreign)}")
    if walls.starter is Starter.SYSTEMD:
        for directive, hiding in PROC.items():
            if hiding.isdisjoint(facts.proc):
                yield Weakness(directive, f"/proc is not mounted with {max(hiding)}")
    allowed = OWN_PLACES | {*grant.writable, *walls.writable}
    for point in facts.writable:
        if point not in allowed:
            yield Weakness(_keeper_of(point), f"{point} is mounted writable")


def _keeper_of(point: str) -> str:
    """The directive that should have kept a mount from being writable."""
    fits = (name for top, name in MOUNTS if point == top or point.startswith(f"{top}/"))
    return next(fits, "ProtectSystem")


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _numbers(numbers: tuple[int, ...] | set[int]) -> str:
    return ", ".join(str(n) for n in sorted(set(numbers)))
