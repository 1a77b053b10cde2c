"""An audit for people and for monitoring: findings, what rooms can do, and what is so on purpose."""

from typing import Final

from capkeep.errors import EXIT_COMPLETE, EXIT_FINDINGS
from capkeep.host.finding import Audit, Finding, Proven
from capkeep.kernel.facts import Facts
from capkeep.kernel.trial import SOCKET, WRITE
from capkeep.plan import codec
from capkeep.plan.model import Starter
from capkeep.report.style import Style
from capkeep.report.text import clean, clean_lines, fit, table

DETAIL_LINES: Final = 30
DETAIL_COLUMNS: Final = 160
HEADING: Final = [
    "room", "process", "uid", "capabilities", "nnp", "seccomp", "landlock", "own namespaces",
    "network", "writable mounts",
]  # fmt: skip
FILTERING: Final = 2


def exit_code(audit: Audit) -> int:
    """For monitoring: whether there is anything to be mended."""
    return EXIT_FINDINGS if audit.findings else EXIT_COMPLETE


def as_plain(audit: Audit) -> dict[str, object]:
    """The audit as JSON values."""
    return {
        "exit_code": exit_code(audit),
        "findings": [f._asdict() for f in audit.findings],
        "rooms": [_plain_room(room) for room in audit.rooms],
        "exceptions": list(audit.exceptions),
        "left_out": list(audit.left_out),
    }


def _plain_room(proven: Proven) -> dict[str, object]:
    grant, walls = proven.grant, proven.walls
    return {
        "room": proven.room,
        "process": proven.process,
        "granted": {
            "uid": grant.uid,
            "gid": grant.gid,
            "capabilities": list(grant.capabilities),
            "no_new_privs": True,
            "seccomp": FILTERING,
            "namespaces": list(walls.namespaces),
            "network": grant.network,
            "writable": [*grant.writable, *walls.writable],
        },
        "found": codec.to_plain(proven.facts),
        "weaker": list(proven.weaker),
        "accepted": list(proven.accepted),
    }


def lines(audit: Audit, style: Style) -> list[str]:
    """All of it, what has to be mended first."""
    found = len(audit.findings)
    said: list[str] = []
    for finding in audit.findings:
        said += _finding(finding, style)
    if audit.rooms:
        said += [*_rooms(audit.rooms, style), ""]
    for heading, texts in (("by design", audit.exceptions), ("left out here", audit.left_out)):
        said += [style.bold(f"{heading}:"), *(f"  {clean(t)}" for t in texts), ""] if texts else []
    if not found:
        return [*said, style.good("no findings")]
    return [*said, style.bad("1 finding" if found == 1 else f"{found} findings")]


def _finding(finding: Finding, style: Style) -> list[str]:
    detail = clean_lines(finding.detail) if finding.detail else []
    more = len(detail) - DETAIL_LINES
    return [
        f"{style.bad(finding.kind)}  {style.bold(clean(finding.what))}: {clean(finding.text)}",
        f"  mend: {clean(finding.mend)}",
        *(f"    {style.difference(fit(line, DETAIL_COLUMNS))}" for line in detail[:DETAIL_LINES]),
        *([f"    … and {more} lines more"] if more > 0 else []),
        "",
    ]


def _rooms(rooms: tuple[Proven, ...], style: Style) -> list[str]:
    """A row for each process; where it differs from its grant: granted → found."""
    heading, *rows = table([HEADING, *map(_row, rooms)])
    rows = [style.bad(r) if p.weaker else r for r, p in zip(rows, rooms, strict=True)]
    return [style.bold("what each room can do; where that differs: granted → found"),
            style.dim(heading), *rows]  # fmt: skip


def _row(proven: Proven) -> list[str]:
    grant, walls, facts = proven.grant, proven.walls, proven.facts
    launched = walls.starter is Starter.LAUNCHER
    bounding = () if launched else facts.bounding
    held = dict.fromkeys((*facts.effective, *facts.permitted, *facts.ambient, *bounding))
    other = [name for name in facts.interfaces if name != "lo"]
    needed = set(walls.namespaces)
    separated = set(facts.separated)
    if proven.process == "engine" and not facts.namespaces:
        separated |= needed  # it has its room's, and the kernel does not name them
    missing = needed - separated
    return [
        clean(proven.room),
        proven.process,
        _cell(str(grant.uid), " ".join(map(str, dict.fromkeys(facts.uids)))),
        _cell(_short(grant.capabilities), _short(held)),
        _cell("yes", "yes" if facts.no_new_privs else "NO"),
        _cell("filter", "filter" if facts.seccomp == FILTERING else "NONE"),
        f"ABI {facts.landlock}" if facts.landlock else "none here",
        _cell(_words(needed), _words(needed - missing)) if missing else _words(separated),
        "granted" if grant.network else _network(facts, other),
        _mounts({*grant.writable, *walls.writable}, proven) if not launched else _written(proven),
    ]


def _network(facts: Facts, other: list[str]) -> str:
    """What it has of one that was not granted; who can make no socket has none."""
    return "no sockets" if SOCKET in facts.refused else _cell("none", _words(other))


def _written(proven: Proven) -> str:
    """Where Landlock lets it write, if it keeps it from anything."""
    places = clean(" ".join(proven.grant.write))
    return f"{places} by Landlock" if WRITE in proven.facts.refused else f"{places} → everywhere"


def _mounts(allowed: set[str], proven: Proven) -> str:
    """Where it may write, and what else is writable."""
    extra = [m for m in proven.facts.writable if any(f"{m} is mounted" in w for w in proven.weaker)]
    here = clean(" ".join(sorted(m for m in proven.facts.writable if m in allowed))) or "none"
    return f"{here} → also {clean(' '.join(extra))}" if extra else here


def _cell(granted: str, found: str) -> str:
    return granted if granted == found else f"{granted} → {found}"


def _words(names: "set[str] | list[str]") -> str:
    return clean(" ".join(sorted(names))) or "none"


def _short(names: "tuple[str, ...] | dict[str, None]") -> str:
    return " ".join(sorted(name.removeprefix("CAP_") for name in names)) or "none"
