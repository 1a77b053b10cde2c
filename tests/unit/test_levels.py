"""The layers of docs/architecture.md hold, and what runs at night stays light."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
HOT_PACKAGES = ("rooms", "run")
HOT_MODULES = ("capkeep.cli.run", "capkeep.cli.status")
# Importing any of these costs a room more than it may take to start; `typing` is in NamedTuple.
TOO_HEAVY = {"argparse", "asyncio", "dataclasses", "inspect", "logging", "pathlib", "subprocess"}
HEAVY_AT_A_TERMINAL = TOO_HEAVY - {"argparse", "pathlib"}


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(SOURCE.rglob("*.py"))}


def levels() -> dict[str, int]:
    """The table under "Layers": package → level."""
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text.partition("## Layers")[2], re.MULTILINE)
    return {name: int(level) for level, names in rows for name in re.findall(r"`(\w+)`", names)}


def package_of(module: str) -> str:
    """The part of a module's name that the table speaks of: `capkeep.plan.model` → `plan`."""
    return module.split(".")[1]


def imports(tree: ast.AST) -> Iterator[str]:
    """Our own modules that are named in import statements below `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("capkeep."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            for alias in node.names if base.split(".")[0] == "capkeep" else ():
                whole = f"{base}.{alias.name}"
                if whole in MODULES:
                    yield whole
                elif base != "capkeep":
                    yield base


def top_level_imports(file: Path) -> set[str]:
    """What importing a file imports at once; not what its functions import when called."""
    tree = ast.parse(file.read_text())
    outside = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return {name for node in outside for name in imports(node)}


def test_the_table_names_every_package_and_no_other() -> None:
    present = {package_of(name) for name in MODULES if "." in name}
    assert set(levels()) == present


@pytest.mark.parametrize("module", sorted(m for m in MODULES if "." in m))
def test_a_module_imports_from_its_own_level_or_below(module: str) -> None:
    table = levels()
    mine = table[package_of(module)]
    above = [
        name
        for name in imports(ast.parse(MODULES[module].read_text()))
        if table[package_of(name)] > mine
    ]
    assert not above, f"{module} (level {mine}) imports {above}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: top_level_imports(file) for name, file in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def loaded_by(module: str) -> dict[str, str]:
    """What a fresh interpreter holds after importing a module the way a room does: name → file."""
    code = (
        "import json, sys; before = set(sys.modules); "
        f"sys.path.append({str(SOURCE)!r}); import {module}; "
        "print(json.dumps({n: getattr(m, '__file__', None) or '' "
        "for n, m in sys.modules.items() if n not in before}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, str] = json.loads(done.stdout)
    return loaded


def hot_modules() -> list[str]:
    nightly = [m for m in MODULES if m.split(".")[1:2] and package_of(m) in HOT_PACKAGES]
    return [*nightly, *(m for m in HOT_MODULES if m in MODULES)]


@pytest.mark.parametrize("module", hot_modules())
def test_what_runs_at_night_is_light_and_needs_python_alone(module: str) -> None:
    loaded = loaded_by(module)
    assert not [n for n in loaded if n.startswith("capkeep.config")]
    assert not [
        n for n, file in loaded.items() if "site-packages" in file or "dist-packages" in file
    ]
    heavy = HEAVY_AT_A_TERMINAL if module.startswith("capkeep.cli") else TOO_HEAVY
    assert not heavy & set(loaded), f"{module} loads {sorted(heavy & set(loaded))}"
