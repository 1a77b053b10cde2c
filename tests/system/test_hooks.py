"""Hooks around backups: when they run, what they are told, and what a run is worth when they fail."""

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.host.probe import probe
from capkeep.plan.model import RoomKind
from tests.rooms.house import house, wait_for
from tests.system.conftest import Product, Said
from tests.system.scenes import processes, programs, start
from tests.system.test_dumps import home_of

NAMES = ("open", "close", "well", "badly")
# Notes what it was told, then does what a file says.
PROGRAM = """#!/usr/bin/python3 -I
import json, os, pathlib, sys, time
home = pathlib.Path(sys.argv[1])
told = {k: v for k, v in os.environ.items() if k.startswith("CAPKEEP_")} | {"name": sys.argv[2]}
with open(home / "write/noted", "a") as file:
    file.write(json.dumps(told) + "\\n")
exec((home / sys.argv[2]).read_text())
print("done by", sys.argv[2], os.getuid())
"""


class Hooked:
    """An installation whose job has a hook of each kind, all of them one program."""

    def __init__(self, product: Product, home: Path) -> None:
        self.product = product
        self.home = home
        program = home / "program"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        (home / "write").mkdir()
        os.chown(home / "write", home.stat().st_uid, -1)
        tables = ""
        for name in NAMES:
            self.does(name, "pass")
            tables += f"""
[hooks.{name}]
command = ["{program}", "{home}", "{name}"]
user = "games"
read = ["{home}"]
write = ["{home}/write"]
timeout = "20s"
"""
        path = Path(product.home.base, "etc/conf.d")
        path.mkdir(exist_ok=True)
        (path / "hooks.toml").write_text(tables)
        product.configure(
            "[jobs.job]\n",
            "[jobs.job.check]\n[jobs.job.retention]\nkeep-last = 3\n[jobs.job]\n"
            'before = ["open"]\nafter = ["close"]\non-success = ["well"]\non-failure = ["badly"]\n',
        )

    def does(self, name: str, deed: str) -> None:
        (self.home / name).write_text(deed)
        (self.home / name).chmod(0o644)

    def run(self) -> tuple[Said, list[dict[str, object]]]:
        done = self.product("run", "--json")
        return done, [json.loads(line) for line in done.out.splitlines()]

    def noted(self) -> list[dict[str, str]]:
        """What the hooks were told since this was last asked."""
        path = self.home / "write/noted"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def names(self) -> list[str]:
        return [told["name"] for told in self.noted()]


def steps(told: list[dict[str, object]]) -> list[tuple[object, object, object]]:
    ends = (m for m in told if m["event"] == "step-end")
    return [(m["kind"], m["repository"], m["outcome"]) for m in ends]


def end(told: list[dict[str, object]]) -> dict[str, object]:
    return next(m for m in told if m["event"] == "end")


@pytest.fixture
def hooked() -> Iterator[Hooked]:
    with house() as home, home.doors(), home_of("games") as folder:
        product = Product(home)
        made = product("init")
        assert made.code == 0, made
        yield Hooked(product, folder)


def test_when_hooks_run_and_what_they_are_told(hooked: Hooked) -> None:
    done, told = hooked.run()
    assert done.code == 0, done
    assert steps(told) == [
        ("before", "open", "complete"), ("backup", "repo", "complete"),
        ("after", "close", "complete"), ("check", "repo", "complete"),
        ("retention", "repo", "complete"), ("on-success", "well", "complete"),
    ]  # fmt: skip
    before, after, well = hooked.noted()
    run = end(told)["run"]
    snapshot = next(m["snapshot"] for m in told if m["event"] == "step-end" and m["snapshot"])
    empty = {"OUTCOME": "", "FAILURE": "", "EXIT_CODE": "", "SNAPSHOTS": ""}
    common = {"CAPKEEP_JOB": "job", "CAPKEEP_RUN": run}
    assert before == {
        "name": "open", "CAPKEEP_HOOK": "before", **common,
        **{f"CAPKEEP_{k}": v for k, v in empty.items()},
    }  # fmt: skip
    complete = {
        "CAPKEEP_OUTCOME": "complete", "CAPKEEP_FAILURE": "", "CAPKEEP_EXIT_CODE": "0",
        "CAPKEEP_SNAPSHOTS": f"repo:{snapshot}",
    }  # fmt: skip
    assert after == {"name": "close", "CAPKEEP_HOOK": "after", **common, **complete}
    assert well == {"name": "well", "CAPKEEP_HOOK": "on-success", **common, **complete}
    proofs = [m for m in told if m["event"] == "proof" and str(m["room"]).startswith("hook-")]
    assert {(m["room"], m["process"]) for m in proofs} == {
        (f"hook-{name}", process) for name in NAMES[:3] for process in ("room", "engine")
    }  # fmt: skip
    assert all(m["weaker"] == [] for m in proofs)
    said = [m["text"] for m in told if m["event"] == "message"]
    assert f"done by open {hooked.home.stat().st_uid}" in said
    log = hooked.product.root("log", str(run)).out
    assert "done by close" in log
    plan = hooked.product.home.compiled()
    hooks = tuple(r for r in plan.rooms if r.kind is RoomKind.HOOK)
    probed = probe(plan._replace(rooms=hooks), {})
    assert [len(probed.rooms), probed.findings] == [8, ()]
    assert hooked.names() == []  # an audit runs none of them, nor does a dry run
    assert hooked.product("run", "--dry-run").code == 0
    assert hooked.names() == []


def test_a_hook_that_fails(hooked: Hooked) -> None:
    hooked.does("open", "sys.exit('the oven is cold')")
    done, told = hooked.run()
    assert done.code == 1, done
    assert [(s[0], s[2]) for s in steps(told)] == [
        ("before", "failed"), ("after", "complete"), ("on-failure", "complete"),
    ]  # fmt: skip
    assert end(told)["text"] == "hook open: program ended with 1: the oven is cold"
    noted = hooked.noted()
    assert [n["name"] for n in noted] == ["open", "close", "badly"]
    assert {n["CAPKEEP_OUTCOME"] for n in noted[1:]} == {"failed"}
    assert noted[1]["CAPKEEP_FAILURE"] == "engine"
    hooked.does("open", "pass")
    hooked.does("close", "print('x' * 70000); [print(n) for n in range(600)]; sys.exit(3)")
    done, told = hooked.run()
    assert done.code == 1, done
    assert [s[:2] for s in steps(told)] == [
        ("before", "open"), ("backup", "repo"), ("after", "close"), ("check", "repo"),
        ("retention", "repo"), ("on-failure", "badly"),
    ]  # fmt: skip
    assert end(told)["text"] == "hook close: program ended with 3"
    said = [str(m["text"]) for m in told if m["event"] == "message"]
    assert "499" in said
    assert "500" not in said
    assert "… and 101 more lines, which are not kept" in said
    assert len(json.loads(hooked.product("snapshots", "--json").out)[0]["snapshots"]) == 1
    hooked.names()
    hooked.does("close", "time.sleep(60)")
    path = Path(hooked.product.home.base, "etc/conf.d/hooks.toml")
    text = (
        path.read_text()
        .replace('"20s"', '"2s"')
        .replace("[hooks.open]", "[hooks.open]\noptional = true")
    )
    path.write_text(text)
    hooked.product.configure("keep-last = 3", "keep-last = 4")
    hooked.does("open", "os.closerange(0, 3); time.sleep(60)")
    done, told = hooked.run()
    assert done.code == 17, done
    assert [(s[0], s[2]) for s in steps(told)][:3] == [
        ("before", "failed"), ("backup", "complete"), ("after", "failed"),
    ]  # fmt: skip
    assert end(told)["text"] == "hook close: not done when its 2 s were over"
    warned = [str(m["text"]) for m in told if m["event"] == "warning"]
    assert "optional, and failed: hook open: not done when its 2 s were over" in warned


def test_a_run_that_is_stopped_or_killed(hooked: Hooked) -> None:
    waits = "(home / 'write/here').touch(); time.sleep(15)"
    here = hooked.home / "write/here"
    hooked.does("open", waits)
    running = start(hooked.product, "run", "--json")
    wait_for(here.exists)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    told = [json.loads(line) for line in out.splitlines()]
    assert [(s[0], s[2]) for s in steps(told)] == [
        ("before", "failed"), ("after", "complete"), ("on-failure", "complete"),
    ]  # fmt: skip
    assert (end(told)["failure"], end(told)["exit_code"]) == ("stopped", 130)
    noted = hooked.noted()
    assert [(n["name"], n["CAPKEEP_FAILURE"]) for n in noted[1:]] == [
        ("close", "stopped"), ("badly", "stopped"),
    ]  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGKILL):
        here.unlink()
        running = start(hooked.product, "run", "--json")
        wait_for(here.exists)
        for pid in programs(hooked.product, "runner"):
            os.kill(pid, number)
        out, _ = running.communicate(timeout=60)
        if number == signal.SIGTERM:  # as when systemd ends what still runs
            assert hooked.names() == ["open", "close", "badly"]
            assert end([json.loads(line) for line in out.splitlines()])["failure"] == "interrupted"
    wait_for(
        lambda: (
            not any(b"/program" in words for words in processes(hooked.product, "hook").values())
        )
    )
    assert hooked.names() == ["open"]
    checked = hooked.product("check", "--job", "job")
    assert checked.code == 0, checked
    hooked.does("open", "pass")
    done, told = hooked.run()
    assert done.code == 0, done
    assert hooked.names() == ["open", "close", "well"]
    warned = [str(m["text"]) for m in told if m["event"] == "warning"]
    assert any("nothing shows that the hooks which come after it" in text for text in warned)
    here.unlink()
    hooked.does("open", waits.replace("15", "2"))
    running = start(hooked.product, "run", "--json")
    wait_for(here.exists)
    record = sqlite3.connect(
        f"{hooked.product.home.places.records}/records.db", isolation_level=None
    )
    record.execute("BEGIN IMMEDIATE")  # as a full disk: nothing more can be written down
    out, _ = running.communicate(timeout=100)
    assert running.returncode == 1, out
    record.close()
    noted = hooked.noted()
    assert [n["name"] for n in noted] == ["open", "close"]
    assert (noted[1]["CAPKEEP_OUTCOME"], noted[1]["CAPKEEP_FAILURE"]) == ("failed", "interrupted")
