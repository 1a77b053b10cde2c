"""What the reference says of engines is what the contract declares."""

import pytest

from capkeep.engines import MODULES
from tests.contract import fidelity, table
from tests.contract.contract import CONTRACT
from tests.contract.declared import CONTESTANTS, YES
from tests.contract.page import Page
from tools.engines import BORGS, ENGINES


@pytest.mark.parametrize(
    "page, text", [(table.PAGE, table.text()), (fidelity.PAGE, fidelity.text())]
)
def test_the_reference_shows_what_is_declared(page: Page, text: str) -> None:
    _, inside, _ = page.split()
    assert inside == text, f"write it anew: python -m {page.module}"


def test_every_difference_is_of_an_engine_that_takes_part_and_said_once() -> None:
    for name, one in CONTRACT.items():
        named = [engine for d in one.differences for engine in d.engines]
        assert set(named) <= set(CONTESTANTS), name
        assert len(named) == len(set(named)), name
        assert all(d.instead != YES and "|" not in d.instead for d in one.differences), name
        assert len(one.sentence) <= 100, name


def test_every_engine_that_is_promised_takes_part() -> None:
    promised = [f"restic {e.name}" for e in ENGINES if e.package == "restic"]
    promised += [f"borg {'.'.join(map(str, b.at_least))}" for b in BORGS]
    assert list(CONTESTANTS) == [*promised, "rdiff-backup 2.2"]
    assert {name.rpartition(" ")[0] for name in CONTESTANTS} == set(MODULES)
