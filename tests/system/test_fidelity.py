"""A drill notices of each kind of metadata just what the reference says (docs/reference/fidelity.md)."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.contract import spoil, tree
from tests.contract.fidelity import ROWS
from tests.contract.spoil import Spoil
from tests.system.conftest import Product
from tests.system.test_drill import drilled, exchange, part
from tests.system.test_upkeep import restic

# It restores, and spoils what it has restored.
SPOILER = """#!/usr/bin/python3 -I
{module}
import sys
program = ["/usr/bin/restic", *sys.argv[1:]]
if "restore" not in program:
    os.execv(program[0], program)
if not (child := os.fork()):
    os.execv(program[0], program)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
target = next(w.partition("=")[2] for w in program if w.startswith("--target="))
for one in {spoils!r}:
    spoil(target + {top!r}, Spoil(*one))
sys.exit(code)
"""


def noticed(facts: dict[str, object], top: Path) -> set[str]:
    """The paths below a directory that a drill has found to differ."""
    found = facts["differences"]
    assert isinstance(found, list)
    return {str(path).removeprefix(f"{top}/") for path, _ in found}


def label(top: Path) -> None:
    (top / "labelled").write_text("x")
    os.setxattr(top / "labelled", tree.LABEL, b"x")


def wrong(product: Product, spoils: list[Spoil], top: Path) -> str:
    """A snapshot in which each of these is not as it is live then."""
    tree.make(top)
    label(top)
    for one in spoils:
        spoil.spoil(str(top), one)
    restic(product, "backup", "--tag=capkeep:job", str(product.source))
    (made,) = json.loads(restic(product, "snapshots", "--json"))
    top.rename(Path(product.home.base, "spoilt"))
    top.mkdir()
    tree.make(top)
    label(top)
    return str(made["id"])


@pytest.mark.timeout(300)
def test_a_drill_notices_what_is_declared_and_nothing_else(product: Product) -> None:
    top = product.source / "tree"
    top.mkdir()
    rows = {row.spoil: row.drilled for row in ROWS if row.spoil}
    assert len({one.name for one in rows}) == len(rows), "a difference tells its path alone"
    snapshot = wrong(product, [one for one, d in rows.items() if d.kept is not None], top)
    drilled(product, 'depth = "all"\n')
    program = Path(product.home.base, "etc/capkeep.toml").read_text().split('program = "')[1]
    program = program.split('"')[0]
    time.sleep(0.2)  # the files have not changed since the backup begins
    assert product("run").code == 0
    spoiler = Path(product.home.base, "spoiler")
    module, spoils = Path(spoil.__file__).read_text(), [tuple(one) for one in rows]
    spoiler.write_text(SPOILER.format(module=module, spoils=spoils, top=str(top)))
    spoiler.chmod(0o755)
    product.configure(f'program = "{program}"', f'program = "{spoiler}"')
    done = product("drill", "--json")
    assert done.code == 13, done
    facts = part(done)
    assert noticed(facts, top) == {one.name for one, d in rows.items() if d.restored}
    apart: Counter[str] = Counter()
    for row in ROWS:
        apart.update(dict([row.drilled.apart] if row.drilled.apart else []))
    assert facts["apart"] == apart
    product.configure(f'program = "{spoiler}"', f'program = "{program}"')
    exchange(product, snapshot)
    done = product("drill", "--json")
    assert done.code == 13, done
    assert noticed(part(done), top) == {one.name for one, d in rows.items() if d.kept}
