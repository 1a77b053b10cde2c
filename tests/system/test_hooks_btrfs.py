"""A backup of a btrfs snapshot, which a service of root's makes when a hook asks for it."""

import contextlib
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.world import loop_device
from tests.rooms.house import House, house, wait_for
from tests.system.conftest import Product

# What the how-to shows as units and scripts: a socket for each deed, and for one user alone.
SERVICE = """
import os, socket, subprocess, sys, time
data, snapshot, folder, uid = sys.argv[1:]
DROP = f"if [ -e {snapshot} ]; then btrfs subvolume delete {snapshot}; fi"
DEEDS = {"make": f"{DROP}; btrfs subvolume snapshot -r {data} {snapshot}", "drop": DROP}
listening = {}
for name in DEEDS:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{folder}/{name}")
    os.chown(f"{folder}/{name}", int(uid), -1)
    os.chmod(f"{folder}/{name}", 0o600)
    sock.listen()
    listening[sock] = name
import select
while True:
    for sock in select.select(listening, [], [])[0]:
        caller, _ = sock.accept()
        done = subprocess.run(["/bin/sh", "-ec", DEEDS[listening[sock]]], stdout=2)
        if listening[sock] == "make":  # life goes on while the snapshot is read
            open(f"{data}/file", "w").write("changed since\\n")
        caller.sendall(b"ok\\n" if done.returncode == 0 else b"failed\\n")
        caller.close()
"""
ASK = """#!/usr/bin/python3 -I
import socket, sys
with socket.socket(socket.AF_UNIX) as service:
    service.connect(sys.argv[1])
    said = service.makefile().read()
print(said, end="")
sys.exit(said.split()[-1:] != ["ok"])
"""


@contextlib.contextmanager
def btrfs(home: House) -> Iterator[Path]:
    """A disk with a btrfs, mounted, with a subvolume `data` and a directory for snapshots."""
    image, point = Path(home.base, "disk"), Path(home.base, "disk-at")
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(200 << 20)
    with contextlib.ExitStack() as stack:
        run("mkfs.btrfs", "-q", image)
        run("mount", "-t", "btrfs", loop_device(image, stack), point)
        stack.callback(run, "umount", point)
        run("btrfs", "subvolume", "create", point / "data")
        (point / "snapshots").mkdir()
        yield point


def run(*words: "str | Path") -> None:
    subprocess.run(words, check=True, timeout=60, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def service(home: House, point: Path, uid: int) -> Iterator[Path]:
    """The service of root's, and the directory of its sockets."""
    folder = Path(home.base, "service")
    folder.mkdir()
    paths = [point / "data", point / "snapshots/data", folder]
    argv = ["/usr/bin/python3", "-I", "-c", SERVICE, *map(str, paths), str(uid)]
    child = subprocess.Popen(argv, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    try:
        wait_for((folder / "drop").exists)
        yield folder
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(20)


def configured(product: Product, point: Path, folder: Path) -> None:
    ask = Path(product.home.base, "ask")
    ask.write_text(ASK)
    ask.chmod(0o755)
    tables = "".join(
        f'[hooks.{name}-snapshot]\ncommand = ["{ask}", "{folder}/{name}"]\nuser = "games"\n'
        f'sockets = ["{folder}"]\n'
        for name in ("make", "drop")
    )
    conf = Path(product.home.base, "etc/conf.d")
    conf.mkdir()
    (conf / "snapshot.toml").write_text(tables)
    product.configure(
        f'include = ["{product.source}"]',
        f'include = ["{point}/snapshots/data"]\n'
        'before = ["make-snapshot"]\nafter = ["drop-snapshot"]',
    )


@pytest.mark.skipif(
    "\tbtrfs\n" not in Path("/proc/filesystems").read_text(), reason="this kernel has no btrfs"
)
def test_a_snapshot_is_what_is_kept() -> None:
    games = pwd.getpwnam("games").pw_uid
    with house() as home, home.doors(), btrfs(home) as point, service(home, point, games) as folder:
        product = Product(home)
        made = product("init")
        assert made.code == 0, made
        configured(product, point, folder)
        file = point / "data/file"
        for word in ("as it was\n", "later\n"):
            file.write_text(word)
            done = product("run")
            assert done.code == 0, done
            assert "hook make-snapshot" not in done.out
            assert file.read_text() == "changed since\n"
            assert list((point / "snapshots").iterdir()) == []
            target = Path(home.base, f"back-{len(word)}")
            kept = f"{point}/snapshots/data/file"
            restored = product.root("restore", "latest", kept, "--to", str(target))
            assert restored.code == 0, restored
            assert Path(f"{target}{kept}").read_text() == word
        (point / "snapshots/data").mkdir()  # in the snapshot's way, and no snapshot
        done = product("run")
        assert done.code == 1, done
        assert "before make-snapshot: failed" in done.out
        assert "hook make-snapshot: ask ended with 1" in done.out
