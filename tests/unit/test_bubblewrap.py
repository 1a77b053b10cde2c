"""A room's command line, as words: what each kind of room gets, and what none ever does."""

import pytest

from capkeep.host.bubblewrap import BUILDERS, render
from capkeep.plan.model import Grant, Mode, Places, Plan, Repository, Room, RoomKind, View

READ = ("CAP_DAC_READ_SEARCH",)
RESTORE = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP", "CAP_MKNOD")
PLACES = Places("/k/etc", "/k/state", "/k/cache", "/k/log", "/k/run")
HOSTILE = "/k/cache/a --bind / / \n$(id)"


def room(kind: RoomKind) -> Room:
    grant = Grant(user="u", uid=61001, gid=61002, write=(f"/k/cache/{kind}",))
    if kind is RoomKind.READER:
        grant = grant._replace(
            capabilities=READ, view=View.HOST, sources=("/",), hide=("/k/cache",)
        )
    elif kind is RoomKind.RESTORER:
        grant = grant._replace(capabilities=RESTORE)
    repository = "" if kind is RoomKind.RUNNER else "repo"
    return Room(name=str(kind), kind=kind, grant=grant, repository=repository)


def plan(mode: Mode = Mode.SYSTEM) -> Plan:
    repository = Repository("repo", "restic", "/k/repo", "/usr/bin/restic")
    return Plan(mode, PLACES, 61000, "/usr/bin/python3", "/k/lib", (repository,), (), (), "1")


def words(kind: RoomKind, mode: Mode = Mode.SYSTEM, stage: str = "", target: str = "") -> list[str]:
    return list(render(room(kind), plan(mode), stage, target).argv)


def pairs(argv: list[str], option: str) -> list[tuple[str, str]]:
    return [(argv[n + 1], argv[n + 2]) for n, word in enumerate(argv) if word == option]


def values(argv: list[str], option: str) -> list[str]:
    return [argv[n + 1] for n, word in enumerate(argv) if word == option]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("kind", list(RoomKind))
def test_what_every_room_has(kind: RoomKind, mode: Mode) -> None:
    command = render(room(kind), plan(mode), "")
    argv = list(command.argv)
    for word in ("--die-with-parent", "--new-session", "--unshare-pid", "--unshare-ipc",
                 "--unshare-uts"):  # fmt: skip
        assert word in argv[: argv.index("--")]
    assert "--unshare-net" in argv
    assert {"/run", "/proc", "/dev"} <= set(values(argv, "--remount-ro"))
    assert pairs(argv, "--bind") == [(f"/k/cache/{kind}",) * 2], "and nothing else is writable"
    assert dict(command.env) == {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    python = argv.index("/usr/bin/python3", argv.index("--"))
    assert argv[python + 1 : python + 4] == ["-I", "-S", "-c"]
    if kind is not RoomKind.READER:
        assert "/" in values(argv, "--remount-ro")


@pytest.mark.parametrize("kind", list(RoomKind))
def test_a_room_keeps_the_capabilities_of_its_grant_and_no_other(kind: RoomKind) -> None:
    argv = words(kind)
    granted = {RoomKind.READER: READ, RoomKind.RESTORER: RESTORE}.get(kind, ())
    assert values(argv, "--cap-drop") == ["ALL"]
    assert values(argv, "--cap-add") == [*BUILDERS, *granted]
    become = argv[argv.index("/usr/bin/setpriv") :]
    kept = ",".join(["-all", *(f"+{c.removeprefix('CAP_').lower()}" for c in granted)])
    assert become[:9] == [
        "/usr/bin/setpriv", "--reuid=61001", "--regid=61002", "--clear-groups",
        f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}",
        "--no-new-privs", "--",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", list(RoomKind))
def test_user_mode_has_a_user_namespace_and_its_limit_inside(kind: RoomKind) -> None:
    argv = words(kind, Mode.USER)
    assert "--unshare-user" in argv
    assert "--cap-add" not in argv
    assert argv[argv.index("--") + 1 : argv.index("--") + 4] == [
        "/usr/bin/prlimit", "--nproc=512", "--",
    ]  # fmt: skip


def test_only_a_reader_sees_the_host_and_not_what_is_hidden() -> None:
    argv = words(RoomKind.READER, stage="/k/run/stage")
    assert ("/k/run/stage", "/") in pairs(argv, "--ro-bind")
    for kind in set(RoomKind) - {RoomKind.READER}:
        assert not [p for p in pairs(words(kind), "--ro-bind") if "/" in p]


def test_a_target_is_taken_from_the_stage() -> None:
    target = "/k/cache/restorer"
    assert pairs(words(RoomKind.RESTORER, target=target), "--bind") == [("/k/run/stage", target)]


def test_the_network_is_shared_only_where_granted() -> None:
    vault = room(RoomKind.VAULT)
    outside = vault._replace(grant=vault.grant._replace(network=True))
    for mode in Mode:
        assert "--unshare-net" in render(vault, plan(mode), "").argv
        assert "--unshare-net" not in render(outside, plan(mode), "").argv


def test_a_hostile_name_is_one_word() -> None:
    vault = room(RoomKind.VAULT)
    argv = list(
        render(vault._replace(grant=vault.grant._replace(write=(HOSTILE,))), plan(), "").argv
    )
    assert pairs(argv, "--bind") == [(HOSTILE, HOSTILE)]
