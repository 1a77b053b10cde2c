"""Readers started by launchers: no systemd, no root parent, and one user for all rooms."""

import contextlib
import json
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
from capkeep.kernel.launcher import ATTRIBUTE, Mark, attribute, program
from capkeep.plan.model import Plan, Secret, Starter
from capkeep.rooms.protocol import Channel, Message
from capkeep.values import SecretSource
from tests.engines import restic_programs
from tests.host import host_filters
from tests.rooms.house import INTERPRETER
from tests.rooms.launched import HOST, USER, Launched, launched, only_root_s
from tests.system import hostile_launched
from tests.system.test_apply import PREFIX, Host

STRANGER: Final = 71_234
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
# What a container's own filter may stop before any wall of ours; all else has to succeed without walls.
FILTERED: Final = {
    "trace a victim", "read a victim's memory", "take a file's handle", "make a netlink socket",
    "have a victim wait for disks",
}  # fmt: skip
VICTIM: Final = (
    "import signal, sys; signal.signal(signal.SIGUSR1, signal.SIG_IGN);"
    " print('y', flush=True); sys.stdin.read()"
)

pytestmark = pytest.mark.skipif(
    not landlock.abi(), reason="without Landlock no launcher's reader begins"
)


@pytest.fixture(scope="module")
def home() -> Iterator[Launched]:
    with launched() as made:
        only_root_s(Path(made.base, "source/secret"), "for root alone\n")
        done = made("init")
        assert done.code == 0, done
        yield made


def events(home: Launched, *words: str) -> list[Message]:
    return [json.loads(line) for line in home(*words, "--json").out.splitlines()]


def ended(said: list[Message]) -> Message:
    return next(m for m in said if m.get("event") == "end")


def lost_to(said: list[Message]) -> str:
    """Why it failed, where nothing but the runner has proven itself: then no engine was started."""
    assert {m["process"] for m in said if m["event"] == "proof"} == {"room"}
    end = ended(said)
    assert end["failure"] == "weakened", said
    return f"{end['text']} {end['reasons']}"


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
        *(("restic", str(path)) for path in restic_programs().values()),
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
        assert not marker.exists()
    finally:
        config.write_text(before)
        home.apply(home.plan)
        shutil.rmtree(cache)


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


def test_what_root_writes_to_is_not_the_rooms_user_s(home: Launched) -> None:
    """Root's standard error may be a log of root's own; rooms of the same user's doors have theirs."""
    line = "    hide_memory()\n    try:\n        brief = read()\n"
    speaking = (line, f"    os.write(2, b'said by a room')\n{line}")
    assert home("run").code == 0
    with with_changed(home, "rooms/base.py", speaking):
        listed = home("ls", "latest", uid=0, gid=0)
    assert listed.code == 0, listed
    assert "said by a room" not in listed.err


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
    engine = home.plan.repository("repo")
    for program, path in (
        ("lib/restic", "lib/restic"),
        ("lib/restic", "lib/capkeep/guest/launch.py"),
    ):
        copy, changed = Path(home.base, program), Path(home.base, path)
        shutil.copy(engine.program, copy)
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


@pytest.mark.parametrize("abi", [0, 1])
def test_a_hostile_engine_gets_at_nothing_that_is_in_sight(home: Launched, abi: int) -> None:
    """Each attempt succeeds without walls, with the same user and capability; else it shows nothing.

    Also with no more of Landlock than its first version had (Linux 5.13; Debian 12 has the second).
    """
    with victims(home) as targets:
        plan = in_place_of_restic(home, targets)
        free = attempts_without_walls(home, targets)
        stopped = {name: why for name, (got, why) in free.items() if not got}
        assert stopped.keys() <= stopped_by_host(stopped), free
        own = Path(targets["own"])
        own.chmod(0o600)
        os.utime(own, (5, 5))
    with victims(home) as targets:
        plan = in_place_of_restic(home, targets)
        home.apply(plan)
        try:
            with with_landlock(home, abi):
                said = events(home, "run")
            assert ended(said)["outcome"] == "failed"
            assert "engine" in {m["process"] for m in said if m["event"] == "proof"}
        finally:
            home.apply(home.plan)
        results = json.loads(Path(targets["out"], "found").read_text())
        assert {name: why for name, (got, why) in results.items() if got} == {}
        assert len(results) == len(hostile_launched.ATTEMPTS)
        state = os.stat(targets["own"])
        assert (state.st_mode & 0o777, state.st_mtime) == (0o600, 5)


def test_it_begins_nothing_where_a_secret_can_be_read(home: Launched) -> None:
    """It tries each of them once it is closed in, whatever rules it has made."""
    everything = ('SEEN: Final = ("/usr",', 'SEEN: Final = ("/usr", "/srv",')
    nothing_hidden = (
        "_open(path, room.grant.hide, frozenset(), whole, names)",
        "whole.append(path)",
    )
    with with_changed(home, "host/launched.py", everything, nothing_hidden):
        text = lost_to(events(home, "run"))
    secret = f"{home.base}/etc/secrets/repo"
    assert f"Landlock does not keep reader-job-repo from {secret}" in text


def stopped_by_host(stopped: dict[str, str]) -> set[str]:
    """What this host itself lets nobody do: attempts that can show nothing here."""
    # Some filesystems have no handles (overlayfs), others no flags (tmpfs before Linux 6.6).
    found = {name for name, why in stopped.items() if why in ("EOPNOTSUPP", "ENOTTY")}
    if host_filters():
        found |= FILTERED
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists() and yama.read_text().strip() != "0":
        found |= {"trace a victim", "read a victim's memory"}
    return found


def with_landlock(home: Launched, abi: int) -> contextlib.AbstractContextManager[None]:
    """Rooms that take this kernel for one with an older version of it; 0: as it is."""
    line = "    version = abi()\n"
    changed = f"    version = {abi}\n" if abi else line
    return with_changed(home, "kernel/landlock.py", (line, changed))


@contextlib.contextmanager
def with_changed(home: Launched, module: str, *changes: tuple[str, str]) -> Iterator[None]:
    """Rooms whose program is otherwise."""
    path = Path(home.package, "capkeep", module)
    before = text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def victims(home: Launched) -> Iterator[dict[str, str]]:
    """What there is to be got, all of the rooms' one user: files, a process, sockets."""
    out = f"{home.places.cache}/reader-job-repo"
    folder = Path(home.base, "owned")
    folder.mkdir(exist_ok=True)
    os.chown(folder, USER.pw_uid, USER.pw_gid)
    names = {name: str(folder / name) for name in ("own", "emptied", "removed", "renamed", "door")}
    for name in ("own", "emptied", "removed", "renamed"):
        Path(names[name]).write_text("of the rooms' user\n")
        Path(names[name]).chmod(0o600)
        os.chown(names[name], USER.pw_uid, USER.pw_gid)
    os.utime(names["own"], (5, 5))
    for leftover in (names["door"], f"{names['own']}-new", f"{out}/linked", f"{out}/found"):
        Path(leftover).unlink(missing_ok=True)
    shutil.rmtree(f"{out}/.local", ignore_errors=True)
    inside, beside = Path(home.package, "capkeep/hidden/secret"), Path(home.package, "beside")
    inside.parent.mkdir(exist_ok=True)
    mounted = Path(home.base, "source/deep/mounted")
    mounted.mkdir(parents=True, exist_ok=True)
    fifo, tmp = Path(home.base, "source/fifo"), Path("/tmp", f"hostile-{os.getpid()}")
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    abstract = f"capkeep-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.callback(fifo.unlink)
        stack.callback(tmp.unlink, missing_ok=True)
        stack.callback(os.close, os.open(fifo, os.O_RDWR))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
        stack.callback(subprocess.run, ["umount", mounted], check=True)
        for path in (inside, beside, mounted / "file"):
            only_root_s(path, "not of the job\n")
        readable = Path(home.base, "source/readable")
        stack.callback(readable.unlink)
        readable.write_text("of the rooms' user, and kept\n")
        os.chown(readable, USER.pw_uid, USER.pw_gid)
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        door, hidden = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        door.bind(names["door"])
        os.chmod(names["door"], 0o666)
        hidden.bind("\0" + abstract)
        for sock in (tcp, udp, door, hidden):
            stack.callback(sock.close)
        for sock in (door, hidden):
            sock.listen(8)
        victim = subprocess.Popen(
            [INTERPRETER, "-c", VICTIM],
            user=USER.pw_uid, group=USER.pw_gid, extra_groups=[], env={"TOKEN": "of the victim"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert victim.stdout is not None
        victim.stdout.read(1)
        stack.callback(victim.communicate, timeout=30)
        stack.callback(victim.kill)
        yield names | {
            "out": out, "fifo": str(fifo), "tmp": str(tmp), "abstract": abstract,
            "victim": str(victim.pid), "tcp": str(tcp.getsockname()[1]), "udp": str(udp.getsockname()[1]),
            "secret": f"{home.base}/etc/capkeep.toml", "password": f"{home.base}/etc/secrets/repo",
            "config": f"{home.base}/repositories/repo/config", "readable": str(readable),
            "inside": str(inside), "beside": str(beside), "left_out": str(mounted / "file"),
        }  # fmt: skip


def in_place_of_restic(home: Launched, targets: dict[str, str]) -> Plan:
    """The plan with the hostile program for an engine."""
    path = Path(home.base, "lib/hostile")
    source = Path(hostile_launched.__file__).read_text()
    path.write_text(f"#!{INTERPRETER} -IS\nTARGETS = {targets!r}\n{source}")
    path.chmod(0o755)
    repositories = (home.plan.repository("repo")._replace(program=str(path)),)
    reader = home.plan.room("reader-job-repo")
    hide = (*reader.grant.hide, os.path.dirname(targets["inside"]))
    hiding = reader._replace(grant=reader.grant._replace(hide=hide))
    rooms = tuple(hiding if room == reader else room for room in home.plan.rooms)
    return home.plan._replace(repositories=repositories, rooms=rooms)


def attempts_without_walls(home: Launched, targets: dict[str, str]) -> dict[str, tuple[bool, str]]:
    """The same program by a launcher that starts it at once: what a copy of setpriv would do."""
    free = Path(home.base, "free")
    argv = (f"{home.base}/lib/hostile",)
    content = program(os.uname().machine, argv, {"PATH": "/usr/bin"})
    owner = Owner(0, USER.pw_gid)
    write_atomic(str(free), content, owner=owner, mode=0o750, mark=attribute(Mark.PERMITTED))
    subprocess.run(
        [free], user=USER.pw_uid, group=USER.pw_gid, extra_groups=[], check=False, timeout=60
    )
    return dict(json.loads(Path(targets["out"], "found").read_text()))


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
        finally:
            removed = host("remove")
        assert removed.code == 0, removed
        assert not Path(program).parent.exists()
        assert shown(secret) == (0, 0, 0o600)
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
