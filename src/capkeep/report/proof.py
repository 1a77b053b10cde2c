"""The privilege proof: what the kernel said of every process, as a table or in full."""

import json
from typing import Final

from capkeep.records.model import Proof
from capkeep.report.text import clean, table

_HEADING: Final = [
    "room", "process", "uid", "capabilities", "nnp", "seccomp", "landlock", "own namespaces", "network",
    "writable mounts",
]  # fmt: skip
_SECCOMP: Final = {0: "none", 1: "strict", 2: "filter"}
_SETS: Final = ("inheritable", "permitted", "effective", "bounding", "ambient")
_NEVER_STORED: Final = "no process has proven anything"

Facts = dict[str, object]


def proof_table(proofs: tuple[Proof, ...]) -> list[str]:
    """One row a process; below it, what is weaker than granted."""
    if not proofs:
        return [_NEVER_STORED]
    lines = table([_HEADING, *map(_row, proofs)])
    for proof in proofs:
        name = clean(f"{proof.room} ({proof.process})")
        lines += [f"weaker than granted: {name}: {clean(weak)}" for weak in proof.weaker]
    return lines


def _row(proof: Proof) -> list[str]:
    facts = _facts(proof)
    uids = _list(facts, "uids")
    return [
        clean(proof.room), clean(proof.process), uids[1] if len(uids) > 1 else "?",
        _capabilities(facts), "yes" if facts.get("no_new_privs") is True else "NO",
        _seccomp(facts), _landlock(facts), _joined(facts, "separated"),
        "no sockets" if "socket" in _list(facts, "refused") else _joined(facts, "interfaces"),
        "cache, by Landlock" if "write" in _list(facts, "refused") else _joined(facts, "writable"),
    ]  # fmt: skip


def _capabilities(facts: Facts) -> str:
    """Every capability in any set that counts: what it has, and what it could get."""
    names = dict.fromkeys(n for s in ("effective", "permitted", "ambient") for n in _list(facts, s))
    return " ".join(name.removeprefix("CAP_") for name in names) or "none"


def _seccomp(facts: Facts) -> str:
    mode = facts.get("seccomp")
    name = _SECCOMP.get(mode, str(mode)) if isinstance(mode, int) else "?"
    filters = facts.get("seccomp_filters")
    return f"{name} ({filters})" if isinstance(filters, int) and filters else name


def _landlock(facts: Facts) -> str:
    version = facts.get("landlock")
    return "?" if not isinstance(version, int) else f"ABI {version}" if version else "NONE"


def proof_in_full(proofs: tuple[Proof, ...]) -> list[str]:
    """Every fact of every process."""
    lines = [] if proofs else [_NEVER_STORED]
    for proof in proofs:
        facts = _facts(proof)
        lines.append(clean(f"{proof.room} ({proof.process}), process {facts.get('pid')}"))
        rows = [
            ["uids", "real effective saved filesystem: " + _joined(facts, "uids")],
            ["gids", "real effective saved filesystem: " + _joined(facts, "gids")],
            ["groups", _joined(facts, "groups")],
            *([name, _joined(facts, name)] for name in _SETS),
            ["no new privileges", "yes" if facts.get("no_new_privs") is True else "NO"],
            ["seccomp", _seccomp(facts)],
            ["landlock", _landlock(facts)],
            ["own namespaces", _joined(facts, "separated")],
            ["namespaces", _pairs(facts, "namespaces")],
            ["interfaces", _joined(facts, "interfaces")],
            ["writable mounts", _joined(facts, "writable")],
            ["hidden in /proc", _joined(facts, "proc")],
            *(
                [["refused when tried", tried]]
                if (tried := " ".join(_list(facts, "refused")))
                else []
            ),
            ["memory readable", _dumpable(facts)],
            *(["WEAKER", clean(weak)] for weak in proof.weaker),
        ]
        lines += [f"  {line}" for line in table(rows)]
    return lines


def _dumpable(facts: Facts) -> str:
    value = facts.get("dumpable")
    return "not known" if value is None else "by the same user" if value else "by nobody but root"


def _facts(proof: Proof) -> Facts:
    try:
        facts = json.loads(proof.facts)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _list(facts: Facts, name: str) -> list[str]:
    values = facts.get(name)
    return [clean(str(value)) for value in values] if isinstance(values, list) else []


def _joined(facts: Facts, name: str) -> str:
    return " ".join(_list(facts, name)) or "none"


def _pairs(facts: Facts, name: str) -> str:
    values = facts.get(name)
    pairs = values if isinstance(values, list) else []
    return clean(" ".join(f"{p[0]}:{p[1]}" for p in pairs if isinstance(p, list) and len(p) == 2))
