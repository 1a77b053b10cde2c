"""Root restores to where files were: what changes is shown first, and what is replaced is saved."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.rooms.protocol import Channel, Message
from tests.rooms.house import GROUP, MEMBER, house
from tests.system.conftest import Product

RETENTION = "[jobs.job.retention]\nkeep-last = 1\ntrust-clock = true\n"


def test_a_tree_is_brought_back_as_it_was(any_engine: Product) -> None:
    source = any_engine.source
    tree = source / "tree"
    (tree / "deep").mkdir(parents=True)
    for name, text in (("kept", "kept"), ("changed", "before"), ("gone", "gone"), ("deep/x", "x")):
        (tree / name).write_text(text)
    os.chown(tree / "gone", 70001, 70002)
    (tree / "gone").chmod(0o4751)
    (tree / "changed").chmod(0o640)
    assert any_engine("run").code == 0
    wanted = any_engine.newest()["id"]
    (tree / "gone").unlink()
    (tree / "changed").write_text("after!")
    (tree / "changed").chmod(0o600)
    (tree / "new" / "below").mkdir(parents=True)
    (tree / "new" / "below" / "file").write_text("new")
    (tree / "deep" / "link").symlink_to("/etc")
    (source / "beside").write_text("not asked for")

    words = ("restore", "latest", str(tree), "--in-place", "--dry-run")
    shown = any_engine.root(*words, "--delete")
    assert shown.code == 0, shown
    lines = shown.out.splitlines()
    assert f"+ {tree}/gone: is not there" in lines
    changed = next(line for line in lines if line.startswith(f"~ {tree}/changed: "))
    assert "mode 0600, in the snapshot 0640" in changed
    assert {f"- {tree}/{n}: is not in the snapshot" for n in ("new", "deep/link")} <= set(lines)
    assert (tree / "changed").read_text() == "after!"
    assert any_engine.newest()["id"] == wanted

    assert any_engine.root("restore", "latest", str(tree), "--in-place").code == 6
    done = any_engine.root("restore", "latest", str(tree), "--in-place", "--overwrite", "--delete")
    assert done.code == 0, done
    found = {str(p.relative_to(tree)) for p in tree.rglob("*")}
    assert found == {"kept", "changed", "gone", "deep", "deep/x"}
    assert (tree / "changed").read_text() == "before"
    state = (tree / "gone").stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o7777) == (70001, 70002, 0o4751)
    assert (source / "beside").read_text() == "not asked for"
    assert Path("/etc/passwd").exists()

    # What was replaced is in a snapshot of its own.
    safe = any_engine.newest()["id"]
    assert safe != wanted
    back = Path(any_engine.home.base, "back-safe")
    assert any_engine.root("restore", str(safe), str(tree), "--to", str(back)).code == 0
    assert Path(f"{back}{tree}/changed").read_text() == "after!"
    assert Path(f"{back}{tree}/new/below/file").read_text() == "new"
    again = any_engine.root(*words, "--delete", "--json")
    summary = json.loads(again.out.splitlines()[-1])["summary"]
    assert [summary[k] for k in ("added", "changed", "removed")] != [0, 0, 0]  # of the latest one
    for path in (any_engine.home.places.state, "/usr/bin", "/"):
        refused = any_engine.root("restore", "latest", path, "--in-place", "--overwrite")
        assert refused.code == 4, refused


@pytest.fixture(scope="module")
def shared() -> Iterator[Product]:
    """A job that keeps one snapshot, in a repository that another host shares."""
    with house() as home, home.doors():
        product = Product(home)
        assert product("init").code == 0
        for name in ("kept/dir/file", "victim/file", "apart/file"):
            (product.source / name).parent.mkdir(parents=True)
            (product.source / name).write_text("before")
        line = f'include = ["{product.source}"]\n'
        product.configure(line, f'{line}host = "another"\n')
        assert product("run").code == 0
        product.configure(f'{line}host = "another"\n', line + RETENTION)
        # Nobody has made one here yet: the only ones there are are meant.
        assert product.root("ls", "latest").code == 0
        assert product("run").code == 0
        yield product


def listed(product: Product) -> list[str]:
    """The ids of all snapshots: another host's, this one's, and what came after."""
    return [str(s["id"]) for s in json.loads(product("snapshots", "--json").out)[0]["snapshots"]]


def test_what_is_asked_for_outlives_what_is_saved_before(shared: Product) -> None:
    source = shared.source
    others, wanted = listed(shared)
    (source / "kept/dir/file").write_text("after!")
    shared.configure(RETENTION, 'host = "another"\n')
    assert shared("run").code == 0
    newest = str(shared.newest()["id"])
    shared.configure('host = "another"\n', RETENTION)

    # Another host's is newer, and what follows a backup here would leave one snapshot.
    words = ("restore", "latest", str(source / "kept"), "--in-place", "--overwrite")
    done = shared.root(*words)
    assert done.code == 0, done
    assert (source / "kept/dir/file").read_text() == "before"
    *before, saved = listed(shared)
    assert before == [others, wanted, newest]
    last = json.loads(shared("history", "--json", "--limit", "1").out)[0]
    assert last["action"] == "safety", last
    back = Path(shared.home.base, "back-saved")
    assert shared.root("restore", saved, "--to", str(back)).code == 0
    assert Path(f"{back}{source}/kept/dir/file").read_text() == "after!"

    # A member has no say in it: without hooks and dumps a backup is not what the job promises.
    request: Message = {"action": "save", "jobs": ["job"], "repositories": ["repo"]}
    assert ask_as(shared, MEMBER, request) == 2
    assert listed(shared) == [*before, saved]


def test_a_link_in_the_way_is_not_followed(shared: Product) -> None:
    kept = shared.source / "kept"
    wanted = listed(shared)[1]
    back = Path(shared.home.base, "back-planted")
    there = Path(f"{back}{kept}")
    theirs = there.parent / "theirs"
    theirs.mkdir(parents=True)
    there.mkdir()
    # Where the snapshot has a directory: with nothing else in the way, and no wish to replace anything.
    (there / "dir").symlink_to("../theirs")
    words = ("restore", wanted, str(kept), "--to", str(back))
    refused = shared.root(*words)
    assert refused.code == 6, refused
    assert f"{there}/dir" in refused.err
    done = shared.root(*words, "--overwrite")
    assert done.code == 0, done
    assert "1 links were removed" in done.err
    assert (there / "dir/file").read_text() == "before"
    # Where it has a file.
    (there / "dir/file").unlink()
    (theirs / "own").write_text("theirs")
    (there / "dir/file").symlink_to("../../theirs/own")
    assert shared.root(*words, "--overwrite").code == 0
    assert (there / "dir/file").read_text() == "before"
    assert [(p.name, p.read_text()) for p in theirs.iterdir()] == [("own", "theirs")]
    # Above what is asked for; that is nobody's wish to have replaced.
    shutil.rmtree(there)
    there.symlink_to("theirs")
    deeper = ("restore", wanted, f"{kept}/dir", "--to", str(back))
    for more in ((), ("--overwrite",)):
        assert shared.root(*deeper, *more).code == 6
    assert there.is_symlink()
    assert [p.name for p in theirs.iterdir()] == ["own"]
    shutil.rmtree(kept / "dir")
    (kept / "dir").symlink_to("../victim")
    in_place = ("restore", wanted, f"{kept}/dir/file", "--in-place", "--no-safety-snapshot")
    assert shared.root(*in_place, "--overwrite").code == 6
    assert (kept / "dir").is_symlink()


def test_what_was_not_saved_before_is_not_replaced(shared: Product) -> None:
    source, apart = shared.source, shared.source / "apart"
    wanted = listed(shared)[1]
    line = f'include = ["{source}"]\n'
    shared.configure(line, f'{line}exclude = ["{apart}"]\n')
    (apart / "file").write_text("after!")
    words = ("restore", wanted, str(apart), "--in-place", "--overwrite")
    refused = shared.root(*words)
    assert refused.code == 4, refused
    assert "--no-safety-snapshot" in refused.err
    assert (apart / "file").read_text() == "after!"
    shutil.rmtree(apart)
    assert shared.root(*words).code == 0  # there is nothing to be saved
    assert (apart / "file").read_text() == "before"

    plan = shared.home.plan
    program = plan.repositories[0].program
    for own in (plan.package, program, os.path.dirname(os.path.realpath(program))):
        refused = shared.root("restore", wanted, own, "--in-place", "--overwrite")
        assert refused.code == 4, refused
        assert "needed for restoring itself" in refused.err


def ask_as(product: Product, uid: int, request: Message) -> int:
    """What the runner answers a user, by its exit code."""
    with socket.socket(socket.AF_UNIX) as sock:
        before = os.getgroups()
        os.setgroups([GROUP])
        os.seteuid(uid)
        try:
            sock.connect(product.home.places.runner_socket)
        finally:
            os.seteuid(0)
            os.setgroups(before)
        sock.settimeout(60)
        with Channel(sock) as channel:
            channel.send(request)
            for message in channel:
                if message.get("event") == "done":
                    return int(str(message["exit_code"]))
    return -1
