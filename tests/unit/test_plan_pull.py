"""Pulling in the plan: pullers and targets on a server, and on a target whom it answers."""

from pathlib import Path

import pytest

from capkeep.cli.in_place import refuse_repository
from capkeep.config.mistakes import MistakesError
from capkeep.config.model import Config
from capkeep.errors import RefusedError
from capkeep.host.audit import who_has_keys
from capkeep.host.keys import Keys
from capkeep.host.private import refuse_private
from capkeep.plan import codec, hooks
from capkeep.plan.compile import HostFacts, compile_plan, configured, users_needed
from capkeep.plan.model import (
    NOBODY_YET,
    Access,
    Job,
    Mode,
    Plan,
    Repository,
    Room,
    RoomKind,
    View,
    Walls,
    Wire,
    outline,
)
from capkeep.plan.timetable import is_remote, whole
from capkeep.rooms.protocol import ProtocolError
from capkeep.run.vocabulary import answer
from capkeep.run.walk import Walk
from tests.unit.pulled import ECDSA, ED25519, KEPT, SERVER, TARGET, Host, RootsOwn
from tests.unit.test_compile import PLACES, SYSTEM

DOOR = "/run/capkeep/reader-hosts.web1-pulled.web1.sock"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr("capkeep.config.load.Owner", RootsOwn)
    return Host(tmp_path.resolve())


def facts(config: Config) -> HostFacts:
    users = {name: (901 + i, 801 + i) for i, name in enumerate(users_needed(config))}
    return SYSTEM._replace(users=users, processors=6)


def planned(config: Config) -> Plan:
    return compile_plan(config, facts(config))


def test_a_puller_stands_for_the_reader(host: Host) -> None:
    config = host.load(SERVER)
    plan = planned(config)
    room = plan.room("reader-hosts.web1-pulled.web1")
    runner = facts(config).users["capkeep"]
    assert (room.kind, room.job, room.repository) == (
        RoomKind.PULLER, "hosts.web1", "pulled.web1",
    )  # fmt: skip
    assert room.door is not None
    assert tuple(room.door)[:4] == (DOOR, *runner, 0o600)
    assert room.wire == Wire("vault-pulled.web1", Access.APPEND)
    assert {s.name: s.source.file for s in room.secrets} == {
        "password": f"{host.root}/of-web1", "identity": f"{host.root}/secret",
    }  # fmt: skip
    grant = room.grant
    assert grant.user == "capkeep-puller"
    assert (grant.uid, grant.gid) == facts(config).users["capkeep-puller"]
    assert (grant.capabilities, grant.view, grant.sources, grant.network) == (
        (), View.TOOLS, (), True,
    )  # fmt: skip
    assert grant.write == (f"{PLACES.cache}/{room.name}",)
    other = plan.room("reader-hosts.web2-pulled.web2")
    assert {s.name: s.source.file for s in other.secrets} == {
        "password": f"{host.root}/of-web2", "identity": f"{host.root}/key-web2",
    }  # fmt: skip


def test_no_puller_reaches_another_target_s_repository(host: Host) -> None:
    plan = planned(host.load(SERVER))
    for room in plan.rooms:
        if room.kind is RoomKind.PULLER:
            target = plan.job(room.job).target
            assert room.wire == Wire(f"vault-pulled.{target}", Access.APPEND)
            vault = plan.room(f"vault-pulled.{target}")
            assert vault.grant.write[0] == f"/srv/backups/{target}"
            assert not vault.grant.network


def test_what_a_server_has_beside_pullers(host: Host) -> None:
    plan = planned(host.load(SERVER))
    kinds = [r.kind for r in plan.rooms if r.repository == "pulled.web1"]
    assert kinds == [
        RoomKind.PULLER, RoomKind.VAULT, RoomKind.KEEPER, RoomKind.VIEWER, RoomKind.RESTORER,
        RoomKind.PROVER,
    ]  # fmt: skip
    assert plan.room("copier-hosts.web1-away.web1").origin is not None
    assert plan.answers == plan.answered_jobs == plan.answered_repositories == ()
    assert codec.loads(Plan, codec.dumps(plan)) == plan


def test_targets_and_jobs_in_the_plan(host: Host) -> None:
    plan = planned(host.load(SERVER))
    web2 = plan.target("web2")
    assert web2.host_keys == (ED25519, ECDSA)
    assert (web2.host, web2.port, web2.user) == ("web2", 2222, "other")
    assert (web2.jump, web2.jump_keys) == ("admin@gate.example.org:22", (ECDSA,))
    job = plan.job("hosts.web2")
    assert (job.target, job.host, job.tags) == (
        "web2", "two.example.org", ("capkeep:hosts.web2",),
    )  # fmt: skip
    # The target's own capkeep makes it, wherever this host's configuration lies.
    assert job.canary == "/etc/capkeep/canary"
    assert plan.job("bases.db").canary == ""
    elsewhere = PLACES._replace(config="/opt/other/etc")
    config = host.load(SERVER)
    plan = compile_plan(config, facts(config)._replace(places=elsewhere))
    assert plan.job("hosts.web2").canary == "/etc/capkeep/canary"
    assert plan.job("own").canary == "/opt/other/etc/canary"


def test_brief(host: Host) -> None:
    plan = planned(host.load(SERVER))
    brief = outline(plan, plan.room("reader-hosts.web2-pulled.web2"), Walls(()))
    assert brief.target == plan.target("web2")
    assert brief.job == plan.job("hosts.web2")
    assert brief.peer_uid == NOBODY_YET
    assert outline(plan, plan.room("reader-own-local"), Walls(())).target is None


@pytest.mark.parametrize("written, found", [("parallel = 3", 3), ("parallel = 0", 0), ("", 6)])
def test_how_many_at_a_time(host: Host, written: str, found: int) -> None:
    text = SERVER.replace("parallel = 3", written)
    assert planned(host.load(text)).parallel_pulls == found


def test_each_target_has_its_times_and_is_told_of(host: Host) -> None:
    config = host.load(SERVER)
    plan = planned(config)
    assert [(t.job, t.kind) for t in whole(plan)] == [
        ("hosts.web1", "backup"), ("hosts.web2", "backup"),
    ]  # fmt: skip
    assert [t.unit for t in configured(config)] == ["run-hosts.web1", "run-hosts.web2"]
    (channel,) = plan.notify
    assert channel.jobs == ("hosts.web1", "hosts.web2")
    assert channel.repositories == ("pulled.web1", "pulled.web2")
    assert is_remote(plan, plan.job("bases.db"))  # though its repository is here
    assert not is_remote(plan, plan.job("own"))


def test_no_reader_sees_a_key_of_a_target(host: Host) -> None:
    hidden = planned(host.load(SERVER)).room("reader-own-local").grant.hide
    assert {f"{host.root}/secret", f"{host.root}/key-web2", "/srv/backups/web1"} <= {*hidden}


def test_hooks_see_no_secret_on_a_server_without_readers(host: Host) -> None:
    text = SERVER[: SERVER.index("[jobs.own]")] + (
        f'[hooks.h]\ncommand = ["/bin/true"]\nuser = "nobody"\nread = ["{host.root}"]\n'
    )
    text = text.replace('targets = ["db"]', 'targets = ["db"]\nbefore = ["h"]')
    config = host.load(text)
    users = {**facts(config).users, "nobody": (65534, 65534)}
    plan = compile_plan(config, facts(config)._replace(users=users))
    assert RoomKind.READER not in {r.kind for r in plan.rooms}
    with pytest.raises(MistakesError, match="which only the room that works with it sees"):
        refuse_private(plan, config)


def test_members_are_given_nothing_of_other_hosts(host: Host) -> None:
    """Who has a number here is somebody else there."""
    plan = planned(host.load(f"{SERVER}[host]\nmembers-restore = true\n"))
    assert [r.repository for r in plan.rooms if r.kind is RoomKind.GIVER] == ["local"]


def test_without_root_a_puller_runs_as_the_user(host: Host) -> None:
    config = host.load(SERVER, user_mode=True)
    own = SYSTEM._replace(mode=Mode.USER, users={}, caller=(1000, 1001), caller_name="ann")
    room = compile_plan(config, own).room("reader-hosts.web1-pulled.web1")
    assert (room.grant.uid, room.grant.gid, room.grant.capabilities) == (1000, 1001, ())


class Walked(Walk):
    """Notes which jobs would be run."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def run_job(self, job: Job, *, dry_run: bool, accept_shrink: bool) -> int:
        assert dry_run
        assert not accept_shrink
        self.jobs.append(job.name)
        return 0

    def copy_made(self) -> list[int]:
        return []


def run(plan: Plan, *names: str) -> list[str]:
    walk = Walked()
    brief = outline(plan, plan.runner, Walls(()))
    answer(plan, walk, brief, {"action": "run", "jobs": [*names], "dry_run": True})
    return walk.jobs


def test_the_name_of_a_job_of_many_targets_means_all_of_them(host: Host) -> None:
    plan = planned(host.load(SERVER))
    assert run(plan, "own", "hosts") == ["own", "hosts.web1", "hosts.web2"]
    assert run(plan, "hosts.web2", "hosts") == ["hosts.web2", "hosts.web1"]
    with pytest.raises(ProtocolError, match=r"there is no 'host'; known jobs: hosts\.web1"):
        run(plan, "host")


def test_restoring_another_host_s_files_in_place_is_refused(host: Host) -> None:
    plan = planned(host.load(SERVER))
    for name in ("pulled.web1", "away.web1"):
        with pytest.raises(RefusedError, match="holds files of web1"):
            refuse_repository(plan, plan.repository(name))
    refuse_repository(plan, plan.repository("local"))


# -- on a target


def test_whom_a_target_answers(host: Host) -> None:
    config = host.load(TARGET)
    assert users_needed(config)[-1] == "capkeep-answerer"
    login = facts(config).users["capkeep-answerer"]
    first, second = planned(config).answers
    assert tuple(first) == (
        "backup1", "reader-sent-backup1", f"{ED25519} capkeep@backup1", "capkeep-answerer", *login,
    )  # fmt: skip
    assert (second.repository, second.key) == ("backup2", ECDSA)


def test_the_reader_of_a_target_is_asked_by_the_login_alone(host: Host) -> None:
    config = host.load(TARGET)
    plan = planned(config)
    room = plan.room("reader-sent-backup1")
    assert room.kind is RoomKind.READER
    assert room.wire is None
    assert room.secrets == ()
    assert not room.grant.network
    assert room.grant.capabilities == ("CAP_DAC_READ_SEARCH",)
    assert room.grant.sources == ("/etc", "/home", "/etc/capkeep/canary")
    assert room.door is not None
    login = facts(config).users["capkeep-answerer"]
    assert tuple(room.door)[1:4] == (*login, 0o600)
    assert [s.name for s in plan.room("reader-sealed-backup2").secrets] == ["password"]
    assert f"{host.root}/secret" in room.grant.hide
    brief = outline(plan, room, Walls(()))
    assert brief.job is not None
    assert brief.repository is not None
    assert (brief.job.name, brief.repository.pulled_by) == ("sent", f"{ED25519} capkeep@backup1")


def test_what_comes_after_all_pulls_has_a_room(host: Host) -> None:
    hook = '[hooks.off]\ncommand = ["/usr/bin/id"]\nuser = "games"\n[pull]\nafter = ["off"]\n'
    config = host.load(SERVER.replace("[pull]\n", hook))
    assert config.after_pulls == ("off",)
    assert [one.name for one in hooks.taken(config)] == ["off"]


def test_nothing_of_what_is_come_for_is_run_from_a_target(host: Host) -> None:
    plan = planned(host.load(TARGET))
    assert [j.name for j in plan.jobs] == ["own"]
    assert [r.name for r in plan.repositories] == ["local"]
    assert [j.name for j in plan.answered_jobs] == ["sent", "sealed"]
    assert [r.name for r in plan.answered_repositories] == ["backup1", "backup2"]
    assert {r.kind for r in plan.rooms if r.repository != "local"} == {
        RoomKind.RUNNER, RoomKind.READER,
    }  # fmt: skip
    assert plan.job("sent") in plan.answered_jobs
    assert run(plan) == ["own"]
    with pytest.raises(ProtocolError, match="there is no 'sent'"):
        run(plan, "sent")
    with pytest.raises(RefusedError, match="servers come for its files"):
        run(plan._replace(jobs=()))
    assert [r.name for r in plan.all_repositories] == ["local", "backup1", "backup2"]
    assert codec.loads(Plan, codec.dumps(plan)) == plan


def test_nobody_logs_in_where_nobody_comes(host: Host) -> None:
    config = host.load(SERVER)
    assert "capkeep-answerer" not in users_needed(config)
    assert [r.door.uid for r in readers(planned(config)) if r.door] == [901] * 4


def readers(plan: Plan) -> list[Room]:
    return [r for r in plan.rooms if r.name.startswith("reader-")]


def test_of_a_password_that_the_target_keeps_nothing_is_here(host: Host) -> None:
    plan = planned(host.load(KEPT))
    repository = plan.repository("pulled.web1")
    assert (repository.target_keeps_password, repository.key_exported) == (True, True)
    own = {room.kind: room for room in plan.rooms if room.repository == "pulled.web1"}
    assert set(own) == {RoomKind.PULLER, RoomKind.VAULT, RoomKind.VIEWER, RoomKind.RESTORER}
    assert [s.name for room in own.values() for s in room.secrets] == ["identity"]
    assert {w.access for room in own.values() for w in room.wires} == {Access.APPEND}
    assert {r.kind for r in plan.rooms if r.repository == "local"} > {RoomKind.KEEPER}
    assert codec.loads(Plan, codec.dumps(plan)) == plan
    brief = outline(plan, own[RoomKind.VAULT], Walls(()))
    assert brief.repository is not None
    assert brief.repository.target_keeps_password
    assert next(iter(who_has_keys(plan))) == (
        "the target alone has the password of pulled.web1: nobody here can open it"
    )
    (said,) = who_has_keys(planned(host.load(TARGET)))
    assert said.startswith(
        "reader-sealed-backup2 seals what backup2 comes for with this host's own"
    )


def test_what_only_a_keeper_could_do_is_not_asked_of_anybody(host: Host) -> None:
    plan = planned(host.load(KEPT))
    asked: list[str] = []

    class Asked(Walk):
        def __init__(self) -> None:
            self.to_copy = []

        def snapshots(self, repository: Repository) -> int:
            asked.append(repository.name)
            return 0

    brief = outline(plan, plan.runner, Walls(()))
    assert answer(plan, Asked(), brief, {"action": "snapshots"}) == 0
    assert asked == ["local"]
    for named in ("pulled.db", "pulled"):
        with pytest.raises(RefusedError, match="its target keeps the password") as refused:
            answer(plan, Asked(), brief, {"action": "snapshots", "repositories": [named]})
        assert "--password-file" in refused.value.hint
    with pytest.raises(RefusedError, match="its target keeps the password"):
        Keys(plan, "pulled.web1")
