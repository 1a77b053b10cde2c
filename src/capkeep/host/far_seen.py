"""What a script has told of another host (`host/far_script.py`), as values to be judged; pure.

Whoever answers may be hostile: nothing of it is believed but as something to be shown.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from capkeep.errors import Failure, StepError
from capkeep.host import sshd
from capkeep.host.far_script import PLACE
from capkeep.host.granting import judge
from capkeep.host.pam_seen import PAM
from capkeep.host.pam_stack import CONFIG
from capkeep.host.ways_seen import (
    KILLED,
    NUMBER,
    SETTINGS,
    Files,
    Judged,
    Pam,
    Seen,
    State,
    Systemd,
    Way,
)
from capkeep.kernel import mounts
from capkeep.kernel.facts import capability_names
from capkeep.plan import codec
from capkeep.plan.codec import DecodeError

NAMESPACE: Final = "try namespace "
KNOWN: Final = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.ENOSYS)
SIGNALS: Final = 124  # exit codes from here on: no answer in time, or a signal
MASK: Final = 16  # digits
LINE: Final = 5000  # characters of a path and its capabilities
WHOLE: Final = "4294967295"
# getcap(8), older and newer: both "effective" and inheritable, as `ei`.
GETCAP: Final = re.compile(r"(.*?)(?: =)? \S*cap_dac_read_search\S*[=+](?:ei|eip)$")
LANDLOCK: Final = (5, 13)  # the first Linux with it

Told = Mapping[str, str]


class Far(NamedTuple):
    """A host from afar."""

    kernel: str
    has_capkeep: bool  # whose own doctor has judged
    ways: tuple[Judged, ...]


def read(text: str, login: str) -> Far:
    """What is to be said of a host, by all that the script has told. Raises StepError."""
    told = dict(_records(text))
    try:
        kernel = told["kernel"].strip()
        if "capkeep" in told:
            plain = json.loads(told["capkeep"])["ways"]
            return Far(kernel, True, tuple(codec.from_plain(Judged, way) for way in plain))
        return Far(kernel, False, _judged(_seen(told, login)))
    except (DecodeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise StepError(
            Failure.REFUSED,
            f"the target's answer cannot be read: {type(error).__name__}: {error}",
            hint="run `capkeep doctor` there",
        ) from error


def _records(text: str) -> Iterator[tuple[str, str]]:
    """Each name with its lines; what else a login shell says is left out."""
    name, lines = "", list[str]()
    for line in text.split("\n"):
        if line.startswith("="):
            if name:
                yield name, "\n".join(lines)
            name, lines = line[1:], []
        elif line.startswith("|"):
            lines.append(line[1:])
    if name:
        yield name, "\n".join(lines)


def _judged(seen: Seen) -> tuple[Judged, ...]:
    """With the way that `capkeep enroll` would choose, which can be tried by root alone."""
    if seen.systemd.runs:
        return judge(seen, Way.SYSTEMD)
    ways = judge(seen, Way.LAUNCHER)
    blocked = any(way.used and way.state is State.BLOCKED for way in ways)
    return judge(seen, Way.DOORS) if blocked else ways


def _seen(told: Told, login: str) -> Seen:
    status, first = _fields(told["status"]), _fields(told.get("file /proc/1/status", ""))
    no_new_privs = status["NoNewPrivs"] == "1"
    spaces = {n.removeprefix(NAMESPACE): _number(told, n) for n in told if n.startswith(NAMESPACE)}
    table = mounts.visible(mounts.parse(told["file /proc/self/mountinfo"].encode()))
    return Seen(
        root=told["uid"].strip() == "0",
        bounding=capability_names(_mask(status["CapBnd"])),
        no_new_privs=no_new_privs,
        filters=int(first.get("Seccomp_filters", "0")),
        landlock=_landlock(told),
        own_ids=told["file /proc/self/uid_map"].split()[2:3] == [WHOLE],
        missing=tuple(told["missing"].split()),
        namespaces={n: number for n, number in spaces.items() if number is not None} or None,
        mounts=_number(told, "try mounts"),
        room=_room(told, "room", 1 << NUMBER),
        own_room=_room(told, "own_room", None),
        settings={
            name: told[path].strip()
            for name in SETTINGS
            if (path := f"file /proc/sys/{name.replace('.', '/')}") in told
        },
        systemd=_systemd(told, first),
        files=_files(told, table, no_new_privs=no_new_privs),
        pam=_pam(told, login),
    )


def _fields(text: str) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _mask(text: str) -> int:
    """A set of capabilities. Raises ValueError for what the kernel does not write."""
    if len(text) > MASK:
        raise ValueError(f"{text[:MASK]} is not all of a mask")
    return int(text, 16)


def _tried(told: Told, name: str) -> tuple[int, str] | None:
    """Exit code, and what was said; None where it was not tried."""
    if name not in told:
        return None
    code, _, said = told[name].partition("\n")
    return int(code), said.strip()


def _number(told: Told, name: str) -> int | None:
    """As an error's number what a program says of what it could not do; 0 if it could."""
    tried = _tried(told, name)
    if tried is None:
        return None
    code, said = tried
    if code == 0:
        return 0
    found = (number for number in KNOWN if os.strerror(number) in said)
    return next(found, KILLED if code >= SIGNALS else errno.EPERM)


def _room(told: Told, name: str, wanted: int | None) -> str | None:
    """What went wrong with a program that shows what it has; `wanted`: the mask that it should have."""
    tried = _tried(told, f"try {name}")
    if tried is None:
        return None
    code, said = tried
    if code != 0:
        return " ".join(said.split()) or f"it ended with {code}"
    words = said.split()
    has = _mask(words[1]) if len(words) == 2 and words[0] == "CapEff:" else -1
    return "" if wanted is None or has == wanted else f"it has {said}"


def _landlock(told: Told) -> int:
    """Its version; where nothing tells that, 1 for a kernel that is new enough."""
    found = told["landlock"].strip()
    if found:
        return max(0, int(found))
    version = re.match(r"(\d+)\.(\d+)", told["kernel"])
    return int((int(version[1]), int(version[2])) >= LANDLOCK) if version else 0


def _systemd(told: Told, first: Mapping[str, str]) -> Systemd:
    tried = _tried(told, "try systemd")
    if tried is None:
        return Systemd()
    version = re.match(r"systemd (\d+)", tried[1])
    bounding = capability_names(_mask(first["CapBnd"])) if "CapBnd" in first else None
    return Systemd(True, int(version[1]) if version else 0, bounding)


def _files(told: Told, table: tuple[mounts.Mount, ...], *, no_new_privs: bool) -> Files:
    nosuid = []
    for path in told["engines"].split("\n"):
        point = mounts.mount_of(path, table) if path else None
        if point and "nosuid" in point.options:
            nosuid.append((path, point.point))
    trial = None if no_new_privs else _trial(told)
    if trial and (point := mounts.mount_of(f"{PLACE}/x", table)):
        names = [o for o in ("nosuid", "noexec") if o in point.options]
        trial = f"{PLACE} lies on {point.point}, which is mounted {names[0]}" if names else trial
    return Files(trial, tuple(nosuid))


def _trial(told: Told) -> str | None:
    marking = _tried(told, "try mark")
    if marking is None:
        return None  # nothing there can mark a file
    if marking[0] != 0:
        return f"its file cannot be marked: {' '.join(marking[1].split())}"
    return _room(told, "marked", 1 << NUMBER)


def _pam(told: Told, login: str) -> Pam | None:
    texts = {
        name.rpartition("/")[2]: text
        for folder in PAM
        for name, text in told.items()
        if name.startswith(f"file {folder}/")
    }
    if not texts:
        return None
    config = f"file {CONFIG}"
    said = (line for line in told["inheriting"].splitlines() if len(line) <= LINE)
    marked = (found[1] for line in said if (found := GETCAP.match(line)))
    asked = _tried(told, "try sshd")
    answers = asked is not None and asked[0] == 0
    return Pam(
        module=bool(told["modules"].strip()),
        texts=texts,
        configs={CONFIG: told[config]} if config in told else {},
        users=((login, tuple(told["groups"].split())),),
        launchers=tuple(marked),
        use_pam="yes" in sshd.parse(asked[1]).get("usepam", ()) if asked and answers else None,
    )
