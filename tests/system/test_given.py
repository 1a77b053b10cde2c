"""Members of the group get back what they could read themselves; who asks for more gets nothing."""

import base64
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.engines.borg_listing import COMMENT
from capkeep.rooms.parcel import Item, items
from capkeep.rooms.protocol import Channel, Message
from tests.rooms.house import GROUP, MEMBER, OTHER_MEMBER, STRANGER, as_user, house
from tests.system.conftest import Product, Said

MANY = 2500  # whose entries are more than a socket holds
TEAM = GROUP + 30  # a group that only MEMBER is in


@pytest.fixture(scope="module", params=["restic", "borg"])
def kept(request: pytest.FixtureRequest) -> Iterator[Product]:
    """A backup of two people's homes, of what they share, and of what is root's."""
    with house() as home, home.doors():
        product = Product(home)
        product.configure("[jobs.job]", "[host]\nmembers-restore = true\n\n[jobs.job]")
        product.configure('engine = "restic"', f'engine = "{request.param}"')
        source = product.source
        source.chmod(0o755)
        for uid, name in ((MEMBER, "ann"), (OTHER_MEMBER, "bob")):
            _made(source / name / "letters", uid, 0o700)
            (source / name).chmod(0o700)
            os.chown(source / name, uid, uid)
            _file(source / name / "letters" / "dear", f"dear {name}\n", uid, 0o644)
            _file(source / name / "world", "for the world, in a closed room\n", uid, 0o644)
        ann, team = source / "ann", source / "team"
        _file(ann / "program", "#!/bin/sh\n", MEMBER, 0o6755)
        _file(ann / "roots", "root's, in ann's directory\n", 0, 0o600)
        shelf = source / "shelf"
        _made(shelf, 0, 0o755)
        _file(shelf / "list", "root's, with a list\n", 0, 0o640)
        _run("setfacl", "-m", f"u:{MEMBER}:r", str(shelf / "list"))
        _file(shelf / "denied", "for all but ann\n", 0, 0o644)
        _run("setfacl", "-m", f"u:{MEMBER}:---", str(shelf / "denied"))
        _made(source / "cellar", 0, 0o755)
        _made(source / "cellar" / "racks", 0, 0o755)
        _file(source / "cellar" / "racks" / "wine", "for all but ann\n", 0, 0o644)
        _run("setfacl", "-m", f"u:{MEMBER}:---", str(source / "cellar"))
        _made(source / "many", 0, 0o755)
        for number in range(MANY):
            (source / "many" / f"one-of-very-many-{number}").touch()
        # As a backup finds it whose engine was led into bob's closed room by a link of ann's.
        _file(ann / "led-astray", "bob's, for all in his room\n", OTHER_MEMBER, 0o644)
        os.link(source / "bob" / "letters" / "dear", ann / "hard-link-into-bobs")
        (source / "bob" / "letters" / "dear").chmod(0o600)
        os.symlink("/etc/shadow", ann / "symlink")
        os.mkfifo(ann / "fifo")
        for name in ("symlink", "fifo"):
            os.chown(ann / name, MEMBER, MEMBER, follow_symlinks=False)
        os.setxattr(ann / "program", "user.note", b"mine")
        _made(team, 0, 0o750, TEAM)
        _made(team / "inner", 0, 0o750, TEAM)
        _made(team / "inner" / "desk", 0, 0o2770, TEAM)
        _file(team / "inner" / "desk" / "bobs", "bob's\n", OTHER_MEMBER, 0o644)
        _file(team / "inner" / "desk" / "anns", "ann's\n", MEMBER, 0o600)
        _file(team / "inner" / "plan", "the team's\n", 0, 0o640, TEAM)
        _file(source / "secret", "root's\n", 0, 0o600)
        _file(source / "public", "anybody's\n", 0, 0o644)
        os.utime(ann / "world", ns=(1, 1_500_000_000_000_000_000))
        assert product("init").code == 0
        done = product("run")
        assert done.code == 0, done
        yield product


def _made(path: Path, uid: int, mode: int, gid: int = -1) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, uid, uid if gid < 0 else gid)
    path.chmod(mode)


def _file(path: Path, text: str, uid: int, mode: int, gid: int = -1) -> None:
    path.write_text(text)
    os.chown(path, uid, uid if gid < 0 else gid)
    path.chmod(mode)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, timeout=20)


def as_member(
    product: Product, *words: str, uid: int = MEMBER, groups: tuple[int, ...] = ()
) -> Said:
    done = subprocess.run(
        product.home.command(*words), user=uid, group=uid, extra_groups=[GROUP, *groups], cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin"}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def _target(product: Product, name: str, uid: int = MEMBER) -> Path:
    place = Path(product.home.base, "back", name)
    place.parent.mkdir(exist_ok=True)
    place.mkdir()
    os.chown(place, uid, uid)
    return place


def test_what_was_ones_own_comes_back_as_ones_own(kept: Product) -> None:
    source = str(kept.source)
    back = _target(kept, "own")
    done = as_member(kept, "restore", "latest", f"{source}/ann", "--to", str(back))
    assert done.code == 3, done  # something was left out, and is named
    ann = Path(f"{back}{source}/ann")
    found = {str(p.relative_to(ann)) for p in ann.rglob("*")}
    assert found == {"letters", "letters/dear", "world", "program", "symlink"}
    assert f"{source}/ann/fifo" in done.err
    assert "4 entries" in done.err  # the names of others' files may be others' secrets, too
    assert "astray" not in done.err
    assert (ann / "letters" / "dear").read_text() == "dear ann\n"
    assert {p.lstat().st_uid for p in (ann, *ann.rglob("*"))} == {MEMBER}
    assert ann.stat().st_mode & 0o7777 == 0o700
    assert (ann / "program").stat().st_mode & 0o7777 == 0o755  # no bits that lend rights
    assert os.getxattr(ann / "program", "user.note") == b"mine"
    assert (ann / "world").stat().st_mtime == 1_500_000_000
    assert os.readlink(ann / "symlink") == "/etc/shadow"
    assert (back / source[1:]).stat().st_mode & 0o777 == 0o700  # as its closed parents were

    # Deleted, and back in its place; what is there is not replaced unasked.
    (kept.source / "ann" / "world").unlink()
    world = f"{source}/ann/world"
    assert as_member(kept, "restore", "latest", world, "--in-place").code == 0
    assert (kept.source / "ann" / "world").read_text() == "for the world, in a closed room\n"
    (kept.source / "ann" / "world").write_text("changed")
    refused = as_member(kept, "restore", "latest", world, "--in-place")
    assert refused.code == 6, refused
    assert (kept.source / "ann" / "world").read_text() == "changed"
    assert as_member(kept, "restore", "latest", world, "--in-place", "--overwrite").code == 0
    state = (kept.source / "ann" / "world").stat()
    assert (state.st_uid, state.st_mode & 0o7777, state.st_mtime) == (MEMBER, 0o644, 1_500_000_000)


def test_what_one_could_not_read_does_not_come(kept: Product) -> None:
    source = str(kept.source)
    back = _target(kept, "others")
    refused = as_member(kept, "restore", "latest", f"{source}/bob/world", "--to", str(back))
    assert refused.code == 4, refused
    assert list(back.iterdir()) == []
    words = set()
    for path in (
        "bob/letters/dear", "bob/is-not-there", "secret", "is-not-there", "ann/roots", "ann/denied",
        "ann/hard-link-into-bobs", "ann/led-astray", "shelf/denied", "team/inner/plan", "team", "ann/world/below-a-file",
    ):  # fmt: skip
        options: Message = {"snapshot": "latest", "paths": [f"{source}/{path}"]}
        got, result = _raw(kept, {"action": "give", "options": options})
        assert (got, result["failure"]) == ([], "refused"), (path, result)
        words.add(str(result["text"]).replace(path, ""))
    assert len(words) == 1  # what is not there is told from what is closed by nothing
    assert as_member(kept, "restore", "latest", "/", "--to", str(back)).code == 4
    # A directory above all: of bob nothing but what anybody saw.
    given = as_member(kept, "restore", "latest", source, "--to", str(back))
    assert given.code == 3, given
    found = {str(p.relative_to(f"{back}{source}")) for p in Path(f"{back}{source}").rglob("*")}
    assert {"public", "ann/world", "shelf/list"} <= found
    assert not {"shelf/denied", "ann/led-astray", "ann/roots"} & found
    # Nobody gets more by it.
    assert Path(f"{back}{source}/shelf/list").stat().st_mode & 0o7777 == 0o600
    assert not {f for f in found if f.startswith(("bob", "team", "secret"))}
    assert "letters" not in given.err.replace("ann/letters", "")
    # With its group, and with nothing but the kernel's word for it.
    plan = f"{source}/team/inner/plan"
    team = as_member(
        kept, "restore", "latest", plan, "--to", str(back), "--overwrite", groups=(TEAM,)
    )
    assert team.code == 0, team
    assert Path(f"{back}{plan}").stat().st_mode & 0o777 == 0o600
    assert as_member(kept, "restore", "latest", plan, "--to", str(back), uid=STRANGER).code == 4


def test_names_are_shown_to_those_who_could_list_them(kept: Product) -> None:
    source = str(kept.source)
    everything = as_member(kept, "ls", "latest").out.split()
    # Her mode would let her in, and a list does not: that is known though she has not named it.
    assert {f"{source}/cellar", f"{source}/many/one-of-very-many-{MANY - 1}"} <= set(everything)
    assert not [p for p in everything if p.startswith(f"{source}/cellar/")]
    assert as_member(kept, "find", "wine", "racks").out == ""
    assert "racks/wine" in as_member(kept, "find", "wine", uid=OTHER_MEMBER).out
    assert as_member(kept, "ls", "latest", f"{source}/cellar").code == 4
    assert {f"{source}/ann/letters/dear", f"{source}/bob", f"{source}/secret"} <= set(everything)
    assert f"{source}/ann/led-astray" not in everything
    assert not [p for p in everything if p.startswith((f"{source}/bob/", f"{source}/team/"))]
    assert as_member(kept, "ls", "latest", f"{source}/bob").code == 4
    assert as_member(kept, "ls", "latest", f"{source}/team").code == 4
    team = as_member(kept, "ls", "latest", f"{source}/team", groups=(TEAM,))
    inner = ["", "/inner"]
    if kept.home.compiled().repositories[0].engine == "restic":  # whose listing tells no lists
        assert "name one" in team.err
    else:
        inner += ["/inner/desk", "/inner/desk/anns", "/inner/plan"]
    assert sorted(team.out.split()) == [f"{source}/team{name}" for name in inner]
    found = as_member(kept, "find", "dear", uid=OTHER_MEMBER).out
    assert f"{source}/bob/letters/dear" in found
    assert "ann" not in found
    assert as_member(kept, "diff", "latest", "latest").code == 4
    assert kept("ls", "latest", uid=STRANGER, group=STRANGER).code == 4


def test_only_snapshots_of_this_hosts_jobs(kept: Product) -> None:
    """In another host's the numbers mean other people, and a streamed dump is nobody's file."""
    source = str(kept.source)
    ids = [
        _elsewhere(kept, host, tag)
        for host, tag in (("elsewhere", "capkeep:job"), ("house", "capkeep:job:db"), ("house", ""))
    ]
    vault = kept.home.plan.room("vault-repo").grant
    _run("chown", "-R", f"{vault.uid}:{vault.gid}", str(kept.repository))
    back = _target(kept, "foreign")
    for snapshot in ids:
        refused = as_member(kept, "restore", snapshot, f"{source}/public", "--to", str(back))
        assert refused.code == 4, refused
    assert as_member(kept, "restore", "latest", f"{source}/public", "--to", str(back)).code == 0


def _outside(product: Product) -> dict[str, str]:
    """What an engine needs that is called past capkeep."""
    folder, repository = product.home.base, str(product.repository)
    return {
        "PATH": "/usr/bin", "HOME": folder, "RESTIC_PASSWORD": "a password",
        "RESTIC_REPOSITORY": repository, "BORG_PASSPHRASE": "a password", "BORG_REPO": repository,
        "BORG_BASE_DIR": folder, "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def _elsewhere(product: Product, host: str, tag: str) -> str:
    """The id of a snapshot that another program has made, for such a host and job."""
    repository, public = product.home.compiled().repositories[0], f"{product.source}/public"
    if repository.engine == "restic":
        words = ["backup", "--json", f"--host={host}", *([f"--tag={tag}"] if tag else []), public]
    else:
        said = {"host": host, "tags": [tag] if tag else [], "paths": [public]}
        comment = COMMENT + base64.b64encode(json.dumps(said).encode()).decode()
        words = ["create", "--json", f"--comment={comment}", f"::{os.urandom(4).hex()}", public]
    done = subprocess.run(
        [repository.program, *words], env=_outside(product), capture_output=True, timeout=60,
        check=True,
    )  # fmt: skip
    if repository.engine == "restic":
        return str(json.loads(done.stdout.splitlines()[-1])["snapshot_id"])
    return str(json.loads(done.stdout)["archive"]["id"])


def _raw(
    product: Product, request: Message, groups: tuple[int, ...] = (GROUP,)
) -> tuple[list[Item], Message]:
    """What a program of one's own gets from the room; it says of itself what it likes."""
    room = product.home.compiled().room("giver-repo")
    assert room.door is not None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with as_user(MEMBER, *groups):
        sock.connect(room.door.path)
    got: list[Item] = []
    with Channel(sock) as channel:
        sock.settimeout(60)
        channel.send(request)
        for message in channel:
            if message.get("event") == "ready":
                outlet, inlet = os.pipe()
                socket.send_fds(sock, [b"pipe\n"], [inlet])
                os.close(inlet)

                def drain(outlet: int = outlet) -> None:
                    with open(outlet, "rb") as pipe:
                        for item in items(pipe):
                            pipe.read(item.size)
                            got.append(item)

                threading.Thread(target=drain, daemon=True).start()
            if message.get("event") == "result":
                return got, message
    raise AssertionError("no result")


def test_a_hostile_caller_gets_no_more(kept: Product) -> None:
    source = str(kept.source)
    bobs = f"{source}/bob/letters/dear"
    requests: list[Message] = [
        {"snapshot": "latest", "paths": [bobs], "uid": OTHER_MEMBER, "groups": [OTHER_MEMBER]},
        {"snapshot": "latest", "paths": [f"{source}/ann/../bob/letters/dear"]},
        {"snapshot": "latest", "paths": [f"{source}/ann/./world"]},
        {"snapshot": "latest", "paths": ["--help"]},
        {"snapshot": "latest", "paths": [f"{source}/a*n/world"]},
        {"snapshot": "--help", "paths": [bobs]},
        {"snapshot": "latest:/", "paths": [bobs]},
        {"snapshot": "latest", "paths": []},
        {"snapshot": "latest", "paths": [bobs] * 65},
        {"snapshot": "latest", "paths": [f"{source}/ann/world", bobs]},
    ]
    for options in requests:
        got, result = _raw(kept, {"action": "give", "options": options})
        assert (got, result["failure"]) == ([], "refused"), (options, result)
    for action in ("restore", "diff"):
        assert _raw(kept, {"action": action, "options": {}})[1]["failure"] == "refused"
    got, result = _raw(
        kept, {"action": "ls", "options": {"snapshot": "latest", "paths": [f"{source}/bob"]}}
    )
    assert result["failure"] == "refused"


def test_a_caller_who_takes_nothing_holds_no_lock(kept: Product) -> None:
    """It would keep retention from removing anything, for as long as he likes."""
    room = kept.home.compiled().room("giver-repo")
    assert room.door is not None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with as_user(MEMBER, GROUP):
        sock.connect(room.door.path)
    repository = kept.home.compiled().repositories[0]
    with Channel(sock) as channel:
        sock.settimeout(60)
        channel.send({"action": "ls", "options": {"snapshot": "latest"}})
        for message in channel:
            assert message.get("event") != "result", message
            if message.get("event") == "entry":
                break  # and no word is taken any more
        until = time.monotonic() + 2
        while time.monotonic() < until:
            locks = (*kept.repository.glob("locks/*"), *kept.repository.glob("lock.*"))
            assert locks == ()
            time.sleep(0.1)
        words = {"restic": ("forget", "--prune", "--keep-last=9"), "borg": ("compact",)}
        done = subprocess.run(
            [repository.program, *words[repository.engine]], env=_outside(kept),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    vault = kept.home.plan.room("vault-repo").grant
    _run("chown", "-R", f"{vault.uid}:{vault.gid}", str(kept.repository))
    assert done.returncode == 0, done


def test_nobody_is_led_elsewhere(kept: Product) -> None:
    """By a link on the way, or a directory of somebody else's that waits for him."""
    source = str(kept.source)
    world = f"{source}/ann/world"
    back = _target(kept, "trap")
    top = back / source.split("/")[1]
    elsewhere = _target(kept, "elsewhere")
    os.symlink(elsewhere, top)
    refused = as_member(kept, "restore", "latest", world, "--to", str(back))
    assert refused.code == 3, refused
    assert list(elsewhere.iterdir()) == []
    top.unlink()
    top.mkdir(mode=0o777)
    os.chown(top, OTHER_MEMBER, OTHER_MEMBER)
    top.chmod(0o777)
    refused = as_member(kept, "restore", "latest", world, "--to", str(back))
    assert refused.code == 3, refused
    assert "somebody else's" in refused.err
    assert list(top.iterdir()) == []
    linked = back / "link"
    linked.symlink_to(elsewhere)
    assert as_member(kept, "restore", "latest", world, "--to", str(linked)).code == 4
    # What waits under the very name is neither followed nor replaced.
    place = Path(f"{elsewhere}{source}/ann")
    place.mkdir(parents=True)
    _run("chown", "-R", f"{MEMBER}:{MEMBER}", str(elsewhere))
    (place / "world").symlink_to(kept.source / "public")
    assert as_member(kept, "restore", "latest", world, "--to", str(elsewhere)).code == 6
    assert (
        as_member(kept, "restore", "latest", world, "--to", str(elsewhere), "--overwrite").code == 0
    )
    assert not (place / "world").is_symlink()
    assert (kept.source / "public").read_text() == "anybody's\n"
