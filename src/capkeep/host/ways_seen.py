"""Ways to give a program one capability, and what was seen of a host that decides about them; values."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from capkeep.kernel.facts import CAPABILITIES

READ: Final = "CAP_DAC_READ_SEARCH"
NUMBER: Final = CAPABILITIES.index(READ)
KILLED: Final = -1  # in place of an error's number
USERNS_CLONE: Final = "kernel.unprivileged_userns_clone"
APPARMOR: Final = "kernel.apparmor_restrict_unprivileged_userns"
MAXIMUM: Final = "user.max_user_namespaces"
SETTINGS: Final = (USERNS_CLONE, APPARMOR, MAXIMUM)


class Way(StrEnum):
    """Who or what gives the capability."""

    SYSTEMD = "systemd"
    DOORS = "doors"
    LAUNCHER = "launcher"
    USER = "user"
    FILE = "file capability"
    PAM = "pam_cap"


class State(StrEnum):
    """Whether a way can be gone here."""

    WORKS = "works"
    BLOCKED = "does not work"
    UNKNOWN = "not known"


class Reason(NamedTuple):
    """One sentence, and the command or line that mends what it says; "" where nothing need be."""

    text: str
    mend: str


class Judged(NamedTuple):
    """One way: `reasons` are why it does not work, `remarks` what is to be known all the same."""

    way: Way
    state: State
    used: bool  # by this host's plan, or by the one that would be made
    reasons: tuple[Reason, ...] = ()
    remarks: tuple[Reason, ...] = ()
    not_seen: str = ""


class Systemd(NamedTuple):
    """What runs the host."""

    runs: bool = False
    version: int = 0  # 0: it does not tell
    bounding: tuple[str, ...] | None = None  # of process 1; None: hidden
    accepted: tuple[str, ...] = ()  # directives that [host] accept-missing names
    left_out: tuple[str, ...] = ()
    proceeding: tuple[str, ...] = ()  # what it has said of our units: they go on without something


class Held(NamedTuple):
    """A program that has a file capability now."""

    path: str
    capabilities: tuple[str, ...]
    package: str  # of dpkg; "": it is in none
    hook: str  # a file of apt's or dpkg's that sets it again; "": none does
    overridden: bool  # dpkg-statoverride(1) knows its owner and mode


class Files(NamedTuple):
    """What decides about file capabilities."""

    trial: str | None = None  # what went wrong; "": nothing; None: it was not tried
    nosuid: tuple[tuple[str, str], ...] = ()  # program, and where its filesystem is mounted
    no_attributes: tuple[tuple[str, str], ...] = ()
    held: tuple[Held, ...] = ()
    no_new_privs: tuple[str, ...] = ()  # programs that let people in, and may give them nothing


class Pam(NamedTuple):
    """What decides about pam_cap."""

    module: bool
    texts: Mapping[str, str]  # files of /etc/pam.d, by name
    configs: Mapping[str, str]  # capability.conf(5), by path
    users: tuple[tuple[str, tuple[str, ...]], ...]  # who should get it, with their groups
    launchers: tuple[str, ...] = ()  # programs that make it effective (`ei`)
    use_pam: bool | None = None  # whether sshd asks PAM at all


class Seen(NamedTuple):
    """Everything that was looked at and tried."""

    root: bool
    bounding: tuple[str, ...]  # of this process
    no_new_privs: bool
    filters: int  # system call filters around the whole host
    landlock: int
    own_ids: bool  # whether root here is the machine's root
    missing: tuple[str, ...]  # programs that the doors start
    namespaces: Mapping[str, int] | None  # by name the number of an error, 0: made; None: not tried
    mounts: int | None
    room: str | None  # a room as the doors start it: what went wrong; "": nothing
    own_room: str | None  # the same as an ordinary user
    settings: Mapping[str, str]
    systemd: Systemd
    files: Files
    pam: Pam | None  # None where there is no PAM
