"""rdiff-backup's wire, with a hostile half at either end.

What its own server does with a hostile client is shown first, so that the rest means something.
"""

import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import capkeep
from capkeep.engines.base import Call, Command, Served
from capkeep.engines.rdiff import ENGINE
from capkeep.guest.rdiff import wire
from capkeep.guest.rdiff.wire import (
    Meta,
    Pipes,
    Refused,
    receive_object,
    send,
    send_piece,
    to_plain,
)
from capkeep.rooms.rdiff.restoring import restore

PYTHON = "/usr/bin/python3"
TOOLS = f"{Path(capkeep.__file__).parent}/guest"
SECONDS = 60


class Execute:
    """What runs a command wherever it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


def _framed(value: object) -> bytes:
    """A value as rdiff-backup's protocol sends it (rdiff_backup/connection.py)."""
    data = pickle.dumps(value)
    return b"o" + bytes([0]) + len(data).to_bytes(7, "big") + data


def _started(command: Command, incoming: int, outgoing: int) -> subprocess.Popen[bytes]:
    """Our half that has the repository, with these pipes for a client."""
    client, given = socket.socketpair()
    with client, given:
        process = subprocess.Popen(
            command.argv, env=dict(command.env), stdin=given, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        socket.send_fds(client, [b"p"], [incoming, outgoing])
    return process


class Store:
    """The same, as a vault starts it."""

    def __init__(self, repository: Path, *, admin: bool = False) -> None:
        their_in, our_out = os.pipe()
        our_in, their_out = os.pipe()
        command = ENGINE.server(
            Served("/usr/bin/rdiff-backup", (PYTHON,), TOOLS, str(repository), admin, "/tmp", 2)
        )
        assert command is not None
        self.process = _started(command, their_in, their_out)
        os.close(their_in)
        os.close(their_out)
        self.ends = (our_in, our_out)
        self.pipes = Pipes(*self.ends)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.ends:
            os.close(fd)
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()

    def ask(self, **request: object) -> list[dict[str, object]]:
        """All that it answers."""
        send(self.pipes, request)
        found = []
        while True:
            found.append(receive_object(self.pipes))
            if found[-1].keys() & {"end", "failed", "done"}:
                return found


@contextmanager
def _handover(repository: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """A stand-in for the wire to a vault that starts the real half when pipes come."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
        command = ENGINE.server(
            Served("/usr/bin/rdiff-backup", (PYTHON,), TOOLS, str(repository), True, "/tmp", 2)
        )
        assert command is not None
        process = _started(command, *fds)
        for fd in fds:
            os.close(fd)
        process.wait(SECONDS)

    with ours, theirs:
        yield theirs.fileno(), serve


def honest(
    repository: Path,
    command: Callable[[Call], tuple[tuple[str, ...], object, str]],
    expected: int = 0,
) -> bytes:
    """What our half that sees the files says, with the real other half."""
    with _handover(repository) as (fd, serve):
        call = Call(
            "/usr/bin/rdiff-backup", "", "/tmp", "/tmp", "", relay=(PYTHON, str(fd)), tools=TOOLS
        )
        argv, *_ = command(call)
        running = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(fd,), cwd="/"
        )
        serve()
        out, _ = running.communicate(timeout=SECONDS)
        assert running.returncode == expected, out
        return out


class Selected:
    """What is kept."""

    def __init__(self, source: Path) -> None:
        self.include = (str(source),)
        self.exclude: tuple[str, ...] = ()
        self.one_file_system = False
        self.tags = ("t",)
        self.host = "h"
        self.canary = ""


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Path, dict[str, dict[str, bytes]]]:
    """A repository with three sessions, its source, and what the sessions hold."""
    repository, source = tmp_path / "repository", tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    honest(repository, ENGINE.init)
    for number in range(3):
        (source / "changes").write_bytes(os.urandom(5000) * (number + 1))
        (source / "folder" / f"only-{number}").write_text(str(number))
        (source / "folder" / f"only-{number - 1}").unlink(missing_ok=True)
        honest(repository, lambda call: ENGINE.backup(call, Selected(source)))
    listed = ENGINE.parse_snapshots(honest(repository, ENGINE.snapshots))
    assert len(listed) == 3
    return repository, source, {s.id: contents(repository, s.id) for s in listed}


def contents(repository: Path, session: str) -> dict[str, bytes]:
    """What a session gives back."""
    with tempfile.TemporaryDirectory() as target:
        honest(repository, lambda call: ENGINE.restore(call, session, target))
        found = {}
        for folder, _, files in os.walk(target):
            for name in files:
                path = Path(folder, name)
                found[str(path.relative_to(target))] = (
                    os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
                )
        return found


def test_rdiff_backups_own_server_runs_what_it_is_sent_and_ours_does_not(tmp_path: Path) -> None:
    for number, place in enumerate((tmp_path / "theirs", tmp_path / "ours")):
        mark = tmp_path / f"mark-{number}"
        evil = _framed(Execute(f"touch {mark}"))
        place.mkdir()
        if place.name == "theirs":
            argv = ["rdiff-backup", "server", "--restrict-mode", "update-only",
                    "--restrict-path", str(place)]  # fmt: skip
            subprocess.run(argv, input=evil, timeout=SECONDS, capture_output=True)
            assert mark.exists(), "then there is nothing to guard against any more"
        else:
            with Store(place) as store:
                os.write(store.ends[1], evil + b"\0" * 64)
                store.process.wait(SECONDS)
            assert not mark.exists()


ROOT = Meta((), "dir", perms=0o755)
DATA = Meta((b"rdiff-backup-data",), "dir", perms=0o755)


def _plain(meta: Meta, **changed: object) -> dict[str, object]:
    return {**to_plain(meta), **changed}


TREES: dict[str, list[dict[str, object]]] = {
    "nothing at all": [],
    "another tree": [_plain(ROOT), _plain(Meta((b"other",), "reg", size=4))],
    "an empty one": [_plain(ROOT)],
    "the increments": [_plain(ROOT), _plain(ROOT, path="rdiff-backup-data")],
    "an increment": [_plain(ROOT), _plain(ROOT, path="rdiff-backup-data/increments/x", kind="reg")],
    "above": [_plain(ROOT), _plain(ROOT, path="../x")],
    "above, inside": [_plain(ROOT), _plain(ROOT, path="a"), _plain(ROOT, path="a/../../x")],
    "absolute": [_plain(ROOT), _plain(ROOT, path="/etc")],
    "nul": [_plain(ROOT), _plain(ROOT, path="a\0b")],
    "too long": [_plain(ROOT), _plain(ROOT, path="a" * 256)],
    "a kind of its own": [_plain(ROOT), _plain(ROOT, path="a", kind="diff")],
    "behind a link": [_plain(ROOT), _plain(Meta((b"a",), "sym", link=b"rdiff-backup-data/increments")),
                      _plain(Meta((b"a", b"b"), "reg", size=4))],
    "out of order": [_plain(ROOT), _plain(ROOT, path="b"), _plain(ROOT, path="a")],
    "twice": [_plain(ROOT), _plain(ROOT, path="a"), _plain(ROOT, path="a")],
    "no root": [_plain(ROOT, path="a")],
    "in no directory": [_plain(ROOT), _plain(ROOT, path="a/b/c")],
    "a name with lines": [_plain(ROOT), _plain(ROOT, path="a", uname="x\nFile y\n  Type reg")],
    "an owner of words": [_plain(ROOT), _plain(ROOT, path="a", uid="0")],
    "a digest": [_plain(ROOT), _plain(Meta((b"other",), "reg", size=4), sha1="0" * 40)],
    "other names": [_plain(ROOT), _plain(ROOT, path="a", mirrorname="x")],
    "a list for an access list": [_plain(ROOT), _plain(ROOT, path="a", acl=[["U", 0, "", 99]])],
    "a link to the increments": [
        _plain(ROOT), _plain(Meta((b"a",), "sym", link=b"rdiff-backup-data/increments")),
    ],
    "a folder in the link's place": [
        _plain(ROOT), _plain(ROOT, path="a"), _plain(Meta((b"a", b"tmp"), "reg", size=4)),
    ],
    "linked lies": [_plain(ROOT)] + [
        _plain(Meta((name,), "reg", size=4, nlink=2, inode=7, device=7)) for name in (b"l1", b"l2")
    ],
}  # fmt: skip


def _lie(
    store: Store, tree: list[dict[str, object]], content: bytes, *, leave_at: int = -1
) -> bool:
    """Be the half that sees the files, and lie; whether the session came to its end."""
    waiting = [tree, []]
    send(store.pipes, {"do": "backup", "host": "h", "tags": ["t"]})
    asked = 0
    try:
        while True:
            asked += 1
            if asked == leave_at:
                return False
            ask = receive_object(store.pipes)
            if ask.get("ask") == "more":
                send(store.pipes, waiting.pop(0))
            elif ask.get("ask") == "send":
                paths = ask["paths"]
                assert isinstance(paths, list)
                for _ in paths:
                    send_piece(store.pipes, content)
                    if content:
                        send_piece(store.pipes, b"")
            else:
                return "done" in ask
    except (EOFError, Refused, IndexError):
        return False


@pytest.mark.timeout(300)
def test_whatever_a_reader_sends_every_earlier_session_comes_back(
    kept: tuple[Path, Path, dict[str, dict[str, bytes]]],
) -> None:
    repository, source, before = kept
    outside = sorted(p.name for p in repository.parent.iterdir())
    refused = 0
    for name, tree in TREES.items():
        for content in (b"evil", b"much longer than it said"):
            if content != b"evil" and name not in ("another tree", "linked lies"):
                continue
            with Store(repository) as store:
                refused += not _lie(store, tree, content)
        assert sorted(p.name for p in repository.parent.iterdir()) == outside
    assert refused >= len(TREES) - 7, "most of these are no tree at all"
    # Somebody who leaves in the middle, at every question.
    for number in (1, 2, 3):
        with Store(repository) as store:
            _lie(store, TREES["another tree"], b"evil", leave_at=number)
    # What is not a backup.
    requests: list[dict[str, object]] = [
        {"do": "remove", "sessions": list(before)}, {"do": "backup", "host": "other", "tags": ["t"]},
        {"do": "regress"}, {"do": "__import__('os').system"}, {"do": "restore", "session": "../x"},
        {"do": "ls", "session": "latest", "paths": ["../../etc"]},
    ]  # fmt: skip
    for request in requests:
        with Store(repository) as store:
            assert "failed" in store.ask(**request)[-1]
    honest(repository, lambda call: ENGINE.backup(call, Selected(source)))
    for session, content in before.items():
        assert contents(repository, session) == content
    checked = ENGINE.read_check()
    for line in honest(repository, lambda call: ENGINE.check(call, read_data="all")).splitlines():
        checked.feed("stdout", line)
    assert checked.result().errors == 0
    oldest = ENGINE.parse_snapshots(honest(repository, ENGINE.snapshots))[0]
    target = repository.parent / "by-itself"
    subprocess.run(
        ["rdiff-backup", "restore", "--at", oldest.time, str(repository), str(target)],
        check=True, timeout=SECONDS, capture_output=True,
    )  # fmt: skip
    found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert found == before[oldest.id]


def test_a_hostile_vault_gets_no_file_that_is_not_kept(tmp_path: Path) -> None:

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("kept")
    (tmp_path / "secret").write_text("secret")
    asks: list[object] = [
        {"ask": "send", "paths": [str(tmp_path / "secret")[1:]]}, {"ask": "send", "paths": ["../etc/shadow"]},
        {"ask": "eval", "paths": []}, {"ask": "send", "paths": "x"}, [], {"ask": ["more"]},
    ]  # fmt: skip
    for ask in asks:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            call = Call(
                "",
                "",
                "/tmp",
                "/tmp",
                "",
                relay=(sys.executable, str(theirs.fileno())),
                tools=TOOLS,
            )
            command = ENGINE.backup(call, Selected(tmp_path / "source"))
            running = subprocess.Popen(
                command.argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),), cwd="/",
            )  # fmt: skip
            _, fds, _, _ = socket.recv_fds(ours, 1, 2)
            end = Pipes(*fds)
            assert receive_object(end)["do"] == "backup"
            send(end, {"ask": "more"})
            assert isinstance(wire.receive(end), list)
            send(end, ask)
            out, err = running.communicate(timeout=SECONDS)
            assert running.returncode == 1
            assert b"must not say" in err
            assert b"secret" not in out + os.read(fds[0], 1 << 16)
            for fd in fds:
                os.close(fd)


@pytest.mark.parametrize("nodes", [
    [_plain(ROOT), _plain(ROOT, path="../x", kind="reg")],
    [_plain(ROOT), _plain(Meta((b"a",), "sym", link=b"..")), _plain(Meta((b"a", b"x"), "reg", size=1))],
    [_plain(ROOT), _plain(ROOT, path="/x", kind="reg")],
])  # fmt: skip
def test_a_hostile_vault_writes_nothing_outside_the_target(
    tmp_path: Path, nodes: list[dict[str, object]]
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    our_in, their_out = os.pipe()
    their_in, our_out = os.pipe()
    said: list[object] = []
    hostile = Pipes(their_in, their_out)
    for node in nodes:
        send(hostile, {"node": node, "same": "", "chosen": True})
        if node["kind"] == "reg":
            send_piece(hostile, b"x")
            send_piece(hostile, b"")
    send(
        hostile, {"node": _plain(Meta((b"z",), "reg", size=1)), "same": "../secret", "chosen": True}
    )
    send(hostile, {"end": {}})
    spec: dict[str, object] = {"do": "restore", "session": "x", "paths": [], "target": str(target)}
    with pytest.raises(Refused):
        restore(spec, Pipes(our_in, our_out), lambda **event: said.append(event), lambda _: 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["target"]
    assert json.dumps(said)
    for fd in (our_in, our_out, their_in, their_out):
        os.close(fd)


def test_a_hostile_vault_gets_no_second_name_for_a_file_behind_a_link(tmp_path: Path) -> None:
    target, secret = tmp_path / "target", tmp_path / "secret"
    target.mkdir()
    secret.write_text("secret")
    our_in, their_out = os.pipe()
    their_in, our_out = os.pipe()
    said: list[dict[str, object]] = []
    hostile = Pipes(their_in, their_out)
    for node, same in (
        (ROOT, ""), (Meta((b"a",), "sym", link=b".."), ""),
        (Meta((b"b",), "reg", nlink=2), "a/secret"),
    ):  # fmt: skip
        send(hostile, {"node": _plain(node), "same": same, "chosen": True})
    send(hostile, {"end": {}})
    spec: dict[str, object] = {"do": "restore", "session": "x", "paths": [], "target": str(target)}
    restore(spec, Pipes(our_in, our_out), lambda **event: said.append(event), lambda _: 1)
    assert secret.stat().st_nlink == 1
    assert [s.get("unrestored") for s in said if "unrestored" in s] == ["/b"]
    for fd in (our_in, our_out, their_in, their_out):
        os.close(fd)
