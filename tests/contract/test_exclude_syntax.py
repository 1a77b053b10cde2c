"""`check_exclude` refuses exactly the patterns that every restic refuses."""

import subprocess
from pathlib import Path

import pytest

from capkeep.values import ValueMistake, check_exclude
from tests.engines import restic_programs

PATTERNS = [
    "*.o", "/a/[a-z]*", "[^x]", "!/a/b", "\\[x", "a**b", "[\\]]", "$HOME", "[a", "[]", "[a-]",
    "[-a]", "a\\", "x/[/y", "[a\\", "[^]", "[a-z", "[]a]", "[!a]", "a]b", "[z-a]", "[\\-]",
    "[a-\\z]", "!", "/", "**",
]  # fmt: skip


def we_refuse(pattern: str) -> bool:
    try:
        check_exclude(pattern)
    except ValueMistake:
        return True
    return False


@pytest.mark.parametrize("version", ["0.14", "0.18", "0.19"])
def test_the_engine_agrees_on_every_pattern(version: str, tmp_path: Path) -> None:
    program = restic_programs()[version]
    (tmp_path / "source").mkdir()
    environment = {
        "RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": f"{tmp_path}/repo", "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }  # fmt: skip

    def restic(*words: str) -> str:
        return subprocess.run(
            [program, "--no-cache", *words],
            env=environment, capture_output=True, text=True, timeout=60,
        ).stderr  # fmt: skip

    assert restic("init") == ""
    excludes = [f"--exclude={pattern}" for pattern in PATTERNS]
    said = restic("backup", "--dry-run", *excludes, f"{tmp_path}/source").splitlines()
    assert "invalid pattern" in said[0]  # the patterns that it refuses follow, one a line
    assert [p for p in PATTERNS if p in said] == [p for p in PATTERNS if we_refuse(p)]
