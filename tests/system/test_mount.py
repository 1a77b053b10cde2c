"""A snapshot as files: as it was, to read only, for root alone, and gone on every way out."""

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.kernel.fuse import KIND
from capkeep.kernel.mounts import Mount, read_mounts
from tests.engines import restic_programs
from tests.rooms.house import MEMBER, house, wait_for
from tests.system.conftest import Product

START_SECONDS = 120
SHOWN = "until Ctrl-C or umount"
# It does what restic does, but is no filesystem: it is silent, or a link to what root keeps to itself.
LIAR = """#!/usr/bin/python3 -I
import os, struct, sys, time
if "mount" not in sys.argv:
    os.execv("/usr/bin/restic", ["restic", *sys.argv[1:]])
while {silent!r}:
    time.sleep(1)
def state(mode):
    return struct.pack("=48xIIIIIIIIII", 0, 0, 0, mode, 1, 0, 0, 0, 512, 0)
while True:
    length, asked, unique = struct.unpack_from("=IIQ", os.read(5, 1 << 20))
    if asked == 26:  # FUSE_INIT
        answer = struct.pack("=IIIIHHII32x", 7, 31, 0, 0, 0, 0, 4096, 1)
    elif asked == 1 and {deaf!r}:  # FUSE_LOOKUP: wait, in the kernel, for who asks
        name = b"b" * 64
        content = struct.pack("=QII", 1, len(name), 0) + name + b"\\0"
        os.write(5, struct.pack("=IiQ", 16 + len(content), 3, 0) + content)  # FUSE_NOTIFY_INVAL_ENTRY
    elif asked == 1:
        answer = struct.pack("=QQQQII", 2, 0, 9, 9, 0, 0) + state(0o120777)
    elif asked == 3:  # FUSE_GETATTR, of the root
        answer = struct.pack("=QII", 9, 0, 0) + state(0o40777)
    elif asked == 5:  # FUSE_READLINK
        answer = b"/etc"
    else:
        os.write(5, struct.pack("=IiQ", 16, -38, unique))
        continue
    os.write(5, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
"""


@pytest.fixture(scope="module", params=["0.14", "0.19", "borg"])
def kept(request: pytest.FixtureRequest) -> Iterator[Product]:
    """A backup of what differs in owner, mode, kind and time."""
    with house() as home, home.doors():
        product = Product(home)
        programs = restic_programs()
        if request.param == "borg":
            product.configure('engine = "restic"', 'engine = "borg"')
        elif request.param != "0.14":
            product.configure(str(programs["0.14"]), str(programs[request.param]))
        assert product("init").code == 0
        _make(product.source)
        done = product("run")
        assert done.code == 0, done
        yield product


def _make(source: Path) -> None:
    (source / "inner").mkdir(mode=0o710)
    os.chown(source / "inner", MEMBER, MEMBER)
    large = source / "inner" / "large"
    large.write_bytes(os.urandom(1 << 21))
    os.chown(large, MEMBER, 70000)
    large.chmod(0o640)
    os.setxattr(large, "user.note", b"kept, too")
    os.utime(large, ns=(1, 1_500_000_000_123_456_789))
    program = source / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o4755)
    os.symlink("inner", source / "link")


def _mounts(product: Product) -> list[Mount]:
    return [m for m in read_mounts() if m.point.startswith(product.home.base) and m.kind == KIND]


def _left(product: Product) -> list[str]:
    """What still runs for somebody who looks."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            looks = any(w in words for w in ("rooms.viewer", " mount ", "/rooms/relay.py"))
            if entry.name.isdigit() and product.home.base in words and looks:
                found.append(words)
    return found


@contextlib.contextmanager
def mounted(product: Product, place: Path, *, wait: bool = True) -> Iterator[subprocess.Popen[str]]:
    said = Path(product.home.base, f"said-{place.name}")
    with said.open("w") as file:
        process = subprocess.Popen(
            product.home.command("mount", "latest", str(place)), cwd="/", stderr=file, text=True,
            env={"PATH": "/usr/sbin:/usr/bin"},
        )  # fmt: skip
    try:
        wait_for(
            lambda: not wait or process.poll() is not None or SHOWN in said.read_text(),
            START_SECONDS,
        )
        assert process.poll() is None, said.read_text()
        yield process
    finally:
        process.kill()
        process.wait(20)
        wait_for(lambda: not _mounts(product), 60)


def _refusal(path: Path, flags: int) -> str:
    with pytest.raises(OSError, match=r".") as caught:
        os.close(os.open(path, flags, 0o600))
    return str(caught.value.strerror)


def test_a_snapshot_is_as_it_was_and_to_read_only(kept: Product) -> None:
    place = Path(kept.home.base, "shown")
    with mounted(kept, place) as process:
        below = Path(f"{place}{kept.source}")
        assert {p.name for p in below.iterdir()} == {p.name for p in kept.source.iterdir()}
        for name in ("file", "inner", "inner/large", "program", "link"):
            was, now = os.lstat(kept.source / name), os.lstat(below / name)
            assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
            if name != "link":
                assert now.st_mtime_ns == was.st_mtime_ns
        for name in ("file", "inner/large"):
            assert (below / name).read_bytes() == (kept.source / name).read_bytes()
        assert os.getxattr(below / "inner" / "large", "user.note") == b"kept, too"
        assert os.readlink(below / "link") == "inner"
        assert _refusal(below / "link" / "large", os.O_RDONLY) == os.strerror(errno.ELOOP)
        assert _refusal(below / "file", os.O_WRONLY) == os.strerror(errno.EROFS)
        assert _refusal(below / "new", os.O_WRONLY | os.O_CREAT) == os.strerror(errno.EROFS)
        found = subprocess.run(
            ["ls", str(place)], user=MEMBER, group=MEMBER, extra_groups=[], capture_output=True,
            text=True, check=False, timeout=20,
        )  # fmt: skip
        assert "Permission denied" in found.stderr
        (mount,) = _mounts(kept)
        assert {"ro", "nosuid", "nodev", "noexec", "nosymfollow"} <= {*mount.options}
        assert kept.root("ls", "latest").code == 0  # somebody else looks meanwhile
        assert (below / "file").read_text() == "kept\n"
        subprocess.run(["umount", str(place)], check=True, timeout=20)
        assert process.wait(60) == 0
    assert not list(place.iterdir())
    wait_for(lambda: not _left(kept), 60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_behind(kept: Product, number: signal.Signals) -> None:
    place = Path(kept.home.base, f"ended-by-{number}")
    with mounted(kept, place) as process:
        inside = os.open(place, os.O_PATH | os.O_DIRECTORY)  # as of whoever is in it
        process.send_signal(number)
        assert process.wait(60) == (0 if number is signal.SIGINT else -number)
        wait_for(lambda: not _mounts(kept) and not _left(kept), 60)
        os.close(inside)
    assert not list(place.iterdir())


def test_what_cannot_be_shown_is_refused(product: Product) -> None:
    home = product.home.base
    product.configure(
        "[jobs.job]",
        f'[repositories.mirror]\nengine = "rdiff-backup"\nlocation = "{home}/repositories/mirror"\n'
        "\n[jobs.job]",
    )
    empty, full = Path(home, "empty"), Path(home, "etc")
    for said, sentence in (
        (product("mount", "latest", str(empty)), "only root"),
        (product.root("mount", "latest", str(full), "-r", "repo"), "not empty"),
        (
            product.root("mount", "latest", str(empty), "-r", "mirror"),
            "shows no snapshots as files",
        ),
    ):
        assert said.code == 4, said
        assert sentence in said.err
    assert not empty.exists()
    said = product.root("mount", "0123456789abcdef", str(empty), "-r", "repo")
    assert said.code == 1, said
    assert "no snapshot" in said.err
    assert not _mounts(product)
    assert not _left(product)


def test_a_lying_engine_keeps_nobody_and_leads_nowhere(product: Product) -> None:
    assert product("run").code == 0
    liar = Path(product.home.base, "liar")
    liar.write_text(LIAR.format(silent=True, deaf=False))
    liar.chmod(0o755)
    program = Path(product.home.base, "etc/capkeep.toml").read_text().split('program = "')[1]
    product.configure(program.split('"')[0], str(liar))
    place = Path(product.home.base, "lie")
    with mounted(product, place, wait=False) as process:
        # The process that mounts is a copy of its parent: it waits for the engine, or will at once.
        wait_for(lambda: sum(" mount latest " in words for words in _left(product)) >= 2, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    wait_for(lambda: not _left(product), 60)
    liar.write_text(LIAR.format(silent=False, deaf=True))
    with mounted(product, place, wait=False) as process:
        wait_for(lambda: sum(" mount latest " in words for words in _left(product)) >= 2, 60)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == 130
    wait_for(lambda: not _left(product), 60)
    liar.write_text(LIAR.format(silent=False, deaf=False))
    said = product.root("mount", "latest", str(place))
    assert said.code == 1, said
    assert f"cannot be shown: [Errno {errno.ELOOP}]" in said.err
    assert not _mounts(product)
    wait_for(lambda: not _left(product), 60)
