"""What systemd has made of our units: drop-ins, masked or failed ones, reloads that are due.

Sources: systemctl(1), systemd.unit(5), org.freedesktop.systemd1(5).
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from capkeep.host import systemd, units
from capkeep.host.finding import APPLY, Finding, Kind
from capkeep.plan.model import Plan

INSTANCE: Final = "@capkeep-audit."  # systemd tells of a template only through an instance
PROPERTIES: Final = (
    "Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "FragmentPath",
    "DropInPaths", "NeedDaemonReload", "NConnections",
)  # fmt: skip
SERVING: Final = {".socket": ("listening", "running"), ".timer": ("waiting", "running")}
# What a drop-in may set without taking anything away from a room: who is told, and how much of the
# machine it may use. Everything else is a finding, as nobody can say what a directive of tomorrow does.
HARMLESS: Final = frozenset((
    "AccuracySec", "CPUQuota", "CPUSchedulingPolicy", "CPUWeight", "Description", "Documentation",
    "FixedRandomDelay", "IOSchedulingClass", "IOSchedulingPriority", "IOWeight", "LogLevelMax",
    "LogRateLimitBurst", "LogRateLimitIntervalSec", "MemoryHigh", "MemoryMax", "Nice", "OOMPolicy",
    "OOMScoreAdjust", "OnFailure", "OnSuccess", "RandomizedDelaySec", "Slice", "StartupCPUWeight",
    "StartupIOWeight", "TimeoutStopFailureMode",
))  # fmt: skip

Shown = Mapping[str, str]


class UnitState(NamedTuple):
    """What is wrong, and drop-ins that take nothing away."""

    findings: tuple[Finding, ...]
    harmless: tuple[str, ...]


def examine(plan: Plan) -> UnitState:
    """All our units. Raises SystemdError, OSError."""
    names = [u.name for u in units.render(plan, systemd.look(plan))]
    enabled = units.enabled(plan)
    findings: list[Finding] = []
    harmless: list[str] = []
    for shown in show(names):
        name = shown.get("Id", "").replace(INSTANCE, "@.")
        findings += judge(name, shown, enabled=name in enabled)
        for path in shown.get("DropInPaths", "").split():
            settings = _settings_of(path)
            if settings and HARMLESS.issuperset(key for key, _ in settings):
                harmless.append(f"{name} has {path}, which sets {_listed(settings)}")
            else:
                findings.append(drop_in(name, path, settings))
    findings += failed_instances(plan.name)
    return UnitState(tuple(findings), tuple(harmless))


def show(names: Iterable[str]) -> list[Shown]:
    """What systemd says of each unit."""
    asked = [n.replace("@.", INSTANCE) for n in names]
    return parse(systemd.tell("show", f"--property={','.join(PROPERTIES)}", *asked))


def parse(text: str) -> list[Shown]:
    """`systemctl show` of several units: blocks of KEY=VALUE, an empty line between them."""
    blocks = (block.splitlines() for block in text.strip().split("\n\n"))
    return [dict(line.split("=", 1) for line in block if "=" in line) for block in blocks]


def judge(name: str, shown: Shown, *, enabled: bool) -> Iterator[Finding]:
    """What is wrong with one unit, its drop-ins apart."""
    load, active, sub = shown["LoadState"], shown["ActiveState"], shown["SubState"]
    if load == "masked":
        yield Finding(Kind.UNIT, name, "is masked", f"systemctl unmask {name}; capkeep apply")
        return
    if load != "loaded":
        yield Finding(Kind.UNIT, name, f"cannot be used: {load}", APPLY)
        return
    if shown.get("FragmentPath") != (own := f"{systemd.UNIT_DIRECTORY}/{name}"):
        other = shown.get("FragmentPath", "")
        yield Finding(Kind.UNIT, name, f"systemd reads {other} in place of {own}", f"rm {other}")
    if shown.get("NeedDaemonReload") == "yes":
        text = "has changed on disk, and systemd has not read it again"
        yield Finding(Kind.RELOAD, name, text, "systemctl daemon-reload")
    if active == "failed":
        yield _failed(name, shown.get("Result", ""))
    elif enabled and sub not in SERVING[name[name.rindex(".") :]]:
        does = "wait for its time" if name.endswith(".timer") else "listen"
        text = f"does not {does} ({active}, {sub})"
        yield Finding(Kind.UNIT, name, text, f"systemctl enable --now {name}")
    if enabled and shown.get("UnitFileState") != "enabled":
        text = f"will not be there after a restart ({shown.get('UnitFileState') or 'not enabled'})"
        yield Finding(Kind.UNIT, name, text, f"systemctl enable --now {name}")


def _failed(name: str, result: str) -> Finding:
    again = "; systemctl start " + name if name.endswith((".socket", ".timer")) else ""
    text = f"has failed ({result or 'no reason given'}); `journalctl -u {name}` tells why"
    return Finding(Kind.UNIT, name, text, f"systemctl reset-failed {name}{again}")


def failed_instances(prefix: str) -> list[Finding]:
    """Rooms whose last process failed, as far as systemd keeps them."""
    listed = systemd.tell(
        "list-units", "--all", "--plain", "--no-legend", "--state=failed", f"{prefix}-*@*.service"
    )
    return [_failed(line.split()[0], "") for line in listed.splitlines() if line.strip()]


def drop_in(name: str, path: str, settings: tuple[tuple[str, str], ...]) -> Finding:
    """A file that changes one of our units."""
    text = f"{path} changes it: {_listed(settings) or 'it cannot be read'}"
    own = os.path.dirname(path) in {
        f"{d}/{name}.d" for d in (systemd.UNIT_DIRECTORY, "/run/systemd/system")
    }
    mend = f"systemctl revert {name}" if own else f"rm {path}; systemctl daemon-reload"
    detail = "\n".join(f"{key}={value}" for key, value in settings)
    return Finding(Kind.DROP_IN, name, text, mend, detail)


def _listed(settings: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(dict.fromkeys(key for key, _ in settings))


def _settings_of(path: str) -> tuple[tuple[str, str], ...]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return settings(file.read())
    except OSError:
        return ()


def settings(text: str) -> tuple[tuple[str, str], ...]:
    """What a unit file sets, in its order (systemd.syntax(7))."""
    found: list[tuple[str, str]] = []
    begun = ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue  # also between the lines of one setting
        whole = begun + line.strip()
        begun = f"{whole[:-1]} " if whole.endswith("\\") else ""
        key, equals, value = whole.partition("=")
        if equals and not begun:
            found.append((key.strip(), value.strip()))
    return tuple(found)


def connections(name: str) -> int:
    """How many rooms a socket has open just now. Raises SystemdError."""
    said = systemd.tell("show", "--value", "--property=NConnections", name).strip()
    return int(said) if said.isdecimal() else 0
