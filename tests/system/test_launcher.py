"""Readers started by launchers: no systemd, no root parent, and one user for all rooms."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from capkeep.errors import ConfigError, RefusedError
from capkeep.host import drift, launchers
from capkeep.host.files import Owner, write_atomic
from capkeep.host.probe import probe
from capkeep.kernel import landlock
from capkeep.kernel.launcher import ATTRIBUTE, Mark, attribute
from capkeep.plan.model import Secret, Starter
from capkeep.rooms.protocol import Channel, Message
from capkeep.values import SecretSource
from tests.engines import restic_programs
from tests.rooms.launched import (
    HOST,
    USER,
    Launched,
    begun,
    ended,
    events,
    launched,
    lost_to,
    only_root_s,
)
from tests.system.test_apply import PREFIX, Host

STRANGER: Final = 71_234
OTHER_USER: Final = "lp"  # who is there on every Debian, and runs nothing
OTHER: Final = """
[repositories.other]
engine = "{engine}"
location = "{base}/repositories/{name}"
{password}
[jobs.other]
repositories = ["other"]
include = ["{base}/source"]
"""
PASSWORD: Final = 'password = {{ file = "{base}/etc/secrets/repo" }}'
# What Python runs by itself of its user's home; a marker says that it did.
PLANTED: Final = "import os; os.close(os.open({marker!r}, os.O_CREAT | os.O_WRONLY))\n"

pytestmark = pytest.mark.skipif(
    not landlock.abi(), reason="without Landlock no launcher's reader begins"
)


@pytest.fixture(scope="module")
def home() -> Iterator[Launched]:
    with begun() as made:
        yield made


def test_everything_is_read_without_a_root_parent(home: Launched) -> None:
    mounted = Path(home.base, "source/deep/mounted")
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
    try:
        said = events(home, "run")
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert ended(said)["outcome"] == "complete", said
    assert str(mounted) in [m["path"] for m in said if m["event"] == "left-out"]
    listed = home("ls", "latest", uid=0, gid=0).out
    assert f"{home.base}/source/secret" in listed
    assert f"{home.base}/etc/secrets" not in listed
    back = Path(home.base, "back")
    restored = home("restore", "latest", "--to", str(back), uid=0, gid=0)
    assert restored.code == 0, restored
    copy = Path(f"{back}{home.base}/source/secret")
    assert (copy.read_text(), copy.stat().st_uid) == ("for root alone\n", 0)


@pytest.mark.parametrize(
    "engine, program",
    [
        *(("restic", str(path)) for path in list(restic_programs().values())[1:]),
        ("borg", "/usr/bin/borg"),
        ("rdiff-backup", "/usr/bin/rdiff-backup"),
    ],
)
def test_each_engine_works_closed_in_and_runs_nothing_from_its_cache(
    home: Launched, engine: str, program: str
) -> None:
    """Its cache is its user's, which is the other rooms': what one of them leaves there is no program's."""
    config = Path(home.places.config, "capkeep.toml")
    before, name = config.read_text(), program.strip("/").replace("/", "-")
    known = str(restic_programs()["0.14"])
    password = "" if engine == "rdiff-backup" else PASSWORD.format(base=home.base)
    text = before.replace(known, program) if engine == "restic" else before
    other = OTHER.format(base=home.base, engine=engine, name=name, password=password)
    config.write_text(text + other)
    cache = Path(home.places.cache, "reader-other-other")
    try:
        home.apply(home.compiled())
        marker = plant(cache)
        assert home("init", "other").code == 0
        end = ended(events(home, "run", "other"))
        assert end["outcome"] == "complete", end
        back = Path(home.base, f"back-{name}")
        restoring = plant(Path(home.places.cache, "restorer-other"))
        done = home("restore", "latest", "-r", "other", "--to", str(back), uid=0, gid=0)
        assert done.code == 0, done
        assert not marker.exists()
        assert not restoring.exists()
    finally:
        config.write_text(before)
        home.apply(home.plan)
        shutil.rmtree(cache)
        shutil.rmtree(cache.with_name("restorer-other"))


def plant(cache: Path) -> Path:
    """What another room of its user could leave there for any Python; the file that it would make."""
    marker = cache / "taken-over"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in {version, "python3.11", "python3.12", "python3.13"}:
        folder = cache / ".local/lib" / python / "site-packages"
        folder.mkdir(parents=True)
        (folder / "planted.pth").write_text(PLANTED.format(marker=str(marker)))
        (folder / "usercustomize.py").write_text(PLANTED.format(marker=str(marker)))
    for path in (cache / ".local").rglob("*"):
        os.chown(path, USER.pw_uid, USER.pw_gid)
    os.chown(cache / ".local", USER.pw_uid, USER.pw_gid)
    return marker


def test_the_reader_alone_has_the_capability_and_proves_its_walls(home: Launched) -> None:
    said = events(home, "run", "--dry-run")
    assert ended(said)["outcome"] == "complete", said
    proofs = [m for m in said if m["event"] == "proof"]
    held = {}
    for proof in proofs:
        facts = proof["facts"]
        assert isinstance(facts, dict)
        assert proof["weaker"] == []
        assert set(facts["uids"]) == {USER.pw_uid}
        held[f"{proof['room']} {proof['process']}"] = (facts["effective"], facts["refused"])
    everything = ["write", "read", "socket"]
    reader = (["CAP_DAC_READ_SEARCH"], everything)
    assert held["reader-job-repo engine"] == held["reader-job-repo room"] == reader
    assert held["vault-repo vault"] == held["runner room"] == ([], [])


def test_a_lost_mark_is_told_before_the_engine_starts(home: Launched) -> None:
    os.removexattr(home.launcher, ATTRIBUTE)
    try:
        text = lost_to(events(home, "run"))
        assert "has lost CAP_DAC_READ_SEARCH" in text
        assert "has lost its mark" in text
        found = [(f.what, f.text, f.mend) for f in drift.differences(home.plan)]
        text = "has lost its capability; it was cap_dac_read_search=ep"
        assert (str(home.launcher), text, "capkeep apply") in found
    finally:
        home.apply(home.plan)
    assert os.getxattr(home.launcher, ATTRIBUTE) == attribute(Mark.PERMITTED)
    assert not [f for f in drift.differences(home.plan) if "launchers" in f.what]
    assert ended(events(home, "run", "--dry-run"))["outcome"] == "complete"


def test_what_keeps_a_marked_launcher_from_gaining_it_is_told(home: Launched) -> None:
    said = asked(home, USER.pw_uid, {"action": "probe"}, "/usr/bin/setpriv", "--no-new-privs", "--")
    assert [(m["event"], m.get("failure")) for m in said] == [("result", "weakened")]
    assert "is marked, but something above it keeps programs from gaining" in str(said[0]["text"])


@pytest.mark.parametrize(
    "mark, given",
    [
        (None, ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")),
        (Mark.INHERITABLE, ("--inh-caps=-all,+dac_read_search",)),
    ],
    ids=["ambient", "pam_cap"],
)
def test_a_capability_of_its_caller_s_is_as_good(
    home: Launched, mark: Mark | None, given: tuple[str, ...]
) -> None:
    ids = (f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups")
    if mark:
        os.setxattr(home.launcher, ATTRIBUTE, attribute(mark))
    else:
        os.removexattr(home.launcher, ATTRIBUTE)
    try:
        said = asked(home, 0, {"action": "probe"}, "/usr/bin/setpriv", *ids, *given, "--")
        assert [(m["event"], m.get("weaker")) for m in said] == [("proof", [])]
        said = asked(home, USER.pw_uid, {"action": "probe"})
        assert [(m["event"], m.get("failure")) for m in said] == [("result", "weakened")]
    finally:
        home.apply(home.plan)


def test_changed_launchers_and_strange_ones_are_found(home: Launched) -> None:
    other = Path(home.places.launchers, "another")
    content = home.launcher.read_bytes()
    mark, group = attribute(Mark.PERMITTED), Owner(0, USER.pw_gid)
    try:
        write_atomic(str(other), content, owner=group, mode=0o755, mark=mark)
        changed = content.replace(b"reader-job", b"reader-jab")
        write_atomic(str(home.launcher), changed, owner=group, mode=0o750, mark=mark)
        assert found(home) == {
            "another": "is not in the plan, and may carry a capability",
            "reader-job-repo": "is another program than `capkeep apply` makes",
        }
        write_atomic(str(home.launcher), content, owner=group, mode=0o755, mark=mark)
        assert "has a wrong owner or mode" in found(home)["reader-job-repo"]
        home.launcher.unlink()
        assert "is missing" in found(home)["reader-job-repo"]
    finally:
        other.unlink()
        home.apply(home.plan)
    assert found(home) == {}


def found(home: Launched) -> dict[str, str]:
    return {
        os.path.basename(f.what): f.text
        for f in drift.differences(home.plan)
        if f.what.startswith(home.places.launchers)
    }


def test_an_audit_starts_it_as_it_is_started_at_night(home: Launched) -> None:
    probes = probe(home.plan, {})
    assert probes.findings == ()
    reader = {p.process: p.facts for p in probes.rooms if p.room == "reader-job-repo"}
    assert reader["engine"].refused == ("write", "read", "socket")
    assert reader["room"].effective == ("CAP_DAC_READ_SEARCH",)


def asked(
    home: Launched, uid: int, request: Message, *before: str, wired: bool = True
) -> list[Message]:
    """What the launcher's reader says to whoever starts it himself; `before`: in another manner."""
    ours, theirs = socket.socketpair()
    near, far = socket.socketpair()

    def arrange() -> None:
        os.dup2(near.fileno(), 4) if wired else os.close(4)

    with Channel(ours) as channel, near, far, theirs:
        child = subprocess.Popen(
            [*before, home.launcher, "/etc/shadow"], user=uid, group=USER.pw_gid, extra_groups=[], cwd="/tmp",
            env={"PYTHONPATH": "/tmp", "CREDENTIALS_DIRECTORY": "/etc"}, stdin=theirs, stdout=theirs,
            preexec_fn=arrange, close_fds=False,  # noqa: PLW1509 - no threads here
        )  # fmt: skip
        theirs.close()
        near.close()
        with contextlib.suppress(OSError):
            channel.send(request)
        channel.sock.settimeout(60)
        said: list[Message] = []
        try:
            for message in channel:
                said.append(message)
                if message["event"] in ("proof", "result"):
                    break
            return said
        finally:
            far.close()
            channel.close()
            child.wait(60)


def test_somebody_else_of_its_group_starts_nothing(home: Launched) -> None:
    said = asked(home, STRANGER, {"action": "probe"})
    assert [m["event"] for m in said] == ["result"]
    assert "is for games alone to start" in str(said[0]["text"])


def test_who_is_not_in_its_group_cannot_even_begin(home: Launched) -> None:
    with pytest.raises(PermissionError):
        subprocess.run([home.launcher], user=STRANGER, group=STRANGER, extra_groups=[], check=False)


def test_without_a_caller_it_says_on_its_log_what_it_lacks(home: Launched) -> None:
    done = subprocess.run(
        [home.launcher], user=USER.pw_uid, group=USER.pw_gid, extra_groups=[], check=False,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = "capkeep: reader-job-repo is started with a socket as descriptor 0\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_it_executes_nothing_that_others_can_change(home: Launched) -> None:
    """Also when it is run by hand, and nobody else has looked."""
    engine, copy = home.plan.repository("repo"), Path(home.base, "lib/restic")
    shutil.copy(engine.program, copy)
    for changed in (copy, Path(home.package, "capkeep/guest/launch.py")):
        before = changed.stat().st_mode & 0o7777
        home.apply(home.plan._replace(repositories=(engine._replace(program=str(copy)),)))
        changed.chmod(0o777)
        try:
            said = asked(home, USER.pw_uid, {"action": "probe"})
        finally:
            changed.chmod(before)
            home.apply(home.plan)
        assert f"others than root can change: {changed} can be written" in str(said[-1]["text"])


def test_it_begins_nothing_without_a_wire(home: Launched) -> None:
    said = asked(home, USER.pw_uid, {"action": "backup"}, wired=False)
    assert "a socket as descriptor 4" in str(said[-1]["text"])


def shown(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_uid, state.st_gid, state.st_mode & 0o777


def test_secrets_are_that_user_s_and_not_his_group_s(home: Launched) -> None:
    """Members of the group may read the records; they are not to have what the jobs keep."""
    secret = Path(home.base, "etc/secrets/repo")
    assert shown(secret) == (USER.pw_uid, 0, 0o400)
    assert shown(secret.parent) == (0, USER.pw_gid, 0o710)
    for uid, code in ((USER.pw_uid, 0), (STRANGER, 1)):
        done = subprocess.run(
            ["/bin/cat", secret], user=uid, group=USER.pw_gid, extra_groups=[], check=False,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == code, done
    secret.chmod(0o440)
    try:
        text = f"is not {USER.pw_name}'s alone to read"
        assert (str(secret), text) in [(f.what, f.text) for f in drift.differences(home.plan)]
    finally:
        home.apply(home.plan)
    assert shown(secret) == (USER.pw_uid, 0, 0o400)


def test_a_secret_that_is_elsewhere_is_nobody_else_s_to_have(home: Launched) -> None:
    """Such as the key with which root logs in, also by a link; nor what is not root's."""
    vault = home.plan.room("vault-repo")
    for name, inside in (("key", False), ("link", True)):
        key = Path(home.base, "elsewhere")
        only_root_s(key, "root's own")
        place = Path(home.base, "etc/secrets" if inside else "", name)
        place.unlink(missing_ok=True)
        place.symlink_to(key)
        secret = Secret("identity", SecretSource(file=str(place if inside else key)))
        rooms = [r._replace(secrets=(secret,)) if r == vault else r for r in home.plan.rooms]
        try:
            with pytest.raises(RefusedError, match="would have to be given to games"):
                home.apply(home.plan._replace(rooms=tuple(rooms)))
            assert shown(key) == (0, 0, 0o600)
        finally:
            place.unlink()


def test_what_opens_doors_as_root_takes_secrets_back(home: Launched) -> None:
    secret = Path(home.base, "etc/secrets/repo")
    plan = home.plan._replace(starter=Starter.DOORS)
    try:
        made = [change for change in launchers.changes(plan) if change.needed()]
        assert [change.path for change in made] == [str(secret)]
        made[0].make()
        assert shown(secret) == (0, 0, 0o600)
        assert not [change for change in launchers.changes(plan) if change.needed()]
    finally:
        home.apply(home.plan)
    assert shown(secret) == (USER.pw_uid, 0, 0o400)


def test_apply_makes_it_and_remove_takes_it_all_back() -> None:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    try:
        host = Host(base)
        with_doors = host.config.read_text()
        host.config.write_text(with_doors.replace("[host]", '[host]\nstart = "launcher"'))
        secret, program = host.base / "etc/secrets/repo", f"{base}/state/launchers/reader-job-repo"
        try:
            made = host("apply")
            assert made.code == 0, made
            assert f"made launcher {program} (cap_dac_read_search=ep, for {PREFIX})" in made.out
            assert [u.pw_name for u in pwd.getpwall() if u.pw_name.startswith(PREFIX)] == [PREFIX]
            again = host("plan")
            assert again.out.splitlines()[0] == "nothing to change", again
            user = pwd.getpwnam(PREFIX)
            assert shown(secret) == (user.pw_uid, 0, 0o400)
            audited = host("audit")
            assert audited.code == 0, audited
            told = f"user {OTHER_USER}: is in group {PREFIX}, and can start launchers that are for {PREFIX} alone"
            mend = f"gpasswd -d {OTHER_USER} {PREFIX}"
            subprocess.run(["usermod", "-aG", PREFIX, OTHER_USER], check=True, timeout=60)
            for verb, code in (("plan", 0), ("apply", 0), ("audit", 7)):
                said = host(verb)
                assert (said.code, told in said.out, mend in said.out) == (code, True, True), said
            subprocess.run(mend.split(), check=True, timeout=60, capture_output=True)
            assert OTHER_USER not in host("plan").out
            os.removexattr(program, ATTRIBUTE)
            planned = host("plan")
            assert planned.out.startswith(f"would make launcher {program} "), planned
            host.config.write_text(with_doors)
            changed = host("apply")
            assert changed.code == 0, changed
            assert f"made secret {secret} (owner 0:0, mode 0600)" in changed.out
            assert shown(secret) == (0, 0, 0o600)
            assert shown(secret.parent) == (0, 0, 0o700)
            assert not Path(program).parent.exists()
            host.config.write_text(with_doors.replace("[host]", '[host]\nstart = "launcher"'))
            back = host("apply")
            assert back.code == 0, back
            assert shown(secret) == (user.pw_uid, 0, 0o400)
            former = secret.with_name("not-named-any-more")
            former.write_text("a password\n")
            former.chmod(0o400)
            os.chown(former, user.pw_uid, 0)
        finally:
            removed = host("remove")
        assert removed.code == 0, removed
        assert not Path(program).parent.exists()
        assert shown(secret) == shown(former) == (0, 0, 0o600)
        assert not [u.pw_name for u in pwd.getpwall() if u.pw_name.startswith(PREFIX)]
    finally:
        shutil.rmtree(base)


def test_what_needs_another_user_or_root_is_refused_by_name() -> None:
    with launched() as home:
        path = Path(home.places.config, "capkeep.toml")
        path.write_text(
            path.read_text().replace(HOST, HOST + "members-restore = true\n")
            + '[dumps.who]\nkind = "command"\ncommand = ["/usr/bin/id"]\nuser = "daemon"\n'
        )
        text = path.read_text().replace(
            'repositories = ["repo"]', 'repositories = ["repo"]\ndumps = ["who"]'
        )
        path.write_text(text)
        with pytest.raises(ConfigError) as refused:
            home.compiled()
    assert "dump who needs a user of its own" in str(refused.value)
    assert "members-restore" in str(refused.value)
