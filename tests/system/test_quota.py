"""A repository that may not grow beyond its quota: what would make it do so is refused, and said."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.rooms.house import house
from tests.system.conftest import Product


@pytest.fixture
def both() -> Iterator[Product]:
    """A job with a repository of each engine that knows quotas."""
    with house() as home:
        product = Product(home)
        product.configure(
            "[engines.restic]",
            f'[repositories.borg]\nengine = "borg"\nlocation = "{home.base}/repositories/borg"\n'
            f'password = {{ file = "{home.base}/etc/secrets/repo" }}\nquota = "3MiB"\n'
            "[engines.restic]",
        )
        product.configure('engine = "restic"\n', 'engine = "restic"\nquota = "3MiB"\n')
        product.configure('repositories = ["repo"]', 'repositories = ["borg", "repo"]')
        with home.doors():
            made = product("init")
            assert made.code == 0, made
            yield product


def kept(product: Product) -> dict[str, int]:
    found = json.loads(product("snapshots", "--json").out)
    return {one["repository"]: len(one["snapshots"]) for one in found}


def test_what_would_be_too_much_is_refused_and_what_was_there_stays(both: Product) -> None:
    product = both
    done = product("run")
    assert done.code == 0, done
    big = product.source / "big"
    big.write_bytes(os.urandom(4 << 20))
    done = product("run", "--json")
    assert done.code == 14, done
    ended = {
        m["repository"]: m
        for m in map(json.loads, done.out.splitlines())
        if m["event"] == "step-end" and m["kind"] == "backup"
    }
    assert {m["failure"] for m in ended.values()} == {"no-space"}, ended
    assert "may have 3MiB" in ended["repo"]["text"]
    assert "quota" in ended["borg"]["text"]
    assert kept(product) == {"borg": 1, "repo": 1}
    big.unlink()
    (product.source / "small").write_text("fits\n")
    done = product("run")
    assert done.code == 0, done
    assert kept(product) == {"borg": 2, "repo": 2}
    assert product("check").code == 0
