"""rdiff-backup from a member's `capkeep run` to a verified restore, its gate, and what it survives."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms.house import House, house
from tests.system.conftest import Product

SECONDS = 60


@pytest.fixture(scope="module")
def mirror() -> Iterator[Product]:
    """An installation whose repository is rdiff-backup's."""
    with house() as home:
        _with_rdiff_backup(home)
        with home.doors():
            product = Product(home)
            made = product("init")
            assert made.code == 0, made
            yield product


def _with_rdiff_backup(home: House) -> None:
    path = Path(home.base, "etc/capkeep.toml")
    lines = path.read_text().replace('"restic"', '"rdiff-backup"').splitlines()
    kept = [n for n in lines if not n.startswith(("password", "program", "[engines."))]
    path.write_text(
        "\n".join([*kept, "[jobs.job.retention]", "keep-last = 2", "trust-clock = true"]) + "\n"
    )
    home.apply(home.compiled())


def _snapshots(product: Product) -> list[dict[str, object]]:
    found = json.loads(product("snapshots", "--json").out)[0]["snapshots"]
    assert isinstance(found, list)
    return found


def _fill(source: Path) -> None:
    """Every kind of node that a system has."""
    (source / "plain").write_bytes(os.urandom(300_000))
    for name, mode in {"setuid": 0o4755, "setgid": 0o2755, "secret": 0o000}.items():
        (source / name).write_text(name)
        (source / name).chmod(mode)
    os.chown(source / "plain", 70_000, 80_000)
    os.utime(source / "plain", ns=(1, 1_500_000_000_000_000_000))
    os.setxattr(source / "plain", "user.note", b"kept\n\0")
    subprocess.run(["setfacl", "-m", "u:70001:r", source / "plain"], check=True, timeout=20)
    subprocess.run(["setcap", "cap_net_raw+ep", source / "setuid"], check=True, timeout=20)
    (source / "folder").mkdir(mode=0o700)
    subprocess.run(
        ["setfacl", "-d", "-m", "u:70001:rwx", source / "folder"], check=True, timeout=20
    )
    os.link(source / "plain", source / "zlinked")
    os.symlink("plain", source / "symlink")
    os.mkfifo(source / "fifo")
    os.mknod(source / "device", 0o600 | 0o020000, os.makedev(1, 3))
    with open(source / "sparse", "wb") as file:
        file.truncate(3 << 20)
    for odd in (b"n" * 255, b"not\xffutf8", b"new\nline", b"star*[x]\\", b".dot"):
        with open(os.fsencode(source) + b"/" + odd, "wb") as file:
            file.write(odd)
    (source / "left-out").mkdir()
    (source / "left-out" / "x").write_text("not kept")


def _facts(top: str) -> dict[bytes, tuple[object, ...]]:
    """All that a restore must bring back, of every node below."""
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(os.fsencode(top)):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            kind = state.st_mode & 0o170000
            attributes = {n: os.getxattr(path, n, follow_symlinks=False)
                          for n in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
            content = b""
            if kind == 0o100000:
                with open(path, "rb") as file:
                    content = file.read()
            elif kind == 0o120000:
                content = os.readlink(path)
            when = int(state.st_mtime) if kind not in (0o120000, 0o020000) else 0
            found[os.path.relpath(path, os.fsencode(top))] = (
                state.st_mode, state.st_uid, state.st_gid, state.st_rdev, state.st_nlink, when,
                attributes, content,
            )  # fmt: skip
    return found


def test_a_life(mirror: Product) -> None:
    source, base = mirror.source, mirror.home.base
    _fill(source)
    mirror.configure("include = [", 'exclude = ["**/left-out"]\ninclude = [')
    first = mirror("run")
    assert first.code == 0, first
    (source / "left-out" / "x").unlink()
    (source / "left-out").rmdir()
    was = _facts(str(source))

    # The mirror is there to be looked at, as plain files of the vault's own.
    kept = Path(f"{mirror.repository}{source}")
    assert mirror.repository.stat().st_mode & 0o7777 == 0o700
    assert (kept / "plain").read_bytes() == (source / "plain").read_bytes()
    assert not (kept / "left-out").exists()
    assert not (kept / "setuid").stat().st_mode & 0o6000

    (source / "plain").write_bytes(os.urandom(200_000))
    (source / "setgid").unlink()
    (source / "more").write_text("more")
    os.setxattr(source / "setuid", "user.only", b"attributes")
    second = mirror("run")
    assert second.code == 0, second
    old, new = (str(s["id"]) for s in _snapshots(mirror))
    assert [s["host"] for s in _snapshots(mirror)] == ["house", "house"]

    shown = mirror.root("diff", old, new)
    assert shown.code == 0, shown
    assert {f"{source}/more", f"{source}/plain", f"{source}/setgid"} <= set(shown.out.split()), (
        shown
    )
    assert f"{source}/more" in mirror.root("ls", "latest", str(source)).out
    assert f"{source}/setgid" in mirror.root("find", "setgid").out

    for name, target in ((old, "back-old"), ("latest", "back-new")):
        restored = mirror.root("restore", name, str(source), "--to", f"{base}/{target}")
        assert restored.code == 0, restored
    assert _facts(f"{base}/back-old{source}") == was
    assert _facts(f"{base}/back-new{source}") == _facts(str(source))
    assert (Path(f"{base}/back-old{source}") / "sparse").stat().st_blocks == 0

    again = ("restore", "latest", f"{source}/plain", "--to", f"{base}/back-new")
    assert mirror.root(*again).code == 6
    assert mirror.root(*again, "--overwrite").code == 0
    checked = mirror("check", "--read-data", "all")
    assert checked.code == 0, checked

    # rdiff-backup itself reads the same from it, by another way.
    subprocess.run(
        ["rdiff-backup", "restore", "--at", "1B", f"{mirror.repository}", f"{base}/back-plain"],
        check=True, timeout=SECONDS, capture_output=True,
    )  # fmt: skip
    plain = Path(f"{base}/back-plain{source}")
    for name, facts in was.items():
        if facts[0] == 0o100644:
            assert (plain / os.fsdecode(name)).read_bytes() == facts[-1]

    third = mirror("run")
    assert third.code == 0, third
    assert next(s["id"] for s in _snapshots(mirror)) == new, "keep-last = 2"


def test_what_cannot_be_kept_is_told(mirror: Product) -> None:
    """A file that shrinks while it is read, a source that is not there: both make the run partial."""
    gone = mirror.source.parent / "gone"
    gone.mkdir()
    (gone / "x").write_text("x")
    mirror.configure("include = [", f'include = ["{gone}", ')
    assert mirror("run").code == 0
    (gone / "x").unlink()
    gone.rmdir()
    done = mirror("run")
    assert done.code == 3, done
    assert "gone" in done.out
    mirror.configure(f'"{gone}", ', "")
    mirror("run")


def test_a_killed_run_is_taken_back_by_the_next(mirror: Product) -> None:
    before = [s["id"] for s in _snapshots(mirror)]
    for number in range(3):
        (mirror.source / f"much{number}").write_bytes(os.urandom(30 << 20))
    running = subprocess.Popen(
        mirror.home.command("run"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    data = mirror.repository / "rdiff-backup-data"
    deadline = time.monotonic() + SECONDS
    while len(list(data.glob("current_mirror.*"))) < 2:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)
    store = subprocess.run(
        ["pgrep", "-f", f"guest.rdiff.store.*{mirror.repository}"], capture_output=True, check=True,
        timeout=SECONDS,
    ).stdout.split()  # fmt: skip
    os.kill(int(store[-1]), signal.SIGKILL)
    out, _ = running.communicate(timeout=SECONDS)
    assert running.returncode not in (0, 3), out
    assert [s["id"] for s in _snapshots(mirror)] == before, "listed whole, by whoever comes first"
    done = mirror("run")
    assert done.code == 0, done
    checked = mirror("check", "--read-data", "all")
    assert checked.code == 0, checked
    for number in range(3):
        (mirror.source / f"much{number}").unlink()


def test_damage_is_found(mirror: Product) -> None:
    kept = Path(f"{mirror.repository}{mirror.source}/file")
    state = kept.stat()
    kept.write_text("KEPT\n")
    os.utime(kept, ns=(state.st_atime_ns, state.st_mtime_ns))
    found = mirror("check", "--read-data", "all")
    assert found.code == 13, found
    assert "/file" in found.out + found.err
