"""Dumps that fail: the last good one stays, the run fails and says which and why, files are kept."""

import contextlib
import json
import os
import pwd
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.errors import RefusedError
from capkeep.host.apply import refuse_untrusted
from capkeep.host.lent import refuse_exchangeable
from capkeep.host.trust import firm
from capkeep.plan.model import RoomKind
from tests.engines import restic_programs
from tests.rooms.house import UIDS, wait_for
from tests.system.conftest import Product, Said
from tests.system.scenes import start
from tests.system.servers import PostgreSQL, run_as, server
from tests.system.test_dumps import give, home_of, kept, manifest, readable, staged, take

__all__ = ["kept"]
SWITCH = """#!/usr/bin/python3 -I
import pathlib, sys, time
sys.stdout.write("a dump\\n"); sys.stdout.flush()
exec(pathlib.Path(sys.argv[1]).read_text())
"""


class Switched:
    """A dump by a command that does what a file says, after it has written something."""

    def __init__(self, product: Product, home: Path, more: str = "", *, good: bool = True) -> None:
        self._product = product
        self._deed = home / "deed"
        program = home / "program"
        program.write_text(SWITCH)
        program.chmod(0o755)
        self.does("pass")
        words = f'["{program}", "{self._deed}"]'
        table = f'kind = "command"\nuser = "games"\ncommand = {words}\npaths = ["{home}"]\n'
        take(product, "own", table + more)
        if not good:
            return
        done = product("run")
        assert done.code == 0, done
        self.good = self.last()

    def does(self, deed: str) -> None:
        self._deed.write_text(deed)
        self._deed.chmod(0o644)

    def last(self) -> tuple[bytes, str]:
        """The dump that is in place, and when it was taken."""
        taken = manifest(self._product, "own")["taken"]
        return (staged(self._product, "own") / "last/dump").read_bytes(), str(taken)

    def failed(self, done: Said, code: int) -> list[dict[str, object]]:
        """What the run told; it must have failed, have kept the dump before, and the files."""
        assert done.code == code, done.out
        assert self.last() == self.good
        assert [p.name for p in staged(self._product, "own").iterdir()] == ["last"]
        told = [json.loads(line) for line in done.out.splitlines()]
        backup = [m for m in told if m["event"] == "step-end" and m["kind"] == "backup"]
        assert [m["outcome"] for m in backup] == ["complete"]
        return told


@pytest.fixture
def home() -> Iterator[Path]:
    with home_of("games") as path:
        yield path


def test_a_command_that_fails(kept: Product, home: Path) -> None:
    switched = Switched(kept, home)
    switched.does("sys.exit('the oven is cold')")
    told = switched.failed(kept("run", "--json"), 1)
    end = next(m for m in told if m["event"] == "end")
    assert "dump own: its output: program ended with 1: the oven is cold" in str(end["text"])


def test_a_dump_that_takes_too_long(kept: Product, home: Path) -> None:
    switched = Switched(kept, home, 'timeout = "10s"\n')
    switched.does("time.sleep(100)")
    told = switched.failed(kept("run", "--json"), 17)
    end = next(m for m in told if m["event"] == "end")
    assert "dump own: its output: not done when the 10 s for the dump were over" in str(end["text"])


def test_a_disk_that_is_full(kept: Product, home: Path) -> None:
    kept.configure("[jobs.job]", '[limits]\nfree-space = "1K"\n\n[jobs.job]')
    root = staged(kept, "own")
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", root], check=True, timeout=20)
    try:
        switched = Switched(kept, home)
        switched.does("[sys.stdout.write('x' * 1000) for _ in range(2000)]; sys.stdout.flush()")
        told = switched.failed(kept("run", "--json"), 14)
        end = next(m for m in told if m["event"] == "end")
        assert end["failure"] == "no-space"
        assert str(end["text"]).startswith("dump own: its output: ")
    finally:
        subprocess.run(["umount", root], check=True, timeout=20)


@pytest.mark.parametrize("whom", ["room", "program"])
def test_a_dumper_that_is_killed(kept: Product, home: Path, whom: str) -> None:
    switched = Switched(kept, home)
    switched.does("time.sleep(100)")
    running = start(kept, "run", "--json")
    try:
        written = staged(kept, "own") / "unfinished/dump"
        wait_for(lambda: written.exists() and written.stat().st_size > 0)
        mark = b"capkeep.rooms.dumper" if whom == "room" else str(home).encode()
        (pid,) = (pid for pid, words in processes_of(pwd.getpwnam("games").pw_uid) if mark in words)
        os.kill(pid, signal.SIGKILL)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait(20)
    told = [json.loads(line) for line in out.splitlines()]
    end = next(m for m in told if m["event"] == "end")
    assert end["outcome"] == "failed", (out, err)
    assert switched.last() == switched.good
    assert ("died" if whom == "room" else "signal 9") in str(end["text"])
    switched.does("pass")
    done = kept("run")
    assert done.code == 0, done.out
    assert [p.name for p in staged(kept, "own").iterdir()] == ["last"]


def processes_of(uid: int) -> Iterator[tuple[int, bytes]]:
    """Number and command line of each of a user."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if entry.name.isdecimal() and entry.stat().st_uid == uid:
                yield int(entry.name), (entry / "cmdline").read_bytes()


def test_an_optional_dump_does_not_fail_the_run(kept: Product, home: Path) -> None:
    switched = Switched(kept, home, "optional = true\n")
    switched.does("sys.exit('the oven is cold')")
    told = switched.failed(kept("run", "--json"), 0)
    steps = [(m["kind"], m["outcome"]) for m in told if m["event"] == "step-end"]
    assert steps[:2] == [("dump", "failed"), ("backup", "complete")]
    warnings = [str(m["text"]) for m in told if m["event"] == "warning"]
    assert any("the oven is cold" in text for text in warnings)


def test_a_server_that_is_down_and_a_table_that_is_locked(kept: Product) -> None:
    with server(PostgreSQL) as source:
        source.ask("CREATE DATABASE shop")
        source.ask("CREATE TABLE goods (id int)", "shop")
        take(kept, "postgresql", f'socket = "{source.run}"\ntimeout = "12s"\n')
        assert kept("run").code == 0
        good = manifest(kept, "postgresql")
        held = threading.Thread(
            target=source.ask, args=("BEGIN; LOCK goods; SELECT pg_sleep(20)", "shop")
        )
        held.start()
        waits = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'"
        wait_for(lambda: source.ask(waits) != "0\n")
        locked = kept("run")
        held.join(60)
        assert locked.code != 0, locked.out
        assert "dump postgresql: database shop: pg_dump ended with 1" in locked.out
        assert manifest(kept, "postgresql") == good
        source.stop()
        down = kept("run")
        assert down.code == 15, down.out
        assert "dump postgresql: the server: psql ended with 2" in down.out
        assert manifest(kept, "postgresql") == good
        (staged(kept, "postgresql") / "last/shop.dump").stat()


def test_a_database_that_is_not_whole(kept: Product, home: Path) -> None:
    path = home / "app.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE t (n int PRIMARY KEY, words text)")
    database.executemany(
        "INSERT INTO t VALUES (?, ?)", [(n, "some words " * 20) for n in range(2000)]
    )
    database.commit()
    database.close()
    give(home, "games")
    take(kept, "app", f'kind = "sqlite"\npaths = ["{path}"]\n')
    assert kept("run").code == 0
    good = manifest(kept, "app")
    with open(path, "r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xff" * 4096 * 3)
    done = kept("run")
    assert done.code == 1, done.out
    assert f"dump app: {path}: python3" in done.out
    assert manifest(kept, "app") == good


def test_a_command_that_others_could_change_is_not_run(kept: Product, home: Path) -> None:
    Switched(kept, home)
    refuse_untrusted(kept.home.compiled(), 0)
    (home / "program").chmod(0o777)
    with pytest.raises(RefusedError, match=f"{home}/program"):
        refuse_untrusted(kept.home.compiled(), 0)


def test_a_way_that_others_came_to_own_is_refused(kept: Product, home: Path) -> None:
    Switched(kept, home)
    plan = kept.home.compiled()
    refuse_exchangeable(plan)
    dumper = plan.room("dumper-own")
    loose = dumper._replace(grant=dumper.grant._replace(read=(f"{home}/deed",)))
    with pytest.raises(RefusedError, match=r"dump own: .*/deed cannot be shown"):
        refuse_exchangeable(plan._replace(rooms=(loose,)))
    whole = dumper._replace(grant=dumper.grant._replace(sockets=("/run",)))
    with pytest.raises(RefusedError, match="dump own: /run cannot be shown"):
        refuse_exchangeable(plan._replace(rooms=(whole,)))


READS = """#!/usr/bin/python3 -I
import sys
for path in sys.argv[1:]:
    try:
        print(open(path).read())
    except OSError as error:
        print(error.strerror)
"""


def test_a_link_of_the_server_s_user_shows_nobody_else_s_files(kept: Product, home: Path) -> None:
    closed = Path(kept.home.base, "closed")
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    (closed / "inner/file").write_text("private")
    program = home / "program"
    program.write_text(READS)
    program.chmod(0o755)
    (home / "own").write_text("its own")
    data = home / "data"
    data.symlink_to(closed / "inner")
    give(home, "games")
    words = ", ".join(
        f'"{p}"' for p in (program, data / "file", closed / "inner/file", home / "own")
    )
    table = f'kind = "command"\nuser = "games"\ncommand = [{words}]\npaths = ["{data}"]\n'
    take(kept, "own", table)
    done = kept("run")
    assert done.code == 0, done.out
    said = (staged(kept, "own") / "last/dump").read_text().splitlines()
    assert said == ["No such file or directory", "No such file or directory", "its own"]


def test_what_is_bound_is_root_s_alone_to_exchange(home: Path) -> None:
    (home / "data").mkdir()
    (home / "link").symlink_to("/etc")
    path = f"{home}/data/app.db"
    assert firm(path) == (str(home), "data/app.db")
    assert firm(f"{home}/link/passwd") == (str(home), "link/passwd")
    assert firm(str(home)) == (str(home), "")
    assert firm("/var/run/there-is-no/socket") == ("/run/there-is-no", "socket")
    assert firm("/tmp/there-is-no") == ("/tmp", "there-is-no")
    with tempfile.TemporaryDirectory(
        dir="/srv"
    ) as ours:  # a link of root's is as good as its target
        os.chmod(ours, 0o755)
        os.symlink(home, f"{ours}/link")
        assert firm(f"{ours}/link/data/app.db") == (str(home), "data/app.db")
        assert firm(f"{ours}/socket") == (f"{ours}/socket", "")
        os.chmod(ours, 0o777)
        assert firm(f"{ours}/socket") == (ours, "socket")


ATTEMPTS = """#!/usr/bin/python3 -I
import json, os, socket, sys
def attempt(deed):
    try:
        deed()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "done"
def tcp():
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 3)
def write(path):
    return lambda: open(path, "w").close()
def read(path):
    return lambda: os.listdir(path) if os.path.isdir(path) else open(path).close()
def link():
    os.symlink("/etc/passwd", sys.argv[2] + "/unfinished/link")
deeds = {"tcp": tcp} | {p: read(p) for p in sys.argv[3:]}
deeds |= {"write " + p: write(p + "/x") for p in ("/usr", "/run", "/dev", "/")}
deeds |= {"write last": write(sys.argv[2] + "/last/manifest.json")}
print(json.dumps({name: attempt(deed) for name, deed in deeds.items()} | {
    "seen": sorted(os.listdir("/")),
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
}))
"""


def test_a_hostile_dumper_reaches_nothing_that_is_not_its_own(kept: Product, home: Path) -> None:
    program = home / "program"
    program.write_text(ATTEMPTS)
    program.chmod(0o755)
    places = kept.home.places
    take(kept, "other", 'kind = "command"\nuser = "games"\ncommand = ["/usr/bin/id"]\n')
    assert kept("run").code == 0
    forbidden = [
        places.secrets, places.config, places.plan, places.records, places.log, places.cache,
        places.runner_socket, str(kept.repository), str(kept.source),
        str(staged(kept, "other")), "/home", "/root", "/var", "/etc/shadow", "/etc/capkeep",
    ]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = ", ".join(f'"{w}"' for w in (program, port, staged(kept, "hostile"), *forbidden))
        table = f'kind = "command"\nuser = "games"\ncommand = [{words}]\n'
        kept.configure('dumps = ["other"]\n', "")
        take(kept, "hostile", table)
        done = kept("run")
    assert done.code == 0, done.out
    said = json.loads((staged(kept, "hostile") / "last/dump").read_text())
    reached = {what for what, answer in said.items() if answer == "done"}
    assert reached <= {"/home", "/var"}, said  # its own directories' parents, and nothing in them
    assert said["tcp"] in ("Permission denied", "Operation not permitted")
    assert said["processes"] <= 6


# -- streamed, without touching the disk


def streamed(product: Product, tag: str) -> list[dict[str, object]]:
    """The repository's snapshots of a dump, oldest first."""
    found = json.loads(product("snapshots", "--json").out)[0]["snapshots"]
    return [s for s in found if tag in s["tags"]]


@pytest.mark.parametrize("version", ["0.14", "0.18", "0.19"])
def test_a_stream_is_a_snapshot_of_its_own(kept: Product, home: Path, version: str) -> None:
    programs = restic_programs()
    if version != "0.14":
        kept.configure(str(programs["0.14"]), str(programs[version]))
    switched = Switched(kept, home, "stream = true\n", good=False)
    switched.does("[sys.stdout.write('x' * 1000) for _ in range(20000)]")
    done = kept("run")
    assert done.code == 0, done.out
    (snapshot,) = streamed(kept, "capkeep:job:own")
    assert snapshot["paths"] == ["/own.dump"]
    target = Path(kept.home.base, "back")
    found = kept.root("restore", str(snapshot["id"]), "/own.dump", "--to", str(target))
    assert found.code == 0, found.out
    assert (target / "own.dump").read_text() == "a dump\n" + "x" * 20_000_000
    assert list(staged(kept, "own").iterdir()) == []


@pytest.mark.parametrize("how", ["fails", "late", "room", "program", "engine"])
def test_half_a_stream_is_no_snapshot(kept: Product, home: Path, how: str) -> None:
    switched = Switched(kept, home, 'stream = true\ntimeout = "10s"\n', good=False)
    big = "[sys.stdout.write('x' * 1000) for _ in range(5000)]; sys.stdout.flush(); "
    switched.does(big + ("sys.exit('half of it')" if how == "fails" else "time.sleep(100)"))
    running = start(kept, "run", "--json")
    try:
        if how not in ("fails", "late"):
            mark = {"room": b"rooms.dumper", "program": str(home).encode(), "engine": b"--stdin"}
            user = UIDS[RoomKind.READER] if how == "engine" else pwd.getpwnam("games").pw_uid
            found: list[int] = []

            def is_under_way() -> bool:
                engines = processes_of(UIDS[RoomKind.READER])
                reads = any(b"--stdin" in words for _, words in engines)
                found[:] = [pid for pid, words in processes_of(user) if mark[how] in words]
                return reads and bool(found)

            wait_for(is_under_way)
            time.sleep(1)  # some of it is in the engine
            # Whoever was about to become another program has become it by now.
            wait_for(is_under_way)
            os.kill(found[-1], signal.SIGKILL)
        out, err = running.communicate(timeout=100)
    finally:
        running.kill()
        running.wait(20)
    told = [json.loads(line) for line in out.splitlines()]
    steps = {m["kind"]: m["outcome"] for m in told if m["event"] == "step-end"}
    assert steps == {"dump": "complete", "stream": "failed", "backup": "complete"}, (out, err)
    assert streamed(kept, "capkeep:job:own") == []
    says = {"fails": "half of it", "late": "the 10 s", "room": "died", "program": "signal 9",
            "engine": "the engine was ended by SIGKILL"}  # fmt: skip
    end = next(m for m in told if m["event"] == "end")
    assert says[how] in json.dumps(end), end
    assert not list(processes_of(UIDS[RoomKind.READER]))
    switched.does("pass")
    assert kept("run").code == 0
    assert len(streamed(kept, "capkeep:job:own")) == 1


def test_a_killed_runner_leaves_no_half_of_a_stream(kept: Product, home: Path) -> None:
    """The engine must not see the end of it before its room, however slow, has killed it."""
    switched = Switched(kept, home, "stream = true\n", good=False)
    big = "import os; sys.stdout.buffer.write(os.urandom(40 << 20)); sys.stdout.flush(); "
    switched.does(f"{big}time.sleep(100)")
    packs = kept.repository / "data"
    running = start(kept, "run")
    try:
        wait_for(lambda: any(p.stat().st_size > 1 << 20 for p in packs.glob("*/*")), 60)
        (room,) = marked(UIDS[RoomKind.READER], b"rooms.reader")
        os.kill(room, signal.SIGSTOP)
        for pid in marked(UIDS[RoomKind.RUNNER], b"run.runner"):
            os.kill(pid, signal.SIGKILL)
        running.communicate(timeout=60)
        time.sleep(4)  # long enough for what is left to do of a snapshot
        os.kill(room, signal.SIGCONT)
    finally:
        running.kill()
        running.wait(20)
    wait_for(lambda: not list(processes_of(UIDS[RoomKind.READER])), 30)
    wait_for(lambda: not list(processes_of(pwd.getpwnam("games").pw_uid)), 30)
    assert streamed(kept, "capkeep:job:own") == []


def marked(uid: int, mark: bytes) -> list[int]:
    """The processes of a user in whose command line something stands."""
    return [pid for pid, words in processes_of(uid) if mark in words]


def test_a_streamed_database_comes_back(kept: Product) -> None:
    with server(PostgreSQL) as source, server(PostgreSQL) as fresh:
        source.ask("CREATE DATABASE shop")
        source.ask("CREATE TABLE t AS SELECT generate_series(1, 100000) AS n", "shop")
        take(kept, "postgresql", f'socket = "{source.run}"\nstream = true\ndatabases = ["shop"]\n')
        kept.configure(
            "include = [", "retention.keep-last = 1\nretention.trust-clock = true\ninclude = ["
        )
        for _ in range(2):
            done = kept("run")
            assert done.code == 0, done.out
        # The job's retention holds for each file that is streamed.
        found = {str(s["paths"]): str(s["id"]) for s in streamed(kept, "capkeep:job:postgresql")}
        assert list(found) == [
            "['/postgresql.globals.sql']",
            "['/postgresql.shop.dump']",
        ]
        assert len(streamed(kept, "capkeep:job:postgresql")) == 2
        target = f"{kept.home.base}/back"
        snapshot = found["['/postgresql.shop.dump']"]
        path = "/postgresql.shop.dump"
        assert kept.root("restore", snapshot, path, "--to", target).code == 0
        dump = readable(Path(target + path), fresh.base)
        run_as("postgres", fresh.programs / "pg_restore", "--create", "--exit-on-error",
               "-h", fresh.run, "-d", "postgres", dump)  # fmt: skip
        assert fresh.ask("SELECT count(*), sum(n) FROM t", "shop") == "100000|5000050000\n"
