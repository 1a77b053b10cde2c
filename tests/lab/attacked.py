"""The attack suite in booted machines: what gets out of the rooms, and of what people use today.

`python -m tests.lab.attacked` prints the table of it, which is also a part of `make attack-table`.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.attack import layers
from tests.attack.attempts import ATTEMPTS, BOOTED_ATTEMPTS, BY_NAME
from tests.attack.booted import CONTROLS, HARDENED, RECIPES, ROOMS
from tests.attack.runs import Outcome, Results
from tests.attack.table import GRANTED, GROUPS, NO, cell, row
from tests.lab import trees
from tests.lab.machine import Machine

PLACE: Final = "/opt/attack"
PYTHON: Final = "/opt/capkeep/bin/python"
PARTS: Final = ("attempts", "booted", "hostile", "hostile_services", "runs", "user_mode", "world")
COLUMNS: Final = (*CONTROLS, *RECIPES, *ROOMS)
SECONDS: Final = 400
VERSIONS: Final = {"bookworm": "252", "trixie": "257", "sid": "262"}
# What the kernel of a release has; the machines of this lab have the kernel of their host.
LANDLOCK: Final = {"bookworm": layers.DEBIAN_12}


@contextlib.contextmanager
def machine(suite: str, layer: layers.Layer | None = None) -> Iterator[Machine]:
    """A machine of that release, with as much of Landlock as its own kernel has, to be attacked.

    With `layer` its rooms have one layer less. On a file system that can open files by their inodes, as most have and an overlay has not.
    """
    with Machine(suite, plain=True) as made:
        folder = Path(__file__).parents[1] / "attack"
        for name in PARTS:
            made.write(f"{PLACE}/tests/attack/{name}.py", (folder / f"{name}.py").read_text())
        changed = layer or LANDLOCK.get(suite)
        if changed is not None:
            _change(made, changed)
        yield made


def _change(machine: Machine, layer: layers.Layer) -> None:
    package = machine.ok("sh", "-c", "echo /opt/capkeep/lib/python3*/site-packages").strip()
    for name, old, new in layer.changes:
        path = f"{package}/capkeep/{name}"
        text = machine.read(path)
        assert text.count(old) == 1, f"{name} has changed: {old!r}"
        machine.write(path, text.replace(old, new))


def attack(
    machine: Machine, columns: tuple[str, ...] = COLUMNS, names: tuple[str, ...] = ()
) -> dict[str, Results]:
    """Every attempt, or those of some names, in each column."""
    said = machine.ok(
        "env", f"PYTHONPATH={PLACE}", f"ATTEMPTS={' '.join(names)}",
        PYTHON, "-m", "tests.attack.booted", *columns, seconds=SECONDS,
    )  # fmt: skip
    lines = [json.loads(line) for line in said.splitlines()]
    return {
        line["column"]: {name: Outcome(*outcome) for name, outcome in line["results"].items()}
        for line in lines
    }


# -- the table

EVERY: Final = (*ATTEMPTS, *BOOTED_ATTEMPTS)
TITLES: Final = GROUPS | {"services": "Services of the host"}
HEAD: Final = ("attempt", "no sandbox", "setcap unit", "hardened unit", *ROOMS)
INTRODUCTION: Final = """
# The same where systemd runs the machine

Booted machines: {releases}.
The hostile program stands in the engine's place of an installation that `capkeep apply` has made, and
`capkeep run` and `capkeep check` lead it into the units of the reader and the keeper. Viewers and
restorers are started as above there, too. Beside them are two units as people write them today:

- *setcap unit*: the program with `setcap cap_dac_read_search=+ep`, in a unit with `User=` and
  `ProtectSystem=full`.
- *hardened unit*: a unit with `User=` and {hardened}, and its cache in `ReadWritePaths=`.

A version instead of "yes": only there.{landlock}
"""


def render(found: dict[str, dict[str, Results]]) -> str:
    """The table as Markdown: by suite, what came of each column."""
    versions = {suite: VERSIONS.get(suite, suite) for suite in found}
    releases = ", ".join(f"Debian {suite} (systemd {v})" for suite, v in versions.items())
    kernels = ", ".join(f"under {v}" for s, v in versions.items() if s in LANDLOCK)
    landlock = f" Rooms {kernels} have Landlock as in Linux 6.1." if kernels else ""
    hardened = ", ".join(f"`{line}`" for line in HARDENED)
    lines = [INTRODUCTION.format(releases=releases, hardened=hardened, landlock=landlock)]
    notes: list[str] = []
    for group, title in TITLES.items():
        rule = row(["---", *[":-:"] * (len(HEAD) - 1)])
        lines += [f"\n## {title}, under systemd\n", row(HEAD), rule]
        for attempt in (a for a in EVERY if a.group == group):
            by_suite = {versions[s]: _cells(attempt.name, r, notes) for s, r in found.items()}
            lines.append(row([attempt.title, *map(_merged, _columns(by_suite))]))
    lines += [
        "\n## Notes, under systemd\n",
        *(f"{i}. {note}" for i, note in enumerate(notes, 1)),
        "",
    ]
    for suite, results in found.items():
        counts = [sum(o.got for o in results[column].values()) for column in RECIPES]
        lines.append(f"{len(EVERY)} attempts; under systemd {versions[suite]} {counts[0]} of them succeed"
                     f" in the setcap unit, {counts[1]} in the hardened one.")  # fmt: skip
    return "\n".join(lines) + "\n"


def _cells(name: str, results: dict[str, Results], notes: list[str]) -> list[str]:
    without, root = results["without"], results["root"]
    alone = "yes" if without[name].got else "root" if root[name].got else "not here"
    recipes = ["yes" if results[c][name].got else NO for c in RECIPES]
    return [alone, *recipes, *(cell(c, name, results[c], notes) for c in ROOMS)]


def _columns(by_suite: dict[str, list[str]]) -> list[dict[str, str]]:
    rows = [dict.fromkeys(by_suite, "") for _ in HEAD[1:]]
    for suite, cells in by_suite.items():
        for column, text in zip(rows, cells, strict=True):
            column[suite] = text
    return rows


def _merged(cells: dict[str, str]) -> str:
    """One cell for all versions; those that differ are named."""
    if len(set(cells.values())) == 1:
        return next(iter(cells.values()))
    said = [v if text == "yes" else f"{v}: {text}" for v, text in cells.items() if text != NO]
    return ", ".join(said)


def escaped(results: dict[str, Results]) -> dict[str, Outcome]:
    """What a room let through, and was not meant to."""
    return {
        f"{room}: {name}": outcome
        for room in ROOMS
        for name, outcome in results.get(room, {}).items()
        if outcome.got and (room, name) not in GRANTED
    }


def render_layers(suite: str) -> str:
    """What gets out of a reader with one layer less, as Markdown."""
    lines = [f"\n## What each layer adds, under systemd {VERSIONS.get(suite, suite)}\n",
             row(("", "reader")), row(("---", "---"))]  # fmt: skip
    for layer in layers.LAYERS:
        with machine(suite, layer) as made:
            out = escaped(attack(made, ROOMS[:1]))
        names = [BY_NAME[what.partition(": ")[2]].title for what in out]
        lines.append(row((layer.title, "; ".join(names) or "nothing")))
    return "\n".join(lines) + "\n"


def main() -> int:
    found = {}
    for suite in trees.SUITES:
        with machine(suite) as made:
            found[suite] = attack(made)
    print(render(found), end="", flush=True)
    print(render_layers(trees.SUITES[0]), end="")
    bad = [f"{suite}: {what}" for suite, results in found.items() for what in escaped(results)]
    print("\n".join(bad), file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
