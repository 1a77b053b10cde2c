"""The contract as a table for people: `python -m tests.contract.table` writes it into the reference."""

import sys
from typing import Final

from tests.contract.contract import CONTRACT
from tests.contract.declared import BORG, CONTESTANTS, RDIFF, RESTIC, YES, Behaviour
from tests.contract.page import Page

PAGE: Final = Page("engines.md", "tests.contract.table")
FAMILIES: Final = {"restic": RESTIC, "borg": BORG, "rdiff-backup": RDIFF}


def _versions(engines: tuple[str, ...]) -> str:
    """Such as "0.18, 0.19"."""
    return ", ".join(e.rpartition(" ")[2] for e in engines)


def cell(one: Behaviour, engines: tuple[str, ...]) -> str:
    """What a family does; by version where its versions differ."""
    found: dict[str, list[str]] = {}
    for engine in engines:
        found.setdefault(one.expected(engine), []).append(engine)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{_versions(tuple(which))}: {what}" for what, which in found.items())


def text() -> str:
    """All of it, without the marks around."""
    differing = sum(any(b.expected(e) != YES for e in CONTESTANTS) for b in CONTRACT.values())
    head = (
        f"Each of these {len(CONTRACT)} behaviours is tried with restic {_versions(RESTIC)}, borg"
        f" {_versions(BORG)} and rdiff-backup {_versions(RDIFF)}, with the real program in the real"
        f" rooms. {differing} of them differ somewhere; there the table says what is seen instead."
    )
    lines = [head]
    group = ""
    for one in CONTRACT.values():
        if one.group != group:
            group = one.group
            lines += ["", f"### {group}", "", f"| | {' | '.join(FAMILIES)} |", "|---|---|---|---|"]
        cells = (cell(one, engines) for engines in FAMILIES.values())
        lines.append(f"| {one.sentence} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Write it into the page."""
    PAGE.write(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
