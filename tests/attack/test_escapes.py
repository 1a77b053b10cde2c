"""Every attempt succeeds without a room, and in no room unless that is the room's purpose."""

from collections.abc import Iterator

import pytest

from capkeep.kernel import landlock
from tests.attack import layers, table
from tests.attack.attempts import ATTEMPTS
from tests.attack.runs import ROOMS, Results, Stage, all_names, stage
from tests.engines import restic_programs
from tests.host import host_filters

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]
# A kernel need not have these; then there is nothing to be had, in a room or without.
OPTIONAL = {"vm-socket", "crypto-socket", "use-the-32-bit-calls", "read-disk-through-node"}
# What a container's system call filter may stop for everybody in it, our outside witness included.
STOPPED_BY_HOST = {
    "steal-descriptor", "open-by-handle", "store-in-keyring", "load-bpf", "watch-performance",
}  # fmt: skip
SEEN_BY_STEALING = {"kernel-socket", "vm-socket", "crypto-socket", "packet-socket"}
# What only a newer Landlock stops: the table for people says the same, layer by layer.
NEEDS_SCOPES = {(room, "abstract-socket") for room in ("vault", "notifier", "puller", "link")}
NEEDS_LANDLOCK = {
    ("reader", "write-to-fifo"),
    ("user", "write-to-fifo"),
    ("user", "look-at-descriptors"),
}


def granted_here() -> set[tuple[str, str]]:
    """What gets through on this host, and is said to."""
    found = set(table.GRANTED)
    found |= NEEDS_SCOPES if landlock.abi() < 6 else set()
    found |= NEEDS_LANDLOCK if landlock.abi() < 1 else set()
    return found


@pytest.fixture(scope="module")
def ready() -> Iterator[Stage]:
    with stage(str(list(restic_programs().values())[-1])) as made:
        yield made


@pytest.fixture(scope="module")
def controls(ready: Stage) -> tuple[Results, Results, Results]:
    return table.run_controls(ready)


def test_there_are_enough_of_them() -> None:
    assert len({a.name for a in ATTEMPTS}) == len(ATTEMPTS) >= 30


def test_each_attempt_succeeds_without_a_room(controls: tuple[Results, Results, Results]) -> None:
    without, root, _ = controls
    failed = {n: o.said for n, o in without.items() if not o.got and not root[n].got}
    assert failed.keys() <= OPTIONAL | (STOPPED_BY_HOST if host_filters() else set()), failed


def test_what_it_says_is_what_is_seen(controls: tuple[Results, Results, Results]) -> None:
    """The two witnesses agree where there is nothing in between, so they can be believed."""
    unseen = {"silence-the-vault"} | (SEEN_BY_STEALING if host_filters() else set())
    for results in controls[:2]:
        apart = {n: o for n, o in results.items() if o.inside != o.outside and n not in unseen}
        assert apart == {}


def test_what_people_do_today_lets_most_of_them_through(
    controls: tuple[Results, Results, Results],
) -> None:
    assert sum(o.got for o in controls[2].values()) > len(ATTEMPTS) / 2


@pytest.mark.parametrize("room", ROOMS)
def test_no_way_out_of(room: str, ready: Stage) -> None:
    results = ready.run(room, all_names())
    escaped = {n: o for n, o in results.items() if o.got and (room, n) not in granted_here()}
    assert escaped == {}
    silent = {n for n, o in results.items() if "never reported" in o.said}
    assert not silent, "each attempt must have been tried"


@pytest.mark.skipif(not landlock.abi(), reason="this host offers no Landlock")
def test_the_older_landlock_of_debian_12_is_enough_for_a_reader(ready: Stage) -> None:
    with layers.without(ready, layers.DEBIAN_12):
        assert layers.escaped("reader", ready.run("reader", all_names())) == ()


def test_the_filters_are_what_stops_some_of_them(
    ready: Stage, controls: tuple[Results, Results, Results]
) -> None:
    """Else they would be there for nothing."""
    filtered = ("open-by-handle", "socket-on-source", "set-up-io-uring", "store-in-keyring")
    without, root, _ = controls
    names = tuple(n for n in filtered if without[n].got or root[n].got)
    assert "socket-on-source" in names
    with layers.without(ready, layers.LAYERS[-1]):
        assert layers.escaped("reader", ready.run("reader", names)) == names


def test_landlock_is_what_stops_some_of_them(ready: Stage) -> None:
    with layers.without(ready, layers.LAYERS[1]):
        assert layers.escaped("reader", ready.run("reader", ("write-to-fifo",))) == (
            "write-to-fifo",
        )
