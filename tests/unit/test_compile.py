"""The plan: every room has what its promise allows and not more."""

import dataclasses
import json
from pathlib import Path

import pytest

from capkeep.config.load import load
from capkeep.config.model import Config
from capkeep.errors import ConfigError
from capkeep.plan import codec
from capkeep.plan.compile import HostFacts, compile_plan, users_needed
from capkeep.plan.model import (
    Access,
    Limits,
    Mode,
    Places,
    Plan,
    RoomKind,
    SecretSource,
    View,
    Wire,
)

PLACES = Places(
    "/etc/capkeep", "/var/lib/capkeep", "/var/cache/capkeep", "/var/log/capkeep", "/run/capkeep"
)
USERS = (
    "capkeep",
    "capkeep-reader",
    "capkeep-vault",
    "capkeep-keeper",
    "capkeep-viewer",
    "capkeep-restorer",
    "capkeep-notifier",
    "capkeep-prover",
    "capkeep-copier",
    "capkeep-puller",
    "capkeep-mounter",
)
SYSTEM = HostFacts(
    mode=Mode.SYSTEM, places=PLACES, group=990, interpreter="/usr/bin/python3", package="/usr/lib/capkeep",
    hostname="box", rclone="/opt/venv/bin/rclone", users={name: (901 + i, 801 + i) for i, name in enumerate(USERS)},
)  # fmt: skip
USER = SYSTEM._replace(mode=Mode.USER, users={}, caller=(1000, 1001), caller_name="ann", group=1001)

TEXT = """\
[engines.restic]
program = "@/restic"
[repositories.local]
engine = "restic"
location = "/srv/repo"
password = { file = "@/secret" }
[repositories.ssh]
engine = "restic"
location = "sftp:u@h:/r"
password = { file = "/etc/hostname-of-secret" }
options.identity = { file = "@/id" }
options.known-hosts = "@/known"
options.port = 2222
environment.A = "b"
[repositories.s3]
engine = "restic"
location = "s3:https://h/bucket"
password = { file = "@/secret" }
credentials.AWS_ACCESS_KEY_ID = { file = "@/id" }
credentials.AWS_SECRET_ACCESS_KEY = { file = "@/id" }
[repositories.b2]
engine = "restic"
location = "b2:bucket"
engine-network = true
password = { file = "@/secret" }
credentials.B2_ACCOUNT_KEY = { file = "@/id" }
[jobs.system]
repositories = ["local", "ssh"]
include = ["/etc", "/home"]
exclude = ["*.tmp"]
may-miss = ["**/x"]
[jobs.cloud]
repositories = ["b2"]
include = ["/srv"]
canary = false
host = "other"
max-age = "36h"
[limits]
processes = 64
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tmp_path.chmod(0o755)
    for name, mode in {
        "restic": 0o755,
        "secret": 0o600,
        "id": 0o600,
        "known": 0o644,
        "capkeep.toml": 0o644,
    }.items():
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    text = TEXT.replace("/etc/hostname-of-secret", f"{tmp_path}/secret").replace(
        '"@', f'"{tmp_path}'
    )
    (tmp_path / "capkeep.toml").write_text(text)
    return load(str(tmp_path), user_mode=True)


@pytest.fixture
def plan(config: Config) -> Plan:
    return compile_plan(config, SYSTEM)


def test_users(config: Config) -> None:
    assert set(users_needed(config)) == set(USERS)
    assert users_needed(config)[0] == "capkeep"


def test_rooms(plan: Plan) -> None:
    assert [r.name for r in plan.rooms] == [
        "runner", "reader-system-local", "reader-system-ssh", "reader-cloud-b2",
        "vault-local", "keeper-local", "viewer-local", "restorer-local",
        "vault-ssh", "keeper-ssh", "viewer-ssh", "restorer-ssh",
        "vault-s3", "keeper-s3", "viewer-s3", "restorer-s3",
        "keeper-b2", "viewer-b2", "restorer-b2",
    ]  # fmt: skip
    assert all(r.grant.limits == Limits(processes=64) for r in plan.rooms)
    for room in plan.rooms:
        user = "capkeep" if room.kind is RoomKind.RUNNER else f"capkeep-{room.kind}"
        uid, gid = SYSTEM.users[user]
        own = SYSTEM.group if room.kind is RoomKind.RUNNER else gid
        assert (room.grant.user, room.grant.uid, room.grant.gid) == (user, uid, own)


def test_the_runner(plan: Plan) -> None:
    room = plan.room("runner")
    assert room.secrets == ()
    assert room.grant.capabilities == ()
    assert not room.grant.network
    assert room.grant.write == (PLACES.records, PLACES.log, PLACES.stamps)
    assert room.grant.read == (PLACES.run, PLACES.plan)
    assert room.door is not None
    assert tuple(room.door) == ("/run/capkeep/run.sock", 0, 990, 0o660, 16)


def test_a_reader(plan: Plan, config: Config) -> None:
    room = plan.room("reader-system-local")
    assert (room.job, room.repository) == ("system", "local")
    assert room.grant.capabilities == ("CAP_DAC_READ_SEARCH",)
    assert room.grant.view is View.HOST
    assert room.grant.sources == ("/etc", "/home", "/etc/capkeep/canary")
    assert room.grant.write == ("/var/cache/capkeep/reader-system-local",)
    assert not room.grant.network
    assert room.wire == Wire("vault-local", Access.APPEND)
    assert [s.name for s in room.secrets] == ["password"]
    assert room.door is not None
    assert tuple(room.door) == ("/run/capkeep/reader-system-local.sock", 901, 801, 0o600, 1)
    hidden = set(room.grant.hide)
    assert {
        PLACES.secrets,
        PLACES.cache,
        PLACES.run,
        "/var/lib/capkeep/vault",
        "/srv/repo",
    } <= hidden
    # other rooms' secrets, wherever they lie: the key of the remote repository too
    assert {f"{config.directory}/id", f"{config.directory}/secret"} <= hidden


def test_vaults(plan: Plan, config: Config) -> None:
    local, ssh = plan.room("vault-local"), plan.room("vault-ssh")
    assert not local.grant.network
    assert local.grant.write == ("/srv/repo", "/var/lib/capkeep/vault/local")
    assert local.secrets == ()
    assert ssh.grant.network
    assert ssh.grant.write == ("/var/lib/capkeep/vault/ssh",)
    assert ssh.grant.read == (f"{config.directory}/known",)
    assert plan.room("vault-s3").grant.read == ("/opt/venv/bin/rclone",)
    assert local.grant.read == ()
    assert [(s.name, s.source) for s in ssh.secrets] == [
        ("identity", SecretSource(file=f"{config.directory}/id"))
    ]
    for room in (local, ssh):
        assert room.door is None
        assert room.grant.capabilities == ()
        assert room.grant.view is View.TOOLS


def test_keeper_viewer_restorer(plan: Plan) -> None:
    keeper, viewer, restorer = (plan.room(f"{k}-ssh") for k in ("keeper", "viewer", "restorer"))
    assert keeper.wire == Wire("vault-ssh", Access.ADMIN)
    assert viewer.wire == restorer.wire == Wire("vault-ssh", Access.APPEND)
    assert keeper.door is not None
    assert tuple(keeper.door) == ("/run/capkeep/keeper-ssh.sock", 901, 801, 0o600, 1)
    assert viewer.door is restorer.door is None  # root starts them by hand
    assert len(restorer.grant.capabilities) == 6
    for room in (keeper, viewer, restorer):
        assert room.grant.view is View.TOOLS
        assert not room.grant.network
        assert room.grant.write == (f"/var/cache/capkeep/{room.name}",)
        assert [s.name for s in room.secrets] == ["password"]
    assert keeper.grant.capabilities == viewer.grant.capabilities == ()


def test_nobody_but_the_keeper_may_remove(plan: Plan) -> None:
    admins = [r.kind for r in plan.rooms if r.wire and r.wire.access is Access.ADMIN]
    assert set(admins) == {RoomKind.KEEPER}


def test_what_may_remove_reaches_no_vault_but_the_keeper_s(config: Config) -> None:
    own = SecretSource(file="/etc/capkeep/secrets/may-remove")
    changed = dataclasses.replace(
        config,
        repositories=tuple(
            dataclasses.replace(r, keeper_credentials=(("AWS_SECRET_ACCESS_KEY", own),))
            if r.name == "s3" else r
            for r in config.repositories
        ),
        jobs=(*(dataclasses.replace(j, repositories=(*j.repositories, "s3")) for j in config.jobs),),
    )  # fmt: skip
    plan = compile_plan(changed, SYSTEM)
    holders = {r.name for r in plan.rooms if own in [s.source for s in r.secrets]}
    assert holders == {"vault-s3.keeper"}
    assert [r.name for r in plan.rooms if r.wire and r.wire.vault in holders] == ["keeper-s3"]
    assert [s.name for s in plan.room("vault-s3.keeper").secrets] == [
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    ]  # fmt: skip
    for job in plan.jobs:  # no reader is shown the file, wherever it lies
        assert own.file.startswith(plan.room(f"reader-{job.name}-s3").grant.hide)


def test_only_vaults_have_the_network_unless_it_was_asked_for(plan: Plan) -> None:
    for room in plan.rooms:
        asked = bool(room.repository) and plan.repository(room.repository).engine_network
        remote_vault = room.name in ("vault-ssh", "vault-s3")
        assert room.grant.network == (asked or remote_vault), room.name
        if asked:
            assert room.wire is None
            assert [s.name for s in room.secrets] == ["password", "B2_ACCOUNT_KEY"]


def test_jobs_and_repositories(plan: Plan, config: Config) -> None:
    system, cloud = plan.jobs
    assert (system.canary, cloud.canary) == ("/etc/capkeep/canary", "")
    assert plan.room("reader-cloud-b2").grant.sources == ("/srv",)
    assert (system.host, cloud.host) == ("box", "other")
    assert (system.may_miss, system.exclude) == (("**/x",), ("*.tmp",))
    assert (system.max_age_seconds, cloud.max_age_seconds) == (0, 129600)
    ssh = plan.repository("ssh")
    assert ssh.location == "sftp:u@h:/r"
    assert ssh.environment == (("A", "b"),)
    assert dict(ssh.options) == {
        "known-hosts": f"{config.directory}/known",
        "port": "2222",
    }
    assert dict(plan.repository("s3").options) == {"rclone": "/opt/venv/bin/rclone"}


def test_user_mode_has_one_user_and_no_capability(config: Config) -> None:
    plan = compile_plan(config, USER)
    for room in plan.rooms:
        assert (room.grant.user, room.grant.uid, room.grant.gid) == ("ann", 1000, 1001)
        assert room.grant.capabilities == ()
        if room.door:
            assert (room.door.uid, room.door.gid, room.door.mode) == (1000, 1001, 0o600)


def test_the_plan_survives_json_and_holds_no_secret(plan: Plan) -> None:
    text = codec.dumps(plan)
    assert codec.loads(Plan, text) == plan
    assert json.loads(text)["version"] == plan.version


def test_the_same_inputs_give_the_same_plan(config: Config, plan: Plan) -> None:
    assert compile_plan(config, SYSTEM) == plan


def test_what_is_reached_through_rclone_needs_it(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"repository s3: .* rclone"):
        compile_plan(config, SYSTEM._replace(rclone=""))


def test_a_socket_path_that_the_kernel_would_refuse(config: Config) -> None:
    facts = SYSTEM._replace(places=PLACES._replace(run="/" + "x" * 90))
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        compile_plan(config, facts)
