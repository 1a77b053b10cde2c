"""The same rooms with one layer less: what Landlock and the system call filters add."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import capkeep
from tests.attack.attempts import BY_NAME
from tests.attack.runs import Results, Stage, all_names
from tests.attack.table import GRANTED, row

ASK_ABI = "    version = abi()\n"
LOOK = "    machine = os.uname().machine\n"


class Layer(NamedTuple):
    """A copy of the package in which one thing is not done."""

    title: str
    changes: tuple[tuple[str, str, str], ...]  # file, text, what stands there instead


DEBIAN_12 = Layer(
    "Landlock as in Linux 6.1 (Debian 12)",
    (("kernel/landlock.py", ASK_ABI, "    version = min(abi(), 2)\n"),),
)
LAYERS = (
    DEBIAN_12,
    Layer("no Landlock", (("kernel/landlock.py", ASK_ABI, "    version = 0\n"),)),
    Layer(
        "no system call filter",
        (
            ("kernel/seccomp.py", LOOK, "    return\n" + LOOK),
            ("rooms/proof.py", "if facts.seccomp != FILTERING:", "if False:"),
        ),
    ),
)


@contextlib.contextmanager
def without(stage: Stage, layer: Layer) -> Iterator[None]:
    """The stage's rooms run a package with that layer changed."""
    before = stage.plan
    package = f"{stage.base}/changed"
    shutil.copytree(Path(capkeep.__file__).parent, f"{package}/capkeep",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    try:
        for name, old, new in layer.changes:
            path = Path(package, "capkeep", name)
            text = path.read_text()
            assert text.count(old) == 1, f"{name} has changed: {old!r}"
            path.write_text(text.replace(old, new))
        stage.plan = before._replace(package=package)
        yield
    finally:
        stage.plan = before
        shutil.rmtree(package)


def escaped(room: str, results: Results) -> tuple[str, ...]:
    """What it got and was not meant to."""
    return tuple(n for n, o in results.items() if o.got and (room, n) not in GRANTED)


def render(stage: Stage, rooms: tuple[str, ...] = ("reader", "vault")) -> str:
    """What gets through, as Markdown."""
    lines = ["\n## What each layer adds\n", "The same attempts with one layer less, and what then gets through.\n",
             row(("", *rooms)), row(("---", *["---"] * len(rooms)))]  # fmt: skip
    for layer in LAYERS:
        cells = [layer.title]
        with without(stage, layer):
            for room in rooms:
                names = escaped(room, stage.run(room, all_names()))
                cells.append("; ".join(BY_NAME[n].title for n in names) or "nothing")
        lines.append(row(cells))
    return "\n".join(lines) + "\n"
