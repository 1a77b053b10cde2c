"""What stands between a launched reader's engine and the machine that it sees, attacked."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from capkeep.host.files import Owner, write_atomic
from capkeep.kernel import landlock
from capkeep.kernel.launcher import Mark, attribute, program
from capkeep.plan.model import Plan
from tests.host import host_filters
from tests.rooms.house import INTERPRETER
from tests.rooms.launched import USER, Launched, begun, ended, events, lost_to, only_root_s
from tests.system import hostile_launched

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
    with begun() as made:
        yield made


def test_what_root_writes_to_is_not_the_rooms_user_s(home: Launched) -> None:
    """Root's standard error may be a log of root's own; rooms of the same user's doors have theirs."""
    line = "    hide_memory()\n    try:\n        brief = read()\n"
    speaking = (line, f"    os.write(2, b'said by a room')\n{line}")
    assert home("run").code == 0
    with with_changed(home, "rooms/base.py", speaking):
        listed = home("ls", "latest", uid=0, gid=0)
    assert listed.code == 0, listed
    assert "said by a room" not in listed.err


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
