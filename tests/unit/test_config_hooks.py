"""Hooks in the configuration and in the plan: what is wrong is told, what is right is least."""

import json
import os
import pwd

import pytest

from capkeep.config.load import load
from capkeep.config.mistakes import MistakesError
from capkeep.errors import RefusedError
from capkeep.host import bubblewrap, hardening, lent, polkit, units
from capkeep.host.apply import lent_programs
from capkeep.host.private import refuse_private
from capkeep.plan.compile import HostFacts, compile_plan, users_needed
from capkeep.plan.hooks import users_lent
from capkeep.plan.model import Hooks, Mode, Places, Plan, RoomKind, Starter
from capkeep.rooms.hook import environment
from capkeep.rooms.protocol import ProtocolError
from tests.unit.test_config_load import Etc, etc

__all__ = ["etc"]
USER = pwd.getpwuid(os.geteuid()).pw_name
OFF = "org.freedesktop.login1.power-off"
GOOD = '\n[hooks.h]\ncommand = ["/usr/bin/id"]\n'


def test_a_drop_in_adds_a_hook_and_defaults_name_it(etc: Etc) -> None:
    etc.good('\n[defaults]\non-failure = ["h"]\n', job='before = ["h"]')
    etc.file("conf.d/own.toml", GOOD + 'timeout = "30s"\noptional = true\n')
    found = etc.load()
    (hook,) = found.hooks
    assert (hook.name, hook.command, hook.user) == ("h", ("/usr/bin/id",), USER)
    assert (hook.timeout_seconds, hook.optional, hook.network) == (30, True, False)
    assert (found.jobs[0].before, found.jobs[0].on_failure) == (("h",), ("h",))
    assert found.settings["hooks.h.timeout"].value == "30s"
    etc.good(GOOD)
    etc.file("conf.d/own.toml", "")
    assert [r.problem for r in etc.load().remarks] == ["no job runs hook h"]


@pytest.mark.parametrize(
    "table, key, problem",
    [
        ("", "command", "the hook has no command"),
        ('command = ["id"]', "command", "program 'id' is not an absolute path"),
        ('command = ["/nowhere"]', "command", "program /nowhere: no such file"),
        ('command = ["/usr/bin/id"]\nuser = "nobody"', "user", "without root every room"),
        ('command = ["/usr/bin/id"]\nread = ["x"]', "read[0]", "'x' is not a plain absolute"),
        ('command = ["/usr/bin/id"]\nread = ["/etc", "/etc/"]', "read[1]", "/etc/ is named twice"),
        ('command = ["/usr/bin/id"]\nwrite = ["/nowhere"]', "write[0]", "there is no /nowhere"),
        ('command = ["/usr/bin/id"]\nsockets = ["../x"]', "sockets[0]", "not a plain absolute"),
        ('command = ["/usr/bin/id"]\ntimeout = "0s"', "timeout", "no hook is done in no time"),
        ('command = ["/usr/bin/id"]\nnetwork = 1', "network", "must be true or false"),
        ('command = ["/usr/bin/id"]\nshell = true', "shell", "unknown key"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(etc: Etc, table: str, key: str, problem: str) -> None:
    etc.good(f"\n[hooks.h]\n{table}\n", job='after = ["h"]')
    found = etc.mistake()
    assert found.key == f"hooks.h.{key}"
    assert problem in found.problem
    assert found.line > 1
    assert found.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="the files must be root's")
@pytest.mark.parametrize(
    "more, key, problem, hint",
    [
        ("", "user", "the hook has no user", "never root"),
        ('user = "root"', "user", "a hook's room never runs as root", "let a service of root's"),
        ('user = "nobody-here"', "user", "there is no user nobody-here", "make the user first"),
        ('user = "capkeep-vault"', "user", "is one of capkeep's own users", "nothing of capkeep"),
        ('user = "games"\ncapabilities = ["CAP_SYS_ADMIN"]', "capabilities[0]",
         "CAP_SYS_ADMIN is given to no hook", "name its socket under sockets"),
        ('user = "games"\ncapabilities = ["CAP_DAC_READ_SEARCH"]\nnetwork = true',
         "capabilities[0]", "may reach neither the network nor any socket", "two hooks"),
        ('user = "games"\ncapabilities = ["CAP_DAC_READ_SEARCH"]\nsockets = ["/run/x"]',
         "capabilities[0]", "may reach neither the network nor any socket", "two hooks"),
        (f'user = "games"\npolkit = "{OFF}"', "polkit", "the hook reaches no socket", "sockets ="),
        (f'user = "games"\nsockets = ["/run/x"]\npolkit = "{OFF}\\"]; evil("', "polkit",
         "is not the id of an action", "login1.power-off"),
        (f'user = "games"\ncapabilities = ["CAP_DAC_READ_SEARCH"]\npolkit = "{OFF}"', "polkit",
         "may not ask the system's services", "two hooks"),
    ],
)  # fmt: skip
def test_who_may_not_be_a_hook_and_what_none_may(
    etc: Etc, more: str, key: str, problem: str, hint: str
) -> None:
    if any(os.stat(folder).st_uid for folder in (etc.root, *etc.root.parents)):
        pytest.skip("the directory must be root's")
    etc.good(f"{GOOD}{more}\n", job='before = ["h"]')
    with pytest.raises(MistakesError) as caught:
        load(str(etc.root))
    (found,) = caught.value.mistakes
    assert found.key == f"hooks.h.{key}"
    assert problem in found.problem
    assert hint in found.hint
    assert str(found.line) in str(caught.value)


def test_a_job_names_hooks_that_there_are(etc: Etc) -> None:
    etc.good(GOOD, job='before = ["h", "h"]\non-success = ["hh"]')
    twice, unknown = etc.mistakes()
    assert (twice.key, twice.problem) == ("jobs.j.before[1]", "hook h is named twice")
    assert (unknown.key, unknown.hint) == ("jobs.j.on-success[0]", 'did you mean "h"?')


def plan(etc: Etc, more: str = "", starter: Starter = Starter.DOORS) -> Plan:
    etc.good(f"{GOOD}{more}\n", job='before = ["h"]\non-failure = ["h"]')
    config = lent.resolved(etc.load(), Mode.SYSTEM)
    users = {name: (500 + n, 500 + n) for n, name in enumerate(users_needed(config))}
    facts = HostFacts(
        mode=Mode.SYSTEM, places=Places("/etc/capkeep", "/state", "/cache", "/log", "/run/capkeep"),
        group=500, interpreter="/usr/bin/python3", package="/opt/lib", hostname="host",
        users=users | {USER: (700, 701)}, groups={USER: (701, 44)}, starter=starter,
    )  # fmt: skip
    assert users_lent(config) == (USER,)
    assert not any("hook" in name for name in users)
    return compile_plan(config, facts)


def test_the_room_has_what_is_stated_and_nothing_else(etc: Etc) -> None:
    made = plan(etc)
    room = made.room("hook-h")
    grant = room.grant
    assert (room.kind, grant.uid, grant.gid, grant.groups) == (RoomKind.HOOK, 700, 701, (44,))
    nothing = (grant.read, grant.write, grant.shared, grant.sockets, grant.capabilities)
    assert nothing == ((), (), (), (), ())
    assert not grant.network
    assert made.jobs[0].hooks == Hooks(before=("h",), on_failure=("h",))
    words = " ".join(bubblewrap.render(room, made, "").argv)
    assert "--unshare-net" in words
    etc.file("data/x", "")
    made = plan(etc, 'network = true\nread = ["@/data"]\nwrite = ["/srv"]\nsockets = ["/run/app"]')
    grant = made.room("hook-h").grant
    assert (grant.network, grant.sockets, grant.shared) == (True, ("/run/app",), ("/srv",))
    words = " ".join(bubblewrap.render(made.room("hook-h"), made, "").argv)
    assert "--unshare-net" not in words
    assert "--bind-try /srv /srv" in words
    assert "--ro-bind-try /run/app /run/app" in words


def test_a_right_is_one_user_s_for_one_action_with_its_details(etc: Etc) -> None:
    made = plan(etc)
    assert polkit.rules(made) == ""
    right = f"{OFF} unit=a@b.service verb=start"
    text = polkit.rules(made._replace(hooks=(made.hook("h")._replace(polkit=right),)))
    said = text.partition("var rights = ")[2].partition(";")[0]
    assert json.loads(said) == [
        {"user": USER, "action": OFF, "details": {"unit": "a@b.service", "verb": "start"}}
    ]


def test_a_unit_is_another_rendering_of_the_same(etc: Etc) -> None:
    made = plan(etc, 'write = ["/srv"]\nsockets = ["/run/app"]', Starter.SYSTEMD)
    readers = {r.name: ("/",) for r in made.rooms if r.kind is RoomKind.READER}
    for version, lines in ((252, set()), (257, {"PrivateUsers=identity"})):
        host = hardening.Host(version, readers, large_ids=True)
        texts = {u.name: set(u.text.splitlines()) for u in units.render(made, host)}
        text = texts["capkeep-hook-h@.service"]
        assert {"User=700", "PrivateNetwork=yes", "RemoveIPC=no", "CapabilityBoundingSet=",
                "BindPaths=-/srv", "BindReadOnlyPaths=-/run/app"} <= text  # fmt: skip
        assert {line for line in text if line.startswith("PrivateUsers")} == lines
    grant = made.room("hook-h").grant._replace(capabilities=("CAP_DAC_READ_SEARCH",))
    # In a user namespace it would count for the files of few.
    assert list(hardening.ids(grant, hardening.Host(257, readers, large_ids=True))) == []
    assert list(hardening.ids(grant, hardening.Host(252, readers, large_ids=True))) == []


def test_no_hook_sees_what_one_room_alone_works_with(etc: Etc) -> None:
    for key, path in (
        ("read", "/"),
        ("write", str(etc.root)),
        ("sockets", "/run/capkeep/run.sock"),
    ):
        made = plan(etc, f'{key} = ["{path}"]')
        with pytest.raises(MistakesError) as caught:
            refuse_private(made, etc.load())
        found = caught.value.mistakes[0]
        assert found.key == f"hooks.h.{key}"
        assert found.line > 1
        assert "only the room that works with it sees" in found.problem
    refuse_private(plan(etc, 'read = ["/usr/share"]'), etc.load())


@pytest.mark.skipif(os.geteuid() != 0, reason="root binds")
def test_a_hook_is_not_led_elsewhere(etc: Etc) -> None:
    made = plan(etc, 'read = ["/tmp"]')
    rooms = [
        r._replace(grant=r.grant._replace(read=("/run",))) if r.hook else r for r in made.rooms
    ]
    with pytest.raises(RefusedError, match="hook h: /run cannot be shown to its room"):
        lent.refuse_exchangeable(made._replace(rooms=tuple(rooms)))


def test_with_a_capability_nobody_but_root_may_change_what_runs(etc: Etc) -> None:
    script = etc.file("script", "")
    made = plan(etc)
    hook = made.hooks[0]._replace(command=("/bin/sh", script, "/nowhere"))
    made = made._replace(hooks=(hook,))
    assert list(lent_programs(made)) == [(700, "/bin/sh")]
    rooms = tuple(
        r._replace(grant=r.grant._replace(capabilities=("CAP_DAC_READ_SEARCH",))) if r.hook else r
        for r in made.rooms
    )
    assert list(lent_programs(made._replace(rooms=rooms))) == [(0, "/bin/sh"), (0, script)]


@pytest.mark.parametrize(
    "options",
    [
        {"job": "a b"}, {"run": "x" * 65}, {"outcome": "complete\n"}, {"exit_code": "0"},
        {"snapshots": ["repo:12345678 x"]}, {"snapshots": ["repo:latest"]}, {"moment": "$(id)"},
        {"snapshots": ["r:12345678"] * 257},
    ],
)  # fmt: skip
def test_a_caller_cannot_tell_a_hook_what_it_likes(options: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        environment({"options": options})
