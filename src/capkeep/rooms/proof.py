"""Compare what the kernel says of a process with what its room was granted; pure.

Only the kernel's word counts: a directive that was not applied, a container that took a namespace
away or a capability that was lost shows here, before an engine starts.
"""

from collections.abc import Iterator
from typing import Final

from capkeep.kernel.facts import Facts
from capkeep.plan.model import Grant, Mode, Room

ENGINE: Final = "engine"
FILTERING: Final = 2  # seccomp's filter mode, proc(5)
SEPARATED: Final = ("mnt", "pid", "ipc", "uts")
# What a room has of /dev: devices that keep nothing of what is written to them.
OWN_PLACES: Final = frozenset(
    ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
)
UNMAPPED: Final = 65534  # how groups from outside a user namespace appear (user_namespaces(7))


def weaker(facts: Facts, room: Room, mode: Mode, process: str) -> tuple[str, ...]:
    """Each way in which a process has more, or less, than its room was granted.

    `process` is "room", "vault" or "engine". An engine is looked at from outside, where the kernel
    may refuse to name its namespaces; it inherits the room's, which the room has proven itself.
    """
    grant = room.grant
    return (
        *_identity(facts, grant, mode),
        *_capabilities(facts, grant),
        *_confinement(facts),
        *_namespaces(facts, grant, mode, process),
        *_reach(facts, grant),
    )


def _identity(facts: Facts, grant: Grant, mode: Mode) -> Iterator[str]:
    if set(facts.uids) != {grant.uid}:
        yield f"runs as uid {_numbers(facts.uids)}, granted {grant.uid}"
    if set(facts.gids) != {grant.gid}:
        yield f"runs as gid {_numbers(facts.gids)}, granted {grant.gid}"
    extra = set(facts.groups) - {grant.gid}
    if mode is Mode.USER:
        extra.discard(UNMAPPED)  # one's own groups cannot be given up without privilege
    if extra:
        yield f"is in groups not granted: {_numbers(extra)}"


def _capabilities(facts: Facts, grant: Grant) -> Iterator[str]:
    granted = set(grant.capabilities)
    sets = {
        "inheritable": facts.inheritable,
        "permitted": facts.permitted,
        "effective": facts.effective,
        "bounding": facts.bounding,
        "ambient": facts.ambient,
    }
    for name, found in sets.items():
        if missing := granted - set(found):
            yield f"{_names(missing)} missing from the {name} set"
        if extra := set(found) - granted:
            yield f"{_names(extra)} not granted but in the {name} set"


def _confinement(facts: Facts) -> Iterator[str]:
    if not facts.no_new_privs:
        yield "NoNewPrivs is off: setuid programs would gain privileges"
    if facts.seccomp != FILTERING:
        yield "no system call filter is in force"


def _namespaces(facts: Facts, grant: Grant, mode: Mode, process: str) -> Iterator[str]:
    wanted = [*SEPARATED]
    wanted += [] if grant.network else ["net"]
    wanted += ["user"] if mode is Mode.USER else []
    known = {name for name, _ in facts.namespaces}
    for name in wanted:
        if name in facts.separated or (process == ENGINE and name not in known):
            continue
        how = "is the host's" if name in known else "cannot be read"
        yield f"the {name} namespace {how}"


def _reach(facts: Facts, grant: Grant) -> Iterator[str]:
    foreign = set(facts.interfaces) - {"lo"}
    if foreign and not grant.network:
        yield f"has network interfaces: {_names(foreign)}"
    allowed = OWN_PLACES | set(grant.write)
    for point in facts.writable:
        if point not in allowed:
            yield f"{point} is mounted writable"


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _numbers(numbers: tuple[int, ...] | set[int]) -> str:
    return ", ".join(str(n) for n in sorted(set(numbers)))
