"""Which ways a host has to give a program one capability without root, by what was seen of it; pure.

Sources: capabilities(7), user_namespaces(7), namespaces(7), systemd.exec(5), pam_cap(8).
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from capkeep.host import pam_stack
from capkeep.host.ways_seen import (
    APPARMOR,
    KILLED,
    MAXIMUM,
    NUMBER,
    READ,
    USERNS_CLONE,
    Files,
    Judged,
    Pam,
    Reason,
    Seen,
    State,
    Way,
)
from capkeep.values import MAY_BE_MISSING

ADMIN: Final = "CAP_SYS_ADMIN"
OLDEST_SYSTEMD: Final = 252
# Which directive of a unit separates which namespace; cgroup is not asked for where it cannot be had.
DIRECTIVES: Final = {
    "mnt": "PrivateMounts", "net": "PrivateNetwork", "ipc": "PrivateIPC", "uts": "ProtectHostname",
}  # fmt: skip
OF_ROOMS: Final = ("mnt", "pid", "net", "ipc", "uts")
SERVICES: Final = ("sshd", "login")
ANOTHER: Final = "use another way"
DOORS: Final = 'write start = "doors" in [host]; capkeep doors'
NEEDS_ROOT: Final = "only root can try it"


def judge(seen: Seen, used: Way) -> tuple[Judged, ...]:
    """Every way, in the order in which they are to be preferred."""
    judges = ((Way.SYSTEMD, _systemd), (Way.DOORS, _doors), (Way.LAUNCHER, _launcher),
              (Way.USER, _user), (Way.FILE, _files), (Way.PAM, _pam))  # fmt: skip
    return tuple(look(seen)._replace(way=way, used=way is used) for way, look in judges)


def works(judged: Iterable[Judged]) -> bool:
    """Whether the way that is used works."""
    return any(way.used and way.state is State.WORKS for way in judged)


def _said(
    way: Way, reasons: Iterable[Reason], remarks: Iterable[Reason] = (), not_seen: str = ""
) -> Judged:
    found = tuple(dict.fromkeys(reasons))
    state = State.BLOCKED if found else State.WORKS
    return Judged(way, state, used=False, reasons=found, remarks=tuple(remarks), not_seen=not_seen)


def _unknown(judged: Judged, why: str) -> Judged:
    """What could not be tried works no better for it, and no worse where it is blocked already."""
    state = State.UNKNOWN if judged.state is State.WORKS else judged.state
    return judged._replace(state=state, not_seen=why)


def _systemd(seen: Seen) -> Judged:
    here = seen.systemd
    if not here.runs:
        text = "systemd does not run this host, so no unit of it can give anything"
        return _said(Way.SYSTEMD, [Reason(text, DOORS)])
    reasons: list[Reason] = []
    if here.version and here.version < OLDEST_SYSTEMD:
        text = (
            f"systemd {here.version} is older than {OLDEST_SYSTEMD}, and lacks what rooms rely on"
        )
        reasons.append(Reason(text, DOORS))
    if here.bounding is not None and READ not in here.bounding:
        text = f"process 1 may not have {READ}, and so no unit of it"
        reasons.append(Reason(text, _container(READ)))
    remarks = [_own_ids()] if not seen.own_ids else []
    # What keeps this session from it says nothing of process 1.
    tells = ADMIN in seen.bounding or ADMIN not in (here.bounding or ())
    for name, directive in DIRECTIVES.items():
        if tells and seen.namespaces and (number := seen.namespaces.get(name, 0)):
            words = f"{directive}= separates nothing here, in silence: {_why(seen, name, number)}"
            if directive in here.accepted:
                remarks.append(Reason(f"{words}; accept-missing allows it", ""))
            else:
                mend = f'{_mend(seen, name, number)}; or [host] accept-missing = ["{directive}"]'
                reasons.append(Reason(words, mend))
    remarks += (Reason(f"left out: {text}", "") for text in here.left_out)
    for said in here.proceeding:
        text = f"systemd said of a unit when rooms last started: {said}"
        directive = said.partition("=")[0]
        if directive not in MAY_BE_MISSING:
            remarks.append(Reason(text, "capkeep audit"))
        elif directive in here.accepted:
            remarks.append(Reason(f"{text} (accept-missing allows it)", ""))
        else:
            reasons.append(
                Reason(text, f'capkeep audit; or [host] accept-missing = ["{directive}"]')
            )
    not_seen = (
        "" if seen.root and tells else "what its units can separate: whoever asks may not try it"
    )
    return _said(Way.SYSTEMD, reasons, remarks, not_seen)


def _doors(seen: Seen) -> Judged:
    reasons = [*_programs(seen.missing)]
    if READ not in seen.bounding:
        text = f"whoever asks may not have {READ} himself (bounding set), and can give it to nobody"
        reasons.append(Reason(text, _container(READ)))
    reasons += _namespaces(seen)
    if seen.mounts and not (seen.namespaces or {}).get("mnt"):
        text = f"nothing can be mounted: {_why(seen, 'mnt', seen.mounts)}"
        reasons.append(Reason(text, _mend(seen, "mnt", seen.mounts)))
    if not reasons and seen.room:
        text = f"a room as the doors start it does not come to be: {seen.room}"
        reasons.append(Reason(text, "start the container with more rights, or use another way"))
    remarks = [_own_ids()] if not seen.own_ids else []
    if not seen.landlock:
        text = "this kernel offers no Landlock: rooms go without it, and say so in every run"
        remarks.append(Reason(text, "add landlock to lsm= on the kernel's command line"))
    judged = _said(Way.DOORS, reasons, remarks)
    return judged if seen.root else _unknown(judged, NEEDS_ROOT)


def _namespaces(seen: Seen) -> Iterator[Reason]:
    """Those that rooms need and cannot have; one sentence for all that lack for the same reason."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for name in OF_ROOMS:
        if seen.namespaces and (number := seen.namespaces.get(name, 0)):
            same = (_why(seen, name, number), _mend(seen, name, number))
            lacking.setdefault(same, []).append(name)
    for (why, mend), names in lacking.items():
        yield Reason(f"no namespace of kind {', '.join(names)} can be made: {why}", mend)


def _launcher(seen: Seen) -> Judged:
    """A program for each reader that carries the capability; the other rooms are user namespaces."""
    user = _user(seen)
    reasons = [*user.reasons, *_gains(seen)]
    if not seen.landlock:
        text = "this kernel has no Landlock: a reader would have nothing to close itself in with"
        mend = "boot Linux 5.13 or newer, with landlock in lsm= on its command line"
        reasons.append(Reason(text, mend))
    text = "readers have no namespaces of their own, and all rooms are one user's"
    judged = _said(Way.LAUNCHER, reasons, [Reason(text, "")])
    if seen.files.trial is None and not reasons:
        return _unknown(judged, "it was not tried" if seen.root else NEEDS_ROOT)
    return _unknown(judged, user.not_seen) if user.not_seen else judged


def _gains(seen: Seen) -> Iterator[Reason]:
    """Why a program that is marked gains nothing."""
    if seen.no_new_privs:
        text = "this session has no_new_privs: no program that it starts gets anything by its file"
        yield Reason(text, "log in by another way; or NoNewPrivileges=no for its service")
    if READ not in seen.bounding:
        text = f"whoever asks may not have {READ} himself (bounding set), and so no program of his"
        yield Reason(text, _container(READ))
    if seen.files.trial and not seen.no_new_privs and READ in seen.bounding:
        yield Reason(f"a program that was given it did not have it: {seen.files.trial}", ANOTHER)


def _user(seen: Seen) -> Judged:
    """A namespace of one's own: for one's own files, where no capability of the host's is needed."""
    reasons = [*_programs(tuple(p for p in seen.missing if not p.endswith("setpriv")))]
    if seen.own_room:
        reasons += _settings(seen.settings)
        if not reasons:
            text = f"an ordinary user cannot make a room: {seen.own_room}"
            reasons.append(
                Reason(text, _filterless(seen) or "start the container with more rights")
            )
    remarks = (Reason("it is for one's own files: nobody else's can be read", ""),)
    judged = _said(Way.USER, reasons, remarks)
    return _unknown(judged, "it was not tried") if seen.own_room is None else judged


def _settings(values: Mapping[str, str]) -> Iterator[Reason]:
    if values.get(MAXIMUM) == "0":
        yield Reason(f"{MAXIMUM} is 0: there are no user namespaces", f"sysctl -w {MAXIMUM}=15000")
    if values.get(USERNS_CLONE) == "0":
        text = f"{USERNS_CLONE} is 0: only root may make user namespaces"
        yield Reason(text, f"sysctl -w {USERNS_CLONE}=1")
    if values.get(APPARMOR) == "1":
        text = f"{APPARMOR} is 1, and no AppArmor profile lets bubblewrap make user namespaces"
        profile = "abi <abi/4.0>, profile bwrap /usr/bin/bwrap flags=(unconfined) { userns, }"
        mend = f"write the profile `{profile}` to /etc/apparmor.d/bwrap; apparmor_parser -r it"
        yield Reason(text, mend)


def _files(seen: Seen) -> Judged:
    files = seen.files
    reasons = []
    for path, point in files.nosuid:
        text = (
            f"{path} lies on {point}, which is mounted nosuid: what its file gives does not count"
        )
        reasons.append(Reason(text, f"mount -o remount,suid {point}"))
    for path, point in files.no_attributes:
        text = f"{path} lies on {point}, whose filesystem keeps no attributes, and so no capability"
        reasons.append(Reason(text, "install the engine on another filesystem"))
    reasons += _gains(seen) if not reasons else [r for r in _gains(seen) if r.mend != ANOTHER]
    judged = _said(Way.FILE, reasons, _fragile(files))
    if files.trial is None and not reasons:
        return _unknown(judged, "it was not tried" if seen.root else NEEDS_ROOT)
    return judged


def _fragile(files: Files) -> Iterator[Reason]:
    text = "it is for whoever may run the program, whatever that does for him; no room needs it"
    yield Reason(text, "")
    for held in files.held:
        text = f"{held.path} has {', '.join(held.capabilities)} now, and no room needs that"
        if held.hook:
            text += f"; {held.hook} sets it again after upgrades"
        elif held.package:
            text += f"; the next upgrade of {held.package} takes it away without a word"
            text += " (dpkg-statoverride keeps owner and mode alone)" if held.overridden else ""
        else:
            text += "; whatever replaces the file takes it away without a word"
        yield Reason(text, f"setcap -r {held.path}")
    for name in files.no_new_privs:
        text = f"{name} runs with no_new_privs: no program of those it lets in gets it by its file"
        yield Reason(text, f"systemctl edit {name}: [Service] NoNewPrivileges=no")


def _pam(seen: Seen) -> Judged:
    pam = seen.pam
    if pam is None:
        return _said(Way.PAM, [Reason("there is no PAM here: no /etc/pam.d", ANOTHER)])
    reasons: list[Reason] = []
    if not pam.module:
        text = f"{pam_stack.MODULE} is not installed"
        reasons.append(Reason(text, "apt-get install libpam-cap"))
    ways = {name: _service(pam, name) for name in SERVICES if name in pam.texts}
    open_ways = [name for name, why in ways.items() if why is None]
    closed = [why for why in ways.values() if why is not None]
    remarks = [*closed] if open_ways else []
    if not open_ways:
        text = "nobody is let in here: /etc/pam.d has neither sshd nor login"
        reasons += closed or [Reason(text, "apt-get install openssh-server")]
    if pam.use_pam is False and "sshd" in ways:
        text = "sshd does not ask PAM (UsePAM no), and so not pam_cap either"
        found = Reason(text, "write UsePAM yes to /etc/ssh/sshd_config; systemctl reload ssh")
        (reasons if open_ways in ([], ["sshd"]) else remarks).append(found)
    reasons += _entries(pam)
    if not pam.launchers:
        text = (
            "pam_cap makes it inheritable alone, also with `^` at an ssh login: nobody has it until he"
            " runs a program marked `ei`, and there is none"
        )
        mend = 'write start = "launcher" and launcher-mark = "ei" in [host]; capkeep apply'
        reasons.append(Reason(text, mend))
    if READ not in seen.bounding:
        text = f"whoever asks may not have {READ} himself (bounding set), and so no login of his"
        reasons.append(Reason(text, _container(READ)))
    if seen.files.trial:
        text = (
            f"no program gets a capability by its file here, also not by `ei`: {seen.files.trial}"
        )
        reasons.append(Reason(text, "see file capability"))
    for path in pam.launchers:
        text = f"{path} makes it effective; what replaces that file takes the mark away"
        remarks.append(Reason(text, f"setcap cap_dac_read_search=ei {path}"))
    return _said(
        Way.PAM, reasons, remarks, "" if seen.root else "programs that only root can look at"
    )


def _service(pam: Pam, name: str) -> Reason | None:
    """Why who comes in by a service does not get to pam_cap; None: he does."""
    stack = pam_stack.lines(pam.texts, name)
    found = pam_stack.find(stack)
    if found is None:
        shared = any(line.file == "common-auth" for line in stack)
        line = f"auth optional {pam_stack.MODULE}"
        own = f"write `{line}` as the first line of /etc/pam.d/{name}"
        mend = "pam-auth-update --enable capability" if shared else own
        return Reason(f"{name} does not run {pam_stack.MODULE}: no auth line names it", mend)
    if over := pam_stack.passed_over(stack):
        how = (
            "ends there"
            if not over.on_success.isdecimal()
            else f"goes on {over.on_success} further"
        )
        text = (
            f"{name} never gets to {pam_stack.MODULE} at {found.place}: when {over.module} at"
            f" {over.place} says yes, it {how} ({over.control})"
        )
        return Reason(text, f"move the line {found.place} above {over.place}")
    return None


def _entries(pam: Pam) -> Iterator[Reason]:
    """Who of the users gets nothing; one of them is enough."""
    found = [pam_stack.find(pam_stack.lines(pam.texts, name)) for name in SERVICES]
    path = next((line.config for line in found if line), pam_stack.CONFIG)
    if path not in pam.configs:
        yield Reason(f"there is no {path}", f"write `cap_dac_read_search {_first(pam)}` to it")
        return
    entries = {user: pam_stack.entry(pam.configs[path], user, more) for user, more in pam.users}
    if any(pam_stack.gives(entry, READ, NUMBER) for entry in entries.values()):
        return
    for user, entry in entries.items():
        text = f"{path} gives {user} nothing"
        where = f"to {path}"
        if entry is not None:
            text += f": its line {entry.number} (`{entry.text}`) is the first that names him"
            where = f"above line {entry.number} of {path}"
        yield Reason(text, f"write `cap_dac_read_search {user}` {where}")


def _first(pam: Pam) -> str:
    return pam.users[0][0] if pam.users else "USER"


def _programs(missing: Iterable[str]) -> Iterator[Reason]:
    for path in missing:
        package = "bubblewrap" if path.endswith("bwrap") else "util-linux"
        yield Reason(f"{path} is not there, or cannot be run", f"apt-get install {package}")


def _own_ids() -> Reason:
    text = "root here is not the machine's: the capability counts for files of this container's ids"
    return Reason(text, "")


def _why(seen: Seen, name: str, number: int) -> str:
    """What an error means, as far as that can be told."""
    if number == KILLED:
        return "a system call filter ends whoever tries"
    if number == errno.ENOSPC:
        return f"user.max_{name}_namespaces is used up"
    if number == errno.EINVAL:
        return "this kernel has none"
    said = os.strerror(number)
    if number in (errno.EPERM, errno.EACCES):
        if ADMIN not in seen.bounding:
            return f"{said}; root has no {ADMIN} here"
        if seen.filters:
            return f"{said}; a system call filter around this host is in the way"
    return said


def _mend(seen: Seen, name: str, number: int) -> str:
    if number == errno.ENOSPC:
        return f"sysctl -w user.max_{name}_namespaces=15000"
    if number in (errno.EPERM, errno.EACCES, KILLED):
        if ADMIN not in seen.bounding:
            return _container(ADMIN)
        return _filterless(seen) or "start the container with more rights (LXC: security.nesting)"
    return "boot a kernel that has it"


def _filterless(seen: Seen) -> str:
    """How a filter around the host is left out; "" if there is none."""
    option = "--security-opt seccomp=unconfined"
    return f"start the container without its filter (docker run {option})" if seen.filters else ""


def _container(capability: str) -> str:
    short = capability.removeprefix("CAP_")
    return (
        f"start the container with it (docker run --cap-add {short}),"
        f" or the service (CapabilityBoundingSet={capability})"
    )
