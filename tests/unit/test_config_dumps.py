"""Dumps in the configuration and in the plan: what is wrong is told, what is right is least."""

import os
import pwd
from pathlib import Path

import pytest

from capkeep.config.model import Config
from capkeep.host import bubblewrap, hardening, units
from capkeep.plan.compile import HostFacts, compile_plan, users_needed
from capkeep.plan.dumps import users_lent
from capkeep.plan.model import Grant, Mode, Places, Plan, Room, RoomKind, Starter
from capkeep.rooms.dumps.staging import Staging
from tests.unit.test_config_load import Etc, etc

__all__ = ["etc"]
USER = pwd.getpwuid(os.geteuid()).pw_name


def test_a_drop_in_adds_a_dump(etc: Etc) -> None:
    etc.good(job='dumps = ["own"]')
    text = '[dumps.own]\nkind = "command"\ncommand = ["/usr/bin/id"]\ntimeout = "5m"\n'
    etc.file("conf.d/own.toml", text)
    (dump,) = etc.load().dumps
    assert (dump.name, dump.kind, dump.user) == ("own", "command", USER)
    assert (dump.command, dump.timeout_seconds) == (("/usr/bin/id",), 300)
    assert etc.load().jobs[0].dumps == ("own",)


def test_a_job_may_take_whatever_packages_bring(etc: Etc) -> None:
    etc.good(job='dumps = ["*"]')
    assert etc.load().jobs[0].dumps == ()
    for name in ("two", "one"):
        text = f'[dumps.{name}]\nkind = "command"\ncommand = ["/usr/bin/id"]\n'
        etc.file(f"conf.d/{name}.toml", text)
    found = etc.load()
    assert found.jobs[0].dumps == ("one", "two")
    assert [r for r in found.remarks if "dump" in r.problem] == []


def test_settings_say_where_they_are(etc: Etc) -> None:
    etc.good('\n[dumps.own]\nkind = "command"\ncommand = ["/usr/bin/id"]\n')
    found = etc.load()
    assert found.settings["dumps.own.command"].value == ["/usr/bin/id"]
    assert found.settings["dumps.own.timeout"].value == "4h"
    assert [r.problem for r in found.remarks] == ["no job takes dump own"]


@pytest.mark.parametrize(
    "table, key, problem",
    [
        ("", "kind", "the dump does not say its kind, and 'd' is none"),
        ('kind = "postgres"', "kind", "nothing is known of dumps of 'postgres'"),
        ('kind = "mongodb"', "kind", "MongoDB has no tools in Debian"),
        ('kind = "command"', "command", "the dump has no command"),
        ('kind = "command"\ncommand = ["id"]', "command", "program 'id' is not an absolute path"),
        ('kind = "command"\ncommand = ["/nowhere"]', "command", "program /nowhere: no such file"),
        ('kind = "sqlite"', "paths", "the dump names no database"),
        ('kind = "sqlite"\npaths = ["x.db"]', "paths[0]", "'x.db' is not a plain absolute path"),
        ('kind = "sqlite"\npaths = ["/nowhere.db"]', "paths[0]", "there is no /nowhere.db"),
        ('kind = "sqlite"\npaths = ["/etc"]', "paths[0]", "/etc is not a file"),
        ('kind = "sqlite"\npaths = ["@/own.db", "@/own.db"]', "paths[1]", "is named twice"),
        ('kind = "sqlite"\npaths = ["@/own.db"]\nport = 1', "port", "has no meaning for sqlite"),
        ('kind = "command"\ncommand = ["/usr/bin/id"]\nsocket = "x"', "socket", "'x' is not an abs"),
        ('kind = "command"\ncommand = ["/usr/bin/id"]\ntimeout = "1s"', "timeout", "no dump is done"),
        ('kind = "command"\ncommand = ["/usr/bin/id"]\nuser = "nobody"', "user", "without root"),
        ('kind = "sqlite"\npaths = ["@/own.db"]\nstream = true', "stream", "has no meaning"),
        ('kind = "command"\ncommand = ["/usr/bin/id"]\nusr = "x"', "usr", "unknown key"),
        ("kind = 7", "kind", "must be a text, not a number"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(etc: Etc, table: str, key: str, problem: str) -> None:
    etc.file("own.db", "")
    etc.good(f"\n[dumps.d]\n{table}\n", job='dumps = ["d"]')
    found = etc.mistake()
    assert found.key == f"dumps.d.{key}"
    assert problem in found.problem
    assert found.line > 1
    assert found.hint


def test_a_job_names_dumps_that_are_there(etc: Etc) -> None:
    etc.good('\n[dumps.shop]\nkind = "command"\ncommand = ["/usr/bin/id"]\n',
             job='dumps = ["shop", "shop", "shops"]')  # fmt: skip
    twice, unknown = etc.mistakes()
    assert twice.problem == "dump shop is named twice"
    assert (unknown.problem, unknown.hint) == ("there is no dump 'shops'", 'did you mean "shop"?')


# -- the plan


def plan(etc: Etc, starter: Starter = Starter.DOORS, socket: str = "/run/own/socket") -> Plan:
    path = etc.file("data/app.db", "")
    etc.good(
        f'\n[dumps.app]\nkind = "sqlite"\npaths = ["{path}"]\noptional = true\n'
        '\n[dumps.own]\nkind = "command"\ncommand = ["/usr/bin/id"]\n'
        f'socket = "{socket}"\n',
        job='dumps = ["app", "own"]',
    )
    config: Config = etc.load()
    users = {name: (500 + n, 500 + n) for n, name in enumerate(users_needed(config))}
    facts = HostFacts(
        mode=Mode.SYSTEM, places=Places("/etc/capkeep", "/state", "/cache", "/log", "/run/capkeep"),
        group=500, interpreter="/usr/bin/python3", package="/opt/lib", hostname="host",
        users=users | {USER: (700, 701)}, groups={USER: (701, 44, 33)}, starter=starter,
    )  # fmt: skip
    assert users_lent(config) == (USER,)
    assert not any("dumper" in name for name in users)
    return compile_plan(config, facts)


def test_the_room_has_its_server_s_user_and_nothing_else(etc: Etc) -> None:
    made = plan(etc)
    room = made.room("dumper-app")
    assert room.kind is RoomKind.DUMPER
    grant = room.grant
    assert (grant.uid, grant.gid, grant.capabilities, grant.network) == (700, 701, (), False)
    assert grant.groups == (33, 44)
    assert (grant.read, grant.write) == ((str(etc.root / "data"),), ("/state/dumps/app",))
    assert made.room("dumper-own").grant.sockets == ("/run/own",)
    assert room.door is not None
    assert (room.door.uid, room.door.mode) == (500, 0o600)
    job = made.jobs[0]
    assert {"/state/dumps/app", "/state/dumps/own"} <= set(job.include)
    assert job.allow_empty == ("/state/dumps/app",)
    assert "/state/dumps/app/unfinished" in job.exclude
    assert "/state/dumps/app/unfinished.before" in job.exclude
    reader = next(r for r in made.rooms if r.kind is RoomKind.READER)
    assert "/state/dumps/own" in reader.grant.sources


@pytest.mark.parametrize("folder", ["/run", "/var/run"])
def test_a_socket_among_everybody_s_is_shown_alone(etc: Etc, folder: str) -> None:
    made = plan(etc, socket=f"{folder}/own.sock")
    assert made.room("dumper-own").grant.sockets == (f"{folder}/own.sock",)


def test_a_unit_opens_the_homes_to_who_is_shown_all_of_them() -> None:
    grant = Grant("games", 5, 60, read=("/home",))
    assert "ProtectHome=read-only" in hardening.lent(Room("d", RoomKind.DUMPER, grant))


def test_bubblewrap_shows_the_socket_if_it_is_there(etc: Etc) -> None:
    made = plan(etc)
    words = " ".join(bubblewrap.render(made.room("dumper-own"), made, "").argv)
    assert "--ro-bind-try /run/own /run/own" in words
    assert "--unshare-net" in words
    assert "--bind /state/dumps/own /state/dumps/own" in words


def test_a_unit_leaves_the_server_s_memory_alone(etc: Etc) -> None:
    made = plan(etc, Starter.SYSTEMD)
    readers = {r.name: ("/",) for r in made.rooms if r.kind is RoomKind.READER}
    host = hardening.Host(252, readers, large_ids=False)
    texts = {u.name: u.text.splitlines() for u in units.render(made, host)}
    own = texts["capkeep-dumper-own@.service"]
    # The last of several assignments holds (systemd.service(5)).
    assert [line for line in own if line.startswith("RemoveIPC=")][-1] == "RemoveIPC=no"
    assert "BindReadOnlyPaths=-/run/own" in [line.replace('"', "") for line in own]
    assert "RestrictAddressFamilies=AF_UNIX" in own
    assert "PrivateNetwork=yes" in own
    assert "CapabilityBoundingSet=" in own
    reader = next(text for name, text in texts.items() if "-reader-" in name and "@" in name)
    assert "RemoveIPC=no" not in reader


def test_folders_of_staging_are_in_the_state(tmp_path: Path) -> None:
    """What `remove` takes away holds copies only."""
    staging = Staging(str(tmp_path))
    for text in ("first", "second"):
        staging.begin()
        fd = staging.make("dump")
        os.write(fd, text.encode())
        os.close(fd)
        staging.keep()
        assert (tmp_path / "last/dump").read_text() == text
        assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]
    staging.begin()
    os.close(staging.make("dump"))
    os.makedirs(f"{staging.folder}/deep/er")
    os.symlink("/etc", f"{staging.folder}/deep/link")
    staging.drop()
    assert (tmp_path / "last/dump").read_text() == "second"
    assert os.path.isdir("/etc")


def test_what_is_streamed_is_no_source(etc: Etc) -> None:
    etc.good('\n[dumps.own]\nkind = "command"\ncommand = ["/usr/bin/id"]\nstream = true\n',
             job='dumps = ["own"]')  # fmt: skip
    config = etc.load()
    facts = HostFacts(
        mode=Mode.USER, places=Places("/c", "/state", "/cache", "/log", "/run"), group=1,
        interpreter="/usr/bin/python3", package="/opt/lib", hostname="host",
    )  # fmt: skip
    made = compile_plan(config, facts)
    assert made.jobs[0].dumps == ("own",)
    assert not [p for p in made.jobs[0].include if p.startswith("/state/dumps")]
    for room in made.rooms:
        if room.door and room.kind in (RoomKind.DUMPER, RoomKind.READER):
            assert room.door.connections > 1  # one may still be ending when the next file comes
