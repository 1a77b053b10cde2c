"""Pulling, with everything real but the second machine: sshd, answerer, reader, engine, puller, vault."""

from collections.abc import Iterator

import pytest

from tests.rooms.pullkit import READERS, Pair, pair


@pytest.fixture(scope="module")
def pulled() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.mark.parametrize("job", READERS)
def test_every_engine_backs_another_host_up(pulled: Pair, job: str) -> None:
    for _ in range(2):
        ended = pulled.run(job)
        assert ended["outcome"] == "complete", (ended, pulled.server.said(), pulled.target.said())
