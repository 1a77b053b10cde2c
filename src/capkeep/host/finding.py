"""What an audit finds, as values."""

from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.kernel.facts import Facts
from capkeep.plan.model import Grant, Walls

APPLY: Final = "capkeep apply"  # what mends most


class Kind(StrEnum):
    """What sort of thing is wrong."""

    CONFIGURATION = "configuration"  # it does not compile any more
    PLAN = "plan"  # there is none, or the configuration says something else by now
    DRIFT = "drift"  # something is not as `apply` made it
    DROP_IN = "drop-in"  # of one of our units
    UNIT = "unit"  # masked, failed, not enabled, not running
    RELOAD = "reload"  # systemd has not read its files again
    PROGRAM = "program"  # more than root can change it, or it has privileges of its own
    SECRET = "secret"  # noqa: S105 - others can read one
    LOGIN = "login"  # servers are not let in, or others are, or to more; others can start readers
    WEAKER = "weaker"  # what a process can do differs from its grant
    PROBE = "probe"  # a room cannot be looked at


class Finding(NamedTuple):
    """One thing that is wrong, and the command that mends it."""

    kind: Kind
    what: str  # a file, a unit, a room
    text: str
    mend: str
    detail: str = ""  # such as a unified diff


class Proven(NamedTuple):
    """One process of a room, what it was granted and what the kernel says of it."""

    room: str
    process: str  # "room", "vault", "engine"
    grant: Grant
    walls: Walls
    facts: Facts
    weaker: tuple[str, ...]
    accepted: tuple[str, ...]


class Audit(NamedTuple):
    """All of it. Without findings everything is as it was planned."""

    findings: tuple[Finding, ...]
    rooms: tuple[Proven, ...] = ()
    exceptions: tuple[str, ...] = ()  # by design, and named all the same
    left_out: tuple[str, ...] = ()  # protections that this host cannot give
