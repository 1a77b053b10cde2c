"""borg's patterns, as they are taken over, exclude with restic what they exclude with borg.

What borg leaves out was recorded with borg 1.2.4 (`borg create --dry-run --list -e PATTERN`).
"""

import json
import subprocess
from pathlib import Path

import pytest

from capkeep.takeover.patterns import Untranslatable, from_borg
from tests.engines import restic_programs

FILES = (
    "a/x.pyc", "a/b/y.pyc", "x.pyc", "home/joe/.cache/f", "home/joe/deep/.cache/f",
    "home/joe/.cachefile", "home/.cache/f", ".cache/f", "var/tmp/f", "var/tmp/d/g", "var/tmpx",
    "foo1/bar", "foo1/2/3bar", "foo/xbar/z", "home/joe/my[1]/f", "home/joe/my1/f", "a/b*c/f",
    "a/bxc/f", "node_modules/f", "home/joe/a/node_modules/f", "srv/cache-old/f",
    "srv/x/mycache/f", "a/.vim1.tmp", "a/.vimd/x.tmp", "a/b/.vim9.tmp", "back\\slash/f",
)  # fmt: skip
CACHES = {"home/joe/.cache/f", "home/joe/deep/.cache/f"}
LEFT_OUT = {
    "*.pyc": {"a/x.pyc", "a/b/y.pyc", "x.pyc"},
    "/home/*/.cache": CACHES,
    "*/.cache": {*CACHES, "home/.cache/f"},
    ".cache": {".cache/f"},
    "/var/tmp/": {"var/tmp/f", "var/tmp/d/g"},
    "var/tmp": {"var/tmp/f", "var/tmp/d/g"},
    "/foo*bar": {"foo1/bar", "foo1/2/3bar", "foo/xbar/z"},
    "*cache*": {*CACHES, "home/joe/.cachefile", "home/.cache/f", ".cache/f", "srv/cache-old/f",
                "srv/x/mycache/f"},
    "*/.vim*.tmp": {"a/.vim1.tmp", "a/.vimd/x.tmp", "a/b/.vim9.tmp"},
    "home/joe/my[!2]": {"home/joe/my1/f"},
    "back\\slash": {"back\\slash/f"},
    "sh:*/.vim*.tmp": {"a/.vim1.tmp"},
    "sh:home/*/.cache": {"home/joe/.cache/f"},
    "sh:**/node_modules": {"node_modules/f", "home/joe/a/node_modules/f"},
    "sh:**/.vimd/**/x.tmp": {"a/.vimd/x.tmp"},
    "sh:a/b[*]c": {"a/b*c/f"},
    "sh:/var/tmp/**": {"var/tmp/f", "var/tmp/d/g"},
    "pp:home/joe/my[1]": {"home/joe/my[1]/f"},
    "pf:x.pyc": {"x.pyc"},
}  # fmt: skip


@pytest.mark.parametrize("version", ["0.14", "0.19"])
def test_the_same_is_left_out(version: str, tmp_path: Path) -> None:
    program, source = restic_programs()[version], tmp_path / "source"
    # A tree for each pattern, so that one call tells of all: opening a repository costs the time.
    trees = {pattern: f"{source}/{number}" for number, pattern in enumerate(LEFT_OUT)}
    for tree in trees.values():
        for name in FILES:
            Path(tree, name).parent.mkdir(parents=True, exist_ok=True)
            Path(tree, name).write_text("x")
    environment = {
        "RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": f"{tmp_path}/repo", "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }  # fmt: skip

    def restic(*words: str) -> str:
        done = subprocess.run(
            [program, "--no-cache", *words],
            env=environment, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    restic("init")
    excludes = [f"--exclude={tree}{ours}" for p, tree in trees.items() for ours in from_borg(p)]
    said = restic("backup", "--dry-run", "-vv", "--json", *excludes, str(source))
    items = {json.loads(line).get("item", "") for line in said.splitlines()}
    left_out = {p: {n for n in FILES if f"{tree}/{n}" not in items} for p, tree in trees.items()}
    assert left_out == LEFT_OUT


@pytest.mark.parametrize(
    "pattern", ["re:x", "sh:{a,b}", "a/b[*]c", "*a*b*/c", "fm:", "x\ny", "a[b"]
)
def test_what_cannot_be_said_is_refused(pattern: str) -> None:
    with pytest.raises(Untranslatable):
        from_borg(pattern)
