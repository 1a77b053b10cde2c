"""What counts as weaker than a grant."""

import pytest

from capkeep.host import bubblewrap, hardening
from capkeep.kernel.facts import NAMESPACES, OVERFLOW_ID, Facts, capability_names
from capkeep.plan.model import Grant, Mode, Room, RoomKind, Starter, Walls
from capkeep.rooms.proof import ENGINE, judge, weaknesses
from capkeep.values import MAY_BE_MISSING

READ = "CAP_DAC_READ_SEARCH"
SETS = ("inheritable", "permitted", "effective", "bounding", "ambient")
GRANT = Grant("capkeep-reader", 900, 901, capabilities=(READ,), write=("/var/cache/capkeep/r",))
GOOD = Facts(
    pid=2, uids=(900,) * 4, gids=(901,) * 4, groups=(), inheritable=(READ,), permitted=(READ,),
    effective=(READ,), bounding=(READ,), ambient=(READ,), no_new_privs=True, seccomp=2,
    seccomp_filters=1, landlock=7, namespaces=tuple((n, 7) for n in NAMESPACES),
    separated=("cgroup", "ipc", "mnt", "net", "pid", "uts"), interfaces=("lo",),
    writable=("/dev/null", "/var/cache/capkeep/r"), dumpable=False,
)  # fmt: skip


# As a unit makes it: systemd's filters beside capkeep's own, and its mounts of /proc and /dev/pts.
OF_UNIT = GOOD._replace(
    seccomp_filters=30,
    proc=("hidepid=invisible", "subset=pid"),
    separated=("ipc", "mnt", "net", "user", "uts"),
    writable=(*GOOD.writable, *hardening.LEFT_WRITABLE_FOR_NOTHING),
)
UNIT = Walls(
    ("mnt", "ipc", "uts", "net", "user"), hardening.LEFT_WRITABLE_FOR_NOTHING, Starter.SYSTEMD
)


def weak(facts: Facts, grant: Grant = GRANT, mode: Mode = Mode.SYSTEM, who: str = "room") -> str:
    walls = bubblewrap.walls(grant, mode)
    return "; ".join(judge(facts, Room("r", RoomKind.READER, grant), walls, mode, who).weaker)


def in_unit(
    facts: Facts, *accepted: str, who: str = "room"
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    room = Room("r", RoomKind.READER, GRANT)
    return judge(facts, room, UNIT._replace(accepted=accepted), Mode.SYSTEM, who)


def test_facts_as_granted_are_not_weaker() -> None:
    assert weak(GOOD) == ""


@pytest.mark.parametrize("position", range(4))
def test_each_user_and_group_id_counts(position: int) -> None:
    wrong = tuple(0 if i == position else 900 for i in range(4))
    assert "uid 0" in weak(GOOD._replace(uids=wrong))
    assert "gid 0" in weak(GOOD._replace(gids=tuple(901 * (i != position) for i in range(4))))


def test_a_further_group_counts_and_ones_own_does_not() -> None:
    assert "groups not granted: 42" in weak(GOOD._replace(groups=(901, 42)))
    assert weak(GOOD._replace(groups=(901,))) == ""


def test_groups_of_a_user_that_is_lent_are_granted_and_no_others() -> None:
    lent = GRANT._replace(groups=(42,))
    assert weak(GOOD._replace(groups=(42, 901)), lent) == ""
    assert "groups not granted: 43" in weak(GOOD._replace(groups=(42, 43)), lent)
    assert "groups not granted: 65534" in weak(GOOD._replace(groups=(OVERFLOW_ID,)), lent)
    far = GRANT._replace(groups=(70_000,))  # it has no number in a user namespace of systemd 257
    assert weak(GOOD._replace(groups=(OVERFLOW_ID,)), far) == ""


def test_only_in_user_mode_groups_from_outside_are_accepted() -> None:
    assert str(OVERFLOW_ID) in weak(GOOD._replace(groups=(OVERFLOW_ID,)))
    user = GOOD._replace(groups=(OVERFLOW_ID,), separated=(*GOOD.separated, "user"))
    assert weak(user, mode=Mode.USER) == ""


@pytest.mark.parametrize("name", SETS)
def test_a_capability_missing_or_extra_in_any_set_counts(name: str) -> None:
    assert f"{READ} missing from the {name} set" in weak(GOOD._replace(**{name: ()}))
    more = weak(GOOD._replace(**{name: (READ, "CAP_SYS_ADMIN")}))
    assert more == f"CAP_SYS_ADMIN not granted but in the {name} set"


def test_no_new_privs_and_the_filter_count() -> None:
    assert "NoNewPrivs" in weak(GOOD._replace(no_new_privs=False))
    assert "system call filter" in weak(GOOD._replace(seccomp=0))
    assert "system call filter" in weak(GOOD._replace(seccomp=1))


@pytest.mark.parametrize("name", ["mnt", "pid", "ipc", "uts", "net"])
def test_a_namespace_of_the_host_counts(name: str) -> None:
    shared = tuple(n for n in GOOD.separated if n != name)
    assert weak(GOOD._replace(separated=shared)) == f"the {name} namespace is the host's"


def test_cgroup_need_not_be_separated() -> None:
    assert weak(GOOD._replace(separated=tuple(n for n in GOOD.separated if n != "cgroup"))) == ""


def test_user_mode_needs_a_user_namespace() -> None:
    assert "user namespace" in weak(GOOD, mode=Mode.USER)


def test_what_cannot_be_read_counts_except_for_an_engine() -> None:
    blind = GOOD._replace(namespaces=(), separated=())
    assert "the net namespace cannot be read" in weak(blind)
    assert weak(blind, who="engine") == ""
    assert "is the host's" in weak(GOOD._replace(separated=()), who="engine")


def test_a_network_granted_may_be_there() -> None:
    facts = GOOD._replace(
        interfaces=("lo", "eth0"), separated=tuple(n for n in GOOD.separated if n != "net")
    )
    assert weak(facts, GRANT._replace(network=True)) == ""
    assert "interfaces: eth0" in weak(facts)


def test_a_writable_mount_not_granted_counts() -> None:
    assert weak(GOOD._replace(writable=("/", *GOOD.writable))) == "/ is mounted writable"
    assert "/proc is" in weak(GOOD._replace(writable=("/proc",)))


def test_capabilities_have_names_and_new_ones_a_number() -> None:
    assert capability_names(0b100) == (READ,)
    assert capability_names(1 << 40 | 1 << 41) == ("CAP_CHECKPOINT_RESTORE", "CAP_41")


def test_a_unit_as_it_should_be_is_not_weak() -> None:
    assert in_unit(OF_UNIT) == ((), ())
    assert in_unit(OF_UNIT, "PrivateNetwork") == ((), ())


WITHOUT = {
    "PrivateNetwork": {"separated": ("ipc", "mnt", "user", "uts"), "interfaces": ("lo", "eth0")},
    "PrivateMounts": {"separated": ("ipc", "net", "user", "uts")},
    "PrivateIPC": {"separated": ("mnt", "net", "user", "uts")},
    "ProtectHostname": {"separated": ("ipc", "mnt", "net", "user")},
    "PrivateUsers": {"separated": ("ipc", "mnt", "net", "uts")},
    "SystemCallFilter": {"seccomp_filters": 1},
    "ProtectProc": {"proc": ("subset=pid",)},
    "ProcSubset": {"proc": ("hidepid=2",)},
    "ProtectSystem": {"writable": (*OF_UNIT.writable, "/", "/usr")},
    "ProtectHome": {"writable": (*OF_UNIT.writable, "/home", "/root/x", "/run/user/1000")},
    "PrivateDevices": {"writable": (*OF_UNIT.writable, "/dev")},
    "InaccessiblePaths": {"writable": (*OF_UNIT.writable, "/tmp", "/var/tmp")},
    "ProtectControlGroups": {"writable": (*OF_UNIT.writable, "/sys/fs/cgroup")},
    "ProtectKernelTunables": {"writable": (*OF_UNIT.writable, "/sys", "/proc/sys")},
    "TemporaryFileSystem": {"writable": (*OF_UNIT.writable, "/run", "/run/lock", "/dev/shm")},
    "BindReadOnlyPaths": {"writable": (*OF_UNIT.writable, "/run/room/src/srv")},
}


def test_every_directive_that_may_be_missing_is_tried_here() -> None:
    assert set(WITHOUT) == set(MAY_BE_MISSING)


@pytest.mark.parametrize("directive", MAY_BE_MISSING)
def test_what_a_unit_lacks_is_named_by_its_directive(directive: str) -> None:
    facts = OF_UNIT._replace(**WITHOUT[directive])
    weaker, accepted = in_unit(facts)
    assert weaker and not accepted
    assert all(sentence.endswith(f"({directive}= was not applied)") for sentence in weaker)


@pytest.mark.parametrize("directive", MAY_BE_MISSING)
def test_what_is_accepted_by_name_is_told_and_does_not_count(directive: str) -> None:
    facts = OF_UNIT._replace(**WITHOUT[directive])
    weaker, accepted = in_unit(facts, directive)
    assert not weaker
    assert accepted and all(f"({directive}=)" in sentence for sentence in accepted)
    other = next(name for name in MAY_BE_MISSING if name != directive)
    assert in_unit(facts, other)[0]


def test_what_makes_a_room_unprivileged_is_named_too() -> None:
    facts = OF_UNIT._replace(
        uids=(0,) * 4, gids=(0,) * 4, groups=(42,), no_new_privs=False, ambient=(),
        bounding=(READ, "CAP_SYS_ADMIN"),
    )  # fmt: skip
    room = Room("r", RoomKind.READER, GRANT)
    named = [w.directive for w in weaknesses(facts, room, UNIT, Mode.SYSTEM, "room")]
    assert named == [
        "User", "Group", "SupplementaryGroups", "CapabilityBoundingSet", "AmbientCapabilities",
        "NoNewPrivileges",
    ]  # fmt: skip
    assert not {*named} & {*MAY_BE_MISSING}


def test_an_engine_has_two_filters_of_our_own() -> None:
    assert in_unit(OF_UNIT._replace(seccomp_filters=2))[0] == ()
    assert "SystemCallFilter" in in_unit(OF_UNIT._replace(seccomp_filters=2), who=ENGINE)[0][0]


def test_a_kernel_that_does_not_count_filters_is_believed() -> None:
    assert in_unit(OF_UNIT._replace(seccomp_filters=0))[0] == ()


def test_where_systemd_does_not_start_rooms_no_directive_is_named() -> None:
    assert "=" not in weak(GOOD._replace(separated=(), interfaces=("eth0",), writable=("/",)))
