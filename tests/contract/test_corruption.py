"""The table of what finds which damage is true: one kind of file of each engine is tried again."""

import pytest

from tests.contract import corruption

TRIED = (
    ("restic 0.18", "pack of contents"),
    ("restic 0.18", "snapshot"),
    ("borg 1.4", "segment of contents"),
    ("rdiff-backup 2.2", "file of the mirror"),
)


@pytest.mark.parametrize("engine, kind", TRIED)
def test_the_table_says_what_is_found(engine: str, kind: str) -> None:
    told = corruption.told()
    assert {(e, k) for e, k, _ in told} >= set(TRIED)
    found = corruption.measure(engine, kind)
    assert found == {(k, d): said for (e, k, d), said in told.items() if (e, k) == (engine, kind)}
