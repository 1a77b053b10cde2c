"""What follows a backup: the comparison, the check, and the retention."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from capkeep.kernel.clock import state_of_clock
from tests.engines import restic_programs
from tests.system.conftest import SECONDS, Product, Said

TABLES = """
[jobs.job.check]
read-data = "all"

[jobs.job.retention]
keep-last = 2
trust-clock = true
"""
RETENTION = "[jobs.job.retention]\nkeep-last = 2\ntrust-clock = true\n"


def keep(product: Product, tables: str = TABLES) -> None:
    """Give the installation's job these tables."""
    line = f'include = ["{product.source}"]\n'
    product.configure(line, line + tables)


def told(said: Said, event: str) -> list[dict[str, object]]:
    messages = [json.loads(line) for line in said.out.splitlines()]
    return [m for m in messages if m["event"] == event]


def steps(said: Said) -> dict[object, dict[str, object]]:
    return {m["kind"]: m for m in told(said, "step-end")}


def listed(product: Product) -> list[str]:
    found = json.loads(product("snapshots", "--json").out)
    return [s["id"] for s in found[0]["snapshots"]]


def test_a_run_compares_checks_and_removes(any_engine: Product) -> None:
    product = any_engine
    keep(product)
    made = []
    for number in range(4):
        (product.source / f"file-{number}").write_text(f"{number}\n")
        done = product("run", "--json")
        assert done.code == 0, done
        made.append(steps(done)["backup"]["snapshot"])
    ended = steps(done)
    assert list(ended) == ["backup", "diff", "check", "retention"]
    assert {s["outcome"] for s in ended.values()} == {"complete"}
    assert [name[:8] for name in listed(product)] == [str(name)[:8] for name in made[-2:]]
    assert list(decisions(done).values()) == [(True, True), (True, True), (True, False)]
    (diff,) = [p for p in told(done, "part") if p["kind"] == "diff"]
    facts = diff["facts"]
    assert isinstance(facts, dict)
    assert (facts["added"], facts["removed"]) == (1, 0)
    assert [product.home.base, 1] in facts["tops"]
    changes = [c for m in told(done, "changes") for c in m["changes"]]  # type: ignore[attr-defined]
    assert ["+", f"{product.source}/file-3"] in changes


def decisions(said: Said) -> dict[str, tuple[object, object]]:
    return {str(m["id"]): (m["complete"], m["keep"]) for m in told(said, "decision")}


def restic(product: Product, *words: str) -> str:
    """The engine on the repository itself, behind capkeep's back."""
    done = subprocess.run(
        [str(restic_programs()["0.18"]), "--repo", product.repository, "--no-cache", *words],
        env={"PATH": "/usr/bin", "RESTIC_PASSWORD": "a password"},
        capture_output=True, text=True, timeout=SECONDS, check=True,
    )  # fmt: skip
    give_back(product)
    return done.stdout


def give_back(product: Product) -> None:
    """What root wrote into the repository belongs to the vault."""
    owner = product.repository.stat()
    for path in product.repository.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def test_a_dry_run_shows_what_stays_and_removes_nothing(product: Product) -> None:
    keep(product, RETENTION)
    for _ in range(2):
        assert product("run").code == 0
    product.configure("keep-last = 2", "keep-last = 1")
    before = listed(product)
    shown = product("retention", "--dry-run")
    assert shown.code == 0, shown
    rows = [line.split() for line in shown.out.splitlines() if " complete " in line]
    assert [(row[0], row[4]) for row in rows] == [(before[1][:8], "stays"), (before[0][:8], "goes")]
    assert "1 snapshots stay, 1 would be removed" in shown.out
    assert listed(product) == before
    assert product("retention").code == 0
    assert listed(product) == before[1:]
    status = product("status")
    assert "1 snapshots stay, 1 were removed" in status.out, status


def test_partial_backups_remove_nothing_and_push_nothing_out(product: Product) -> None:
    keep(product, RETENTION)
    for _ in range(2):
        assert product("run").code == 0
    whole = listed(product)
    missing = Path(product.home.base, "missing")
    product.configure('/source"]', f'/source", "{missing}"]')
    for _ in range(2):
        done = product("run", "--json")
        assert done.code == 3, done
        assert "retention" not in steps(done)
    assert len(listed(product)) == 4
    done = product("retention", "--json")
    assert done.code == 0, done
    found = decisions(done)
    assert {found[name] for name in whole} == {(True, True)}
    assert {v for name, v in found.items() if name not in whole} == {(False, True)}
    missing.mkdir()
    (missing / "file").write_text("found again\n")
    assert product("run").code == 0
    stay = listed(product)
    assert whole[1] in stay
    assert len(stay) == 3  # two complete ones, and the partial one between them


def test_each_job_thins_out_its_own(product: Product) -> None:
    keep(product, RETENTION)
    other = f'[jobs.other]\nrepositories = ["repo"]\ninclude = ["{product.source}"]\n'
    product.configure("[jobs.job]\n", other + "[jobs.job]\n")
    restic(product, "backup", "--tag=capkeep:job", "--host=elsewhere", str(product.source))
    restic(product, "backup", str(product.source))
    foreign = listed(product)
    for _ in range(3):
        assert product("run", "other").code == 0
        assert product("run", "job").code == 0
    found = json.loads(product("snapshots", "--json").out)[0]["snapshots"]
    tags = [tuple(s["tags"]) for s in found]
    assert tags.count(("capkeep:other",)) == 3
    assert tags.count(("capkeep:job",)) == 2 + 1
    assert set(foreign) <= {s["id"] for s in found}


def test_a_damaged_repository_is_suspect_until_a_check_passes(product: Product) -> None:
    keep(product)
    (product.source / "random").write_bytes(os.urandom(1 << 20))
    for _ in range(2):
        assert product("run").code == 0
    pack = max(product.repository.glob("data/*/*"), key=lambda p: p.stat().st_size)
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[:1000] + b"rot" + whole[1003:])
    before = listed(product)
    done = product("run", "--json")
    assert done.code == 13, done
    ended = steps(done)
    assert (ended["check"]["failure"], ended["backup"]["outcome"]) == ("damaged", "complete")
    assert str(ended["retention"]["text"]).startswith("nothing was removed")
    assert len(listed(product)) == len(before) + 1
    refused = product("retention")
    assert refused.code == 4, refused
    assert "suspect" in refused.out
    status = product("status")
    assert status.code == 1
    assert "repo: suspect" in status.out
    pack.write_bytes(whole)
    assert product("check").code == 0
    assert "repo: suspect" in product("status").out, "the structure says nothing of the data"
    assert product("check", "--job", "job").code == 0
    assert "repo: suspect" not in product("status").out
    assert product("retention").code == 0
    assert len(listed(product)) == 2


def test_a_snapshot_that_vanished_is_told_of_once(product: Product) -> None:
    """Removed by somebody at the repository's place: all that is left is sound."""
    keep(product, '[jobs.job.check]\nread-data = "all"\n')
    for _ in range(2):
        assert product("run").code == 0
    victim = next((product.repository / "snapshots").iterdir())
    victim.unlink()
    done = product("run", "--json")
    assert (done.code, steps(done)["check"]["failure"]) == (13, "damaged"), done
    assert f"1 snapshots ({victim.name[:8]}) are gone" in str(steps(done)["check"]["text"])
    assert "suspect" in product("status").out
    assert product("run").code == 0, "it is known now"


def test_a_repository_that_was_made_anew_is_told_of_without_a_search_for_what_it_lost(
    product: Product,
) -> None:
    """An engine that is asked for a snapshot that is gone looks for it for half a minute."""
    for number in range(2):
        (product.source / "new").write_text(f"{number}\n")
        assert product("run").code == 0
    for entry in product.repository.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert product("init").code == 0
    (product.source / "new").write_text("2\n")
    done = product("run", "--json")
    assert steps(done)["backup"]["outcome"] == "complete"
    assert steps(done)["diff"]["failure"] == "damaged", done
    assert "are gone" in str(steps(done)["diff"]["text"])
    (product.source / "new").write_text("3\n")
    done = product("run", "--json")
    assert (done.code, steps(done)["diff"]["outcome"]) == (0, "complete"), done


def test_a_snapshot_from_the_future_stops_retention(product: Product) -> None:
    keep(product, RETENTION)
    assert product("run").code == 0
    host = product.newest()["host"]
    restic(
        product, "backup", "--tag=capkeep:job", f"--host={host}", "--time=2050-01-01 00:00:00",
        str(product.source),
    )  # fmt: skip
    for _ in range(3):
        done = product("run")
        assert done.code == 0, done
        assert "newer than now" in done.out
    assert len(listed(product)) == 5
    refused = product("retention")
    assert refused.code == 4, refused
    assert "is this host's clock right?" in refused.out
    assert "newer than now" in product("status").out


def test_a_clock_that_nothing_keeps_right_stops_retention(product: Product) -> None:
    keep(product, RETENTION.replace("trust-clock = true\n", ""))
    for _ in range(3):
        done = product("run")
        assert done.code == 0, done
    kept_right = state_of_clock() != 5
    assert ("unsynchronised" in done.out) is not kept_right
    assert len(listed(product)) == (2 if kept_right else 3)


def test_a_rotating_check_reads_another_part_each_time(product: Product) -> None:
    keep(product, '[jobs.job.check]\nread-data = "rotate 30d"\n')
    parts = []
    for _ in range(3):
        done = product("run", "--json")
        assert done.code == 0, done
        (part,) = [p for p in told(done, "part") if p["kind"] == "check"]
        parts.append(part["facts"]["read_data"])  # type: ignore[index]
    assert len(set(parts)) == 3, parts
    status = json.loads(product("status", "--json").out)
    (upkeep,) = status["upkeep"]
    read = sum(1 / int(part.split("/")[1]) for part in parts)
    assert upkeep["coverage"]["share"] == pytest.approx(read)
    assert "of the data was read in the last 30 d" in product("status").out


def test_a_job_without_a_table_is_told_so(product: Product) -> None:
    for words in (("retention",), ("check", "--job", "job")):
        refused = product(*words)
        assert refused.code == 4, refused
        assert "[jobs." in refused.err


def test_the_summary_and_the_log_say_what_was_found(product: Product) -> None:
    keep(product)
    for number in range(2):
        (product.source / "sub").mkdir(exist_ok=True)
        (product.source / "sub" / f"new-{number}").write_text("new\n")
        done = product("run")
    assert "1 added, 0 changed, 0 removed" in done.out
    assert "no errors were found, all of the data was read" in done.out
    assert f"{product.source}/sub/new-1" in product("log").out
