"""What a run is worth, judged through the whole product: complete, partial or failed, and why."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.engines import restic_programs
from tests.system.conftest import Product
from tests.system.scenes import halted_while_reading, random_file

SECOND = """
[repositories.second]
engine = "restic"
location = "{base}/repositories/second"
password = {{ file = "{base}/etc/secrets/second" }}

[jobs.job]"""


def with_second(product: Product) -> None:
    """The job keeps its backups in two places."""
    secret = Path(product.home.base, "etc/secrets/second")
    secret.write_text("a second password\n")
    secret.chmod(0o600)
    product.configure("\n[jobs.job]", SECOND.format(base=product.home.base))
    product.configure('repositories = ["repo"]', 'repositories = ["repo", "second"]')
    made = product("init", "second")
    assert made.code == 0, made


def snapshots(product: Product, repository: str) -> int:
    found = json.loads(product("snapshots", repository, "--json").out)
    return len(found[0]["snapshots"])


def last_run(product: Product) -> dict[str, object]:
    newest = json.loads(product("history", "--json", "--limit", "1").out)[0]
    assert isinstance(newest, dict)
    return newest


def findings(out: str, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in out.splitlines()]
    return [m for m in lines if m["event"] == event]


def test_each_repository_of_a_job_gets_a_snapshot(product: Product) -> None:
    with_second(product)
    done = product("run")
    assert done.code == 0, done
    assert (snapshots(product, "repo"), snapshots(product, "second")) == (1, 1)
    steps = last_run(product)["steps"]
    assert isinstance(steps, list)
    assert [(s["repository"], s["outcome"]) for s in steps] == [
        ("repo", "complete"), ("second", "complete"),
    ]  # fmt: skip


def test_a_snapshot_without_the_canary_is_not_complete(
    any_engine: Product, request: pytest.FixtureRequest
) -> None:
    """Whether the engine names what it keeps, as of a few files, or the snapshot is looked into."""
    product = any_engine
    # Since 0.19 restic excludes nothing that it is given by its own path, as the canary is.
    newest = "0.19" in request.node.name
    for few in (False, True):
        product.configure("[jobs.job]\n", '[jobs.job]\nexclude = ["canary"]\n')
        done = product("run")
        assert done.code == (0 if newest else 3), (few, done)
        missing = "canary, which every snapshot must hold, is not in it"
        assert (missing in done.err + done.out) is not newest
        product.configure('exclude = ["canary"]\n', "")
        assert product("run").code == 0


def test_progress_has_a_total_from_the_time_before(any_engine: Product) -> None:
    for number in range(40):
        random_file(any_engine.source / f"f{number}", 2)
    assert any_engine("run").code == 0
    for number in range(40):
        random_file(any_engine.source / f"f{number}", 2)
    done = any_engine("run", "--json")
    assert done.code == 0, done
    told = findings(done.out, "progress")
    assert told, "it takes some seconds"
    assert all(t["total_files"] >= 40 for t in told if t["files"]), told  # type: ignore[operator]


def test_a_broken_repository_does_not_keep_the_other_from_its_snapshot(product: Product) -> None:
    with_second(product)
    for broken, whole in (("repo", "second"), ("second", "repo")):
        secret = Path(product.home.base, "etc/secrets", broken)
        right = secret.read_text()
        before = snapshots(product, whole)
        secret.write_text("another\n")
        done = product("run")
        secret.write_text(right)
        assert done.code == 12, done
        assert snapshots(product, whole) == before + 1
        steps = last_run(product)["steps"]
        assert isinstance(steps, list)
        outcomes = {s["repository"]: s["outcome"] for s in steps}
        assert outcomes == {broken: "failed", whole: "complete"}
        status = product("status")
        assert status.code == 1, status
        assert "failed" in status.out
    assert product("run").code == 0
    assert product("status").code == 0


def too_deep(folder: Path) -> None:
    """Below it lies a file that no program can open by its path (PATH_MAX, path_resolution(7))."""
    folder.mkdir()
    fd = os.open(folder, os.O_DIRECTORY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def test_what_cannot_be_read_makes_it_partial_unless_it_may_be_missed(product: Product) -> None:
    deep = product.source / "deep"
    too_deep(deep)
    done = product("run")
    assert done.code == 3, done
    assert str(deep) in done.out
    assert product("status").code == 3
    product.configure("[jobs.job]", f'[jobs.job]\nmay-miss = ["{deep}"]')
    done = product("run")
    assert done.code == 0, done
    assert product("status").code == 0
    assert str(product.source / "file") in product.root("ls", "latest").out


def test_a_missing_source_may_be_missed(product: Product) -> None:
    product.configure(f'["{product.source}"]', f'["{product.source}", "/srv/is/not/there"]')
    assert product("run").code == 3
    product.configure("[jobs.job]", '[jobs.job]\nmay-miss = ["/srv/is/not/there"]')
    done = product("run")
    assert done.code == 0, done


def test_a_file_that_vanishes_in_between_is_named_and_forgiven(product: Product) -> None:
    # The engine reads two files at a time, has opened the third at most, and knows of the last.
    busy = (product.source / "a", product.source / "b")
    for path in busy:
        random_file(path, 64)
    for name in ("c", "d", "e", "z-gone"):
        (product.source / name).write_text(name)
    running, engine = halted_while_reading(product, *busy)
    (product.source / "z-gone").unlink()
    os.kill(engine, signal.SIGCONT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, (out, err)
    named = findings(out.decode(), "fleeting")
    assert [(m["path"], m["cause"]) for m in named] == [
        (str(product.source / "z-gone"), "vanished")
    ]
    assert str(product.source / "e") in product.root("ls", "latest").out


def test_a_file_that_shrinks_while_it_is_read_is_kept_as_far_as_it_was_read(
    product: Product,
) -> None:
    big = product.source / "big"
    random_file(big, 128)
    running, engine = halted_while_reading(product, big)
    os.truncate(big, 1000)
    os.kill(engine, signal.SIGCONT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, (out, err)
    target = f"{product.home.base}/back"
    assert product.root("restore", "latest", str(big), "--to", target).code == 0
    restored = Path(f"{target}{big}").read_bytes()
    assert 1000 < len(restored) < 128 << 20
    assert restored[:1000] == big.read_bytes()


def test_without_its_canary_nothing_is_started_until_it_is_applied_anew(product: Product) -> None:
    canary = Path(product.home.places.canary)

    def emptied() -> None:
        canary.write_text("")

    def elsewhere() -> None:
        canary.unlink()
        canary.symlink_to("/srv/is/not/there")

    for harm in (canary.unlink, emptied, elsewhere):
        harm()
        done = product("run", "--json")
        assert done.code == 18, done
        end = findings(done.out, "end")[0]
        assert str(canary) in str(end["text"])
        assert [m["process"] for m in findings(done.out, "proof") if m["process"] == "engine"] == []
        assert snapshots(product, "repo") == 0
        product.home.apply(product.home.plan)
        assert canary.stat().st_size > 0
    assert product("run").code == 0


def test_an_exclude_that_hides_the_canary_is_noticed(product: Product) -> None:
    canary = product.home.places.canary
    product.configure("[jobs.job]", f'[jobs.job]\nexclude = ["{canary}"]')
    done = product("run")
    assert done.code == 3, done
    assert f"{canary}, which every snapshot must hold, is not in it" in done.out


def test_a_sparse_file_comes_back_sparse(product: Product) -> None:
    programs = restic_programs()
    product.configure(str(programs["0.14"]), str(programs["0.18"]))  # older ones fill the holes
    sparse = product.source / "sparse"
    with open(sparse, "wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"end")
    assert product("run").code == 0
    target = f"{product.home.base}/back"
    restored = product.root("restore", "latest", str(sparse), "--to", target)
    assert restored.code == 0, restored
    back = Path(f"{target}{sparse}")
    assert back.read_bytes() == sparse.read_bytes()
    assert back.stat().st_blocks * 512 < 16 << 20
