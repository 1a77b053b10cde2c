"""Drills of snapshots that are not restic's."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import tree
from tests.contract.fidelity import ROWS
from tests.rooms.house import house
from tests.system.conftest import Product
from tests.system.scenes import random_file
from tests.system.test_drill import drilled, furnish, part, scratch
from tests.system.test_drill_manifest import settle_at_once, write

ENGINES = ("borg", "rdiff-backup")


@pytest.fixture(params=ENGINES)
def other(request: pytest.FixtureRequest) -> Iterator[Product]:
    """A fresh installation with a repository of that engine."""
    with house() as home:
        config = Path(home.base, "etc/capkeep.toml")
        text = config.read_text().replace('engine = "restic"', f'engine = "{request.param}"')
        if request.param == "rdiff-backup":
            text = "".join(line for line in text.splitlines(True) if "password" not in line)
        config.write_text(text)
        home.apply(home.compiled())
        with home.doors():
            product = Product(home)
            made = product("init")
            assert made.code == 0, made
            yield product


def test_owners_and_all_come_back_and_content_that_rots_is_found(other: Product) -> None:
    furnish(other.source)
    random_file(other.source / "random", 4)
    drilled(other)
    time.sleep(0.2)  # the files have not changed since the backup begins
    assert other("run").code == 0
    for words in ((), ("--all",)):
        done = other("drill", "--json", *words)
        assert done.code == 0, (done, other.home.said())
        facts = part(done)
        assert facts["apart"] == {"owners": 1, "devices": 1, "attributes": 1}, facts
        live, entries = facts["live"], facts["entries"]
        assert isinstance(live, dict)
        assert isinstance(entries, int)
        # All but the FIFO, and directories, are compared with the live files: nothing has changed since.
        assert set(live) == {"same"}, facts
        assert live["same"] == (entries - 1 if not words else 11), facts
        assert not scratch(other).exists()
    largest = max(
        (p for p in other.repository.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    with open(largest, "r+b") as file:
        file.seek(2 << 20)
        file.write(os.urandom(1000))
    done = other("drill", "--all", "--json")
    assert done.code == 13, done
    assert not scratch(other).exists()


@pytest.mark.parametrize("other", ["borg"], indirect=True)
def test_files_that_have_changed_are_compared_with_what_was_read(other: Product) -> None:
    settle_at_once(other)
    drilled(other)
    write(other.source, ("one", "two \u00e9\n", "late"), "as it was\n")
    (other.source / "a\udcff").write_text("not to be asked for by its name")
    time.sleep(0.2)  # the files have not changed since the backup begins
    assert other("run").code == 0
    for path in other.source.iterdir():
        path.write_text("changed since\n")
    drill = other("drill", "--json")
    assert drill.code == 0, drill
    facts = part(drill)
    assert (facts["manifest"], facts["manifest_differing"]) == (5, 0), "with the canary"


def test_a_tree_of_every_kind_is_as_it_should_be(other: Product) -> None:
    """What a drill counts apart is what it is with restic (docs/reference/fidelity.md), but for two things."""
    top = other.source / "tree"
    top.mkdir()
    tree.make(top)
    drilled(other, 'depth = "all"\n')
    time.sleep(0.2)
    assert other("run").code == 0
    done = other("drill", "--json")
    assert done.code == 0, done
    apart: Counter[str] = Counter()
    for row in ROWS:
        apart.update(dict([row.drilled.apart] if row.drilled.apart else []))
    if other.home.compiled().repositories[0].engine == "rdiff-backup":
        apart.update(devices=1)  # it lists the socket
        del apart["names"]  # and can be asked for any name
    facts = part(done)
    assert facts["apart"] == apart, facts
    assert set(facts["live"]) == {"same"}, facts


def test_a_further_name_of_a_file_is_no_way_around(other: Product) -> None:
    """Of a file with two names the second alone is to be looked at."""
    first, second, beside = (other.source / name for name in ("first", "second", "beside"))
    first.write_bytes(os.urandom(1000))
    os.link(first, second)
    beside.write_bytes(os.urandom(1001))
    line = f'include = ["{other.source}"]\n'
    names = f'["{second}", "{other.source}/file"]'
    other.configure(line, f"{line}[jobs.job.drill]\nsample = 1\nalways = {names}\n")
    assert other("run").code == 0
    is_borg = other.home.compiled().repositories[0].engine == "borg"
    first.write_bytes(b"changed since")
    for seed in map("{:08x}".format, range(40)):
        done = other("drill", "--json", "--seed", seed)
        assert done.code == 0, done
        facts = part(done)
        if facts["bytes"] == 1001 + 5 + (0 if is_borg else 1000):
            break  # the sample is what lies beside
    else:
        pytest.fail("the first name is in every sample")
    assert facts["apart"] == ({"links": 1} if is_borg else {}), facts
    if not is_borg:
        with open(other.repository / str(second).lstrip("/"), "r+b") as file:
            file.write(os.urandom(100))
        done = other("drill", "--json", "--seed", seed)
        assert done.code == 13, done
