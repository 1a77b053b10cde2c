"""Rules of this project that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
STARTS = {"fork", "forkpty", "system", "popen", "posix_spawn", "posix_spawnp", "startfile"}
MAY_START = {"capkeep/kernel/process.py", "capkeep/guest/launch.py"}
MAY_FORK = {"capkeep/host/doors.py"}
THIS_FILE = "tests/unit/test_rules.py"


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT / "src"))


def committed() -> list[Path]:
    """Every text file of the project, as far as it is under version control."""
    if not (ROOT / ".git").exists():
        return [f for f in ROOT.rglob("*") if f.is_file() and f.suffix in {".py", ".md", ".toml"}]
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", "-z"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def used_names(tree: ast.AST) -> set[str]:
    """`module.attribute` for plain attribute access and for names imported from a module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("file", SOURCE, ids=relative)
def test_programs_are_started_in_one_module(file: Path) -> None:
    if relative(file) in MAY_START:
        return
    used = used_names(ast.parse(file.read_text()))
    banned = {"subprocess", "multiprocessing", "pty"} & used
    banned |= {n for n in used if n.startswith("os.") and n[3:] in STARTS}
    banned |= {n for n in used if re.fullmatch(r"os\.(exec|spawn)[lv]\w*", n)}
    assert banned <= ({"os.fork"} if relative(file) in MAY_FORK else set())


@pytest.mark.parametrize("file", SOURCE, ids=relative)
def test_only_main_exits(file: Path) -> None:
    """`os._exit` is another thing: a forked child must not run its parent's clean-up."""
    if file.name != "__main__.py":
        used = used_names(ast.parse(file.read_text()))
        assert not used & {"sys.exit", "builtins.exit", "os.abort"}


@pytest.mark.parametrize("file", SOURCE, ids=relative)
def test_signatures_hold_no_any(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            annotations = [
                a.annotation for a in (*arguments, node.args.vararg, node.args.kwarg) if a
            ]
            for annotation in (*annotations, node.returns):
                assert annotation is None or not re.search(r"\bAny\b", ast.unparse(annotation)), (
                    node.name
                )


@pytest.mark.parametrize("file", SOURCE, ids=relative)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_every_folder_of_tests_is_a_suite() -> None:
    listed = re.search(r"^suites=\((.+)\)$", (ROOT / "test").read_text(), re.MULTILINE)
    assert listed is not None
    folders = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= set(listed[1].split())


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"\b(TODO|FIXME|XXX|HACK)\b", id="unfinished"),
        pytest.param(
            r"(?i)--(extra-)?index-url|\bpypi\.org/simple|files\.pythonhosted", id="registry"
        ),
        pytest.param(r"/opt/(lab|pypi|wheels)\b|/work/(main|shared|notes)\b", id="machine-path"),
        pytest.param(r"shell\s*=\s*True", id="shell"),
    ],
)
def test_no_file_holds(pattern: str) -> None:
    hits = []
    for file in committed():
        name = str(file.relative_to(ROOT))
        if name == THIS_FILE:
            continue
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        hits += [
            f"{name}:{text[: m.start()].count(chr(10)) + 1}" for m in re.finditer(pattern, text)
        ]
    assert not hits
