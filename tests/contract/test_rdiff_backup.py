"""What cannot be read, as rdiff-backup's halves tell it: each case apart, and none silently.

The test is the other half where something must happen between two of its questions.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from capkeep.engines.base import Call, Cause, Event, Unreadable, Warned
from capkeep.engines.rdiff import ENGINE
from capkeep.guest.rdiff.wire import Pipes, pieces, receive, receive_object, send
from capkeep.rooms.rdiff import walk
from tests.attack.test_rdiff import PYTHON, SECONDS, TOOLS, Selected, contents, honest

NOBODY = 65534
Meanwhile = Callable[[Path], object]


def _heard(out: bytes) -> list[Event]:
    reader = ENGINE.read_backup()
    return [e for line in out.splitlines() for e in reader.feed("stdout", line)]


def _told(events: list[Event]) -> dict[str, Cause]:
    return {os.path.basename(e.path): e.cause for e in events if isinstance(e, Unreadable)}


def _between(source: Path, meanwhile: Meanwhile) -> list[Event]:
    """List a file, let something happen to it, and ask for it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call = Call("", "", "/tmp", "/tmp", "", relay=(PYTHON, str(theirs.fileno())), tools=TOOLS)
        argv = ENGINE.backup(call, Selected(source)).argv
        running = subprocess.Popen(
            argv, stdout=subprocess.PIPE, pass_fds=(theirs.fileno(),), cwd="/"
        )
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
        end = Pipes(*fds)
        receive_object(end)
        send(end, {"ask": "more"})
        assert isinstance(receive(end), list)
        meanwhile(source / "file")
        send(end, {"ask": "send", "paths": [str(source / "file")[1:]]})
        with suppress(OSError):
            list(pieces(end))
        send(end, {"done": {"summary": {"time": 1}, "unkept": [], "warnings": []}})
        out, _ = running.communicate(timeout=SECONDS)
        for fd in fds:
            os.close(fd)
    events = _heard(out)
    assert ENGINE.partial(running.returncode) == bool(_told(events))
    return events


@pytest.mark.parametrize("meanwhile,cause", [
    (Path.unlink, Cause.VANISHED),
    (lambda f: os.truncate(f, 10), Cause.CHANGED),
    (lambda f: (f.unlink(), os.mkfifo(f)), Cause.CHANGED),
    (lambda f: (f.unlink(), f.symlink_to("x")), Cause.CHANGED),
])  # fmt: skip
def test_what_happens_to_a_file_before_it_is_read(
    tmp_path: Path, meanwhile: Meanwhile, cause: Cause
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert _told(_between(tmp_path, meanwhile)) == {"file": cause}


def test_a_file_that_grows_is_kept_as_it_was_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    events = _between(tmp_path, lambda f: f.write_bytes(b"x" * 500))
    assert not _told(events)
    assert any("changed while" in e.text for e in events if isinstance(e, Warned))


def test_what_is_written_right_after_a_file_was_read_is_kept_the_next_time(tmp_path: Path) -> None:
    """Of the same length, and perhaps in the same second, which is all that rdiff-backup compares."""
    time.sleep(1 - time.time() % 1)  # so that there is time for it
    file = tmp_path / "file"
    file.write_text("one")
    listed = int(file.stat().st_mtime)
    _between(tmp_path, lambda _: None)
    file.write_text("two")
    assert int(file.stat().st_mtime) > listed


def test_a_source_behind_a_symbolic_link_is_told(tmp_path: Path) -> None:
    """Its path is followed by whoever asks whether it is there, and not by the walk."""
    (tmp_path / "real/source").mkdir(parents=True)
    (tmp_path / "real/source/file").write_text("in")
    (tmp_path / "link").symlink_to("real")
    choice = walk.Choice(b"", (bytes(tmp_path / "link/source"),), (), one_file_system=False)
    told: list[bytes] = []
    found = list(walk.nodes(choice, lambda path, _: told.append(path)))
    assert found[-1].kind == "sym"
    assert told == [bytes(tmp_path / "link/source")]


def test_patterns_are_rdiff_backups_own(tmp_path: Path) -> None:
    """Each pattern on each path, by rdiff-backup's code and by ours."""
    from capkeep.rooms.rdiff.globs import matcher

    patterns = ["**/.cache", "/home/*/tmp", "/a?c", "/[ab]", "/[!ab]x", "/x\\*y", "**.o", "/var/**/log",
                "ignorecase:/TMP", "/home", "/[x", "/a[*]b", "**/n*"]  # fmt: skip
    paths = ["/home/u/.cache/f", "/home/u/tmp", "/home/u/v/tmp", "/abc", "/a/c", "/a", "/bx", "/cx",
             "/x*y", "/xzy", "/s/t.o", "/var/a/b/log/x", "/var/log", "/tmp/y", "/home", "/homes",
             "/[x", "/a*b", "/d/node_modules/x"]  # fmt: skip
    program = (
        "import json, sys\n"
        "from rdiff_backup import Globals, rpath, selection\n"
        "root = rpath.RPath(Globals.local_connection, b'/')\n"
        "select = selection.Select(root)\n"
        "patterns, paths = json.loads(sys.argv[1])\n"
        "class Path:\n"
        "    def __init__(self, path):\n"
        "        self.path = path.encode()\n"
        "        self.index = tuple(self.path[1:].split(b'/'))\n"
        "found = [[select._glob_get_sf(g.encode(), 0)(Path(p)) == 0 for p in paths] for g in patterns]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", program, json.dumps([patterns, paths])], capture_output=True, check=True,
        timeout=SECONDS,
    )  # fmt: skip
    theirs = json.loads(done.stdout)
    assert [[matcher([g])(p.encode()) for p in paths] for g in patterns] == theirs


def test_attributes_that_cannot_be_kept_are_told_and_the_file_is_kept(tmp_path: Path) -> None:
    """rdiff-backup writes such a name down so that nothing after it can be read again."""
    source, repository = tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    for name in ("a", "b", "c", "d"):
        (source / name).write_text(name)
    os.setxattr(source / "a", "user.kept", b"kept")
    os.setxattr(source / "a", "user.a=b", b"")
    os.setxattr(source / "b", "user.with space", b"x")
    os.setxattr(source / "c", "user.fine", b"x")
    honest(repository, ENGINE.init)
    events = _heard(
        honest(repository, lambda call: _partial(ENGINE.backup(call, Selected(source))))
    )
    assert _told(events).keys() == {"a", "b"}
    found = contents(repository, "latest")
    assert {os.path.basename(name) for name in found} == {"a", "b", "c", "d"}


def _partial(command: tuple[tuple[str, ...], object, str]) -> tuple[tuple[str, ...], object, str]:
    argv, env, cwd = command
    return ("sh", "-c", '"$@"; [ $? = 3 ]', "sh", *argv), env, cwd


def test_an_attribute_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """In user mode there are such: of files that may be listed and not be read."""
    (tmp_path / "file").write_text("x")
    os.setxattr(tmp_path / "file", "user.secret", b"x")
    (tmp_path / "file").chmod(0)
    program = (
        "import sys; sys.path.append(sys.argv[1]); from capkeep.rooms.rdiff.walk import attributes\n"
        "print(attributes(sys.argv[2].encode(), lambda error: print('told', error)))\n"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    words = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", PYTHON, "-c",
             program, str(Path(TOOLS).parents[1]), str(tmp_path / "file"))  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout.startswith("told [Errno 13] attribute 'user.secret'"), done
    assert done.stdout.endswith("((), (), ())\n")
