"""Where systemd runs the machine: every attempt succeeds without a room, and in none of its rooms."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.attack.attempts import BOOTED_ATTEMPTS
from tests.attack.booted import CONTROLS, RECIPES, ROOMS, all_names
from tests.attack.runs import Results
from tests.host import host_filters
from tests.lab import attacked, trees

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(500)]
# A kernel need not have these; then there is nothing to be had, in a room or without.
OPTIONAL = {"vm-socket", "crypto-socket", "use-the-32-bit-calls", "read-disk-through-node"}


class Attacked(NamedTuple):
    """A release, and what came of everything there."""

    suite: str
    results: dict[str, Results]


@pytest.fixture(scope="module", params=trees.SUITES)
def found(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    if host_filters():
        # Attempts are stopped, and witnesses blinded, before a room of ours has a say.
        why = "NOT SHOWN HERE: a system call filter around this host stops attempts before rooms do"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    with attacked.machine(request.param) as machine:
        yield Attacked(request.param, attacked.attack(machine))


def test_each_attempt_succeeds_without_a_room(found: Attacked) -> None:
    without, root = (found.results[column] for column in CONTROLS)
    failed = {n: o.said for n, o in without.items() if not o.got and not root[n].got}
    assert failed.keys() <= OPTIONAL, failed


def test_what_it_says_is_what_is_seen(found: Attacked) -> None:
    """The two witnesses agree where there is nothing in between, so they can be believed."""
    for column in CONTROLS:
        results = found.results[column]
        apart = {n: o for n, o in results.items() if o.inside != o.outside}
        assert apart.keys() <= {"silence-the-vault"}, (column, apart)


@pytest.mark.parametrize("room", ROOMS)
def test_no_way_out_of(room: str, found: Attacked) -> None:
    results = found.results[room]
    assert results.keys() == set(all_names())
    assert attacked.escaped({room: results}) == {}
    silent = {n for n, o in results.items() if "never reported" in o.said}
    assert not silent, "each attempt must have been tried"


def test_what_people_do_today_lets_much_through(found: Attacked) -> None:
    setcap, hardened = ({n for n, o in found.results[c].items() if o.got} for c in RECIPES)
    assert len(setcap) > len(all_names()) / 2
    services = {a.name for a in BOOTED_ATTEMPTS}
    assert hardened & services, "the services of the host are open to a hardened unit"
    assert {"read-secret-file", "read-process-memory", "delete-from-vault"} <= hardened
