"""borg keeps the contract."""

import pytest

from tests.contract.contract import CONTRACT
from tests.contract.declared import BORG
from tests.contract.scenes import Scenes

pytestmark = pytest.mark.timeout(400)  # the first to need a scene waits for all of it


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("engine", BORG, scope="module")
def test_contract(scenes: Scenes, engine: str, name: str) -> None:
    assert CONTRACT[name].observe(scenes) == CONTRACT[name].expected(engine)
