"""What counts as weaker than a grant."""

import pytest

from capkeep.kernel.facts import NAMESPACES, Facts, capability_names
from capkeep.plan.model import Grant, Mode, Room, RoomKind
from capkeep.rooms.proof import UNMAPPED, weaker

READ = "CAP_DAC_READ_SEARCH"
SETS = ("inheritable", "permitted", "effective", "bounding", "ambient")
GRANT = Grant("capkeep-reader", 900, 901, capabilities=(READ,), write=("/var/cache/capkeep/r",))
GOOD = Facts(
    pid=2, uids=(900,) * 4, gids=(901,) * 4, groups=(), inheritable=(READ,), permitted=(READ,),
    effective=(READ,), bounding=(READ,), ambient=(READ,), no_new_privs=True, seccomp=2,
    seccomp_filters=1, namespaces=tuple((n, 7) for n in NAMESPACES),
    separated=("cgroup", "ipc", "mnt", "net", "pid", "uts"), interfaces=("lo",),
    writable=("/dev/null", "/var/cache/capkeep/r"), dumpable=False,
)  # fmt: skip


def judge(facts: Facts, grant: Grant = GRANT, mode: Mode = Mode.SYSTEM, who: str = "room") -> str:
    return "; ".join(weaker(facts, Room("r", RoomKind.READER, grant), mode, who))


def test_facts_as_granted_are_not_weaker() -> None:
    assert judge(GOOD) == ""


@pytest.mark.parametrize("position", range(4))
def test_each_user_and_group_id_counts(position: int) -> None:
    wrong = tuple(0 if i == position else 900 for i in range(4))
    assert "uid 0" in judge(GOOD._replace(uids=wrong))
    assert "gid 0" in judge(GOOD._replace(gids=tuple(901 * (i != position) for i in range(4))))


def test_a_further_group_counts_and_ones_own_does_not() -> None:
    assert "groups not granted: 42" in judge(GOOD._replace(groups=(901, 42)))
    assert judge(GOOD._replace(groups=(901,))) == ""


def test_only_in_user_mode_groups_from_outside_are_accepted() -> None:
    assert str(UNMAPPED) in judge(GOOD._replace(groups=(UNMAPPED,)))
    user = GOOD._replace(groups=(UNMAPPED,), separated=(*GOOD.separated, "user"))
    assert judge(user, mode=Mode.USER) == ""


@pytest.mark.parametrize("name", SETS)
def test_a_capability_missing_or_extra_in_any_set_counts(name: str) -> None:
    assert f"{READ} missing from the {name} set" in judge(GOOD._replace(**{name: ()}))
    more = judge(GOOD._replace(**{name: (READ, "CAP_SYS_ADMIN")}))
    assert more == f"CAP_SYS_ADMIN not granted but in the {name} set"


def test_no_new_privs_and_the_filter_count() -> None:
    assert "NoNewPrivs" in judge(GOOD._replace(no_new_privs=False))
    assert "system call filter" in judge(GOOD._replace(seccomp=0))
    assert "system call filter" in judge(GOOD._replace(seccomp=1))


@pytest.mark.parametrize("name", ["mnt", "pid", "ipc", "uts", "net"])
def test_a_namespace_of_the_host_counts(name: str) -> None:
    shared = tuple(n for n in GOOD.separated if n != name)
    assert judge(GOOD._replace(separated=shared)) == f"the {name} namespace is the host's"


def test_cgroup_need_not_be_separated() -> None:
    assert judge(GOOD._replace(separated=tuple(n for n in GOOD.separated if n != "cgroup"))) == ""


def test_user_mode_needs_a_user_namespace() -> None:
    assert "user namespace" in judge(GOOD, mode=Mode.USER)


def test_what_cannot_be_read_counts_except_for_an_engine() -> None:
    blind = GOOD._replace(namespaces=(), separated=())
    assert "the net namespace cannot be read" in judge(blind)
    assert judge(blind, who="engine") == ""
    assert "is the host's" in judge(GOOD._replace(separated=()), who="engine")


def test_a_network_granted_may_be_there() -> None:
    facts = GOOD._replace(
        interfaces=("lo", "eth0"), separated=tuple(n for n in GOOD.separated if n != "net")
    )
    assert judge(facts, GRANT._replace(network=True)) == ""
    assert "interfaces: eth0" in judge(facts)


def test_a_writable_mount_not_granted_counts() -> None:
    assert judge(GOOD._replace(writable=("/", *GOOD.writable))) == "/ is mounted writable"
    assert "/proc is" in judge(GOOD._replace(writable=("/proc",)))


def test_capabilities_have_names_and_new_ones_a_number() -> None:
    assert capability_names(0b100) == (READ,)
    assert capability_names(1 << 40 | 1 << 41) == ("CAP_CHECKPOINT_RESTORE", "CAP_41")
