"""`capkeep config`: what it prints and which code it returns."""

import argparse
import json
import sys
import tomllib
from pathlib import Path

import pytest

from capkeep.cli import config as command
from capkeep.config.mistakes import MistakesError

GOOD = """\
[engines.restic]
program = "@/restic"
[repositories.r]
engine = "restic"
location = "/srv/repo"
password = { file = "@/secret" }
[jobs.j]
repositories = ["r"]
include = ["/srv"]
"""


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    etc = tmp_path / "etc"
    etc.mkdir(mode=0o755)
    etc.chmod(0o755)
    for name, mode in {"restic": 0o755, "secret": 0o600, "capkeep.toml": 0o644}.items():
        (etc / name).write_text("hunter2")
        (etc / name).chmod(mode)
    (etc / "capkeep.toml").write_text(GOOD.replace("@", str(etc)))
    return tmp_path


def run(prefix: Path, verb: str, *options: str) -> int:
    top = argparse.ArgumentParser()
    top.add_argument("--prefix")
    top.add_argument("--user", action="store_true")
    top.add_argument("--json", action="store_true")
    command.add(top.add_subparsers())
    args = top.parse_args(["--prefix", str(prefix), "--user", *options, "config", verb])
    code = args.handler(args)
    assert isinstance(code, int)
    return code


def test_check(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(prefix, "check") == 0
    out = capsys.readouterr().out
    assert "repository r at /srv/repo lies in /srv" in out
    assert "no mistakes; 1 job, 1 repository" in out
    assert run(prefix, "check", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mistakes"] == []
    assert found["remarks"][0]["line"] == 9


def test_check_with_mistakes(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prefix / "etc/secret").chmod(0o644)
    with pytest.raises(MistakesError):
        run(prefix, "check")
    assert run(prefix, "check", "--json") == 5
    (mistake,) = json.loads(capsys.readouterr().out)["mistakes"]
    assert set(mistake) == {"file", "line", "key", "problem", "hint"}
    assert (mistake["line"], mistake["key"]) == (6, "repositories.r.password")


def test_show(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(prefix, "show") == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out)["jobs"]["j"]["include"] == ["/srv"]
    assert "hunter2" not in out
    assert run(prefix, "show", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["jobs.j.include"]["line"] == 9
    assert shown["jobs.j.timeout"] == {"value": "1d", "file": None, "line": None}
    assert shown["repositories.r.password"]["value"] == {"file": f"{prefix}/etc/secret"}


def test_schema_and_example(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(prefix, "schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "capkeep configuration"
    assert run(prefix, "example") == 0
    assert "jobs" in tomllib.loads(capsys.readouterr().out)
    assert run(prefix, "example", "--json") == 0
    assert "capkeep.toml" in json.loads(capsys.readouterr().out)


def test_the_verbs_cost_no_start_time() -> None:
    """Adding the verbs imports nothing; a fresh interpreter shows it."""
    import subprocess

    code = (
        "import sys, argparse; from capkeep.cli import config;"
        "config.add(argparse.ArgumentParser().add_subparsers());"
        "print('pydantic' in sys.modules, 'tomllib' in sys.modules)"
    )
    root = Path(command.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"]
