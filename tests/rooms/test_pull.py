"""Pulling, with everything real but the second machine: sshd, answerer, reader, engine, puller, vault."""

from collections.abc import Iterator

import pytest

from tests.rooms.pullkit import Pair, pair, result


@pytest.fixture(scope="module")
def pulled() -> Iterator[Pair]:
    with pair() as made:
        yield made


def test_a_backup_of_another_host(pulled: Pair) -> None:
    said = pulled.run()
    ended = result(said)
    assert ended["outcome"] == "complete", (said, pulled.server.said(), pulled.target.said())
