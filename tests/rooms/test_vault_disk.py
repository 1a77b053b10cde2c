"""A disk that is full, missing, read-only or without the newer ways to name a file."""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.plan.model import Access
from capkeep.rooms.rest import uncached
from capkeep.rooms.rest.directory import DirectoryStore
from capkeep.rooms.rest.names import Name
from tests.engines import restic_programs
from tests.rooms.vaultkit import Vault, failures, initialised, tree

NEWEST = list(restic_programs().values())[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """32 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    argv = ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=32m", "none", str(point)]
    subprocess.run(argv, check=True, timeout=10)
    try:
        yield point
    finally:
        subprocess.run(["/usr/bin/umount", str(point)], check=True, timeout=10)


def test_a_full_disk_is_said_once_and_leaves_nothing_half(small_disk: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    initialised(NEWEST, Vault(str(small_disk), state, Access.ADMIN, floor=0), tmp_path / "cache")
    with Vault(str(small_disk), state, floor=0) as vault:
        with open(small_disk / "ballast", "wb") as file:
            file.write(bytes(24 << 20))
        before = tree(small_disk)
        content = os.urandom(20 << 20)
        name = hashlib.sha256(content).hexdigest()
        assert vault.ask("POST", f"/data/{name}", content)[0] == 507
        assert vault.ask("POST", f"/data/{name}", content)[0] == 507
        assert tree(small_disk) == before
        events = vault.finish()
    assert failures(events) == ["no-space"]
    assert "disk" in str(events[1]["text"]) or "free" in str(events[1]["text"])


def test_a_disk_that_fills_while_we_write_is_the_same(small_disk: Path, tmp_path: Path) -> None:
    """What was free when it was announced is gone when it arrives."""
    state = tmp_path / "state"
    initialised(NEWEST, Vault(str(small_disk), state, Access.ADMIN, floor=0), tmp_path / "cache")
    with Vault(str(small_disk), state, floor=0) as vault:
        content = bytes(20 << 20)
        name = hashlib.sha256(content).hexdigest()
        with vault.connect() as client:
            stream = client.begin("POST", f"/index/{name}", len(content))
            client.upload(stream, content[: 1 << 20], end=False)
            (small_disk / "ballast").write_bytes(bytes(24 << 20))
            client.upload(stream, content[1 << 20 :])
            assert client.answer(stream)[0] == 507
        assert failures(vault.finish()) == ["no-space"]


def test_a_pack_that_has_begun_to_arrive_has_its_space(small_disk: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    initialised(NEWEST, Vault(str(small_disk), state, Access.ADMIN, floor=0), tmp_path / "cache")
    content = os.urandom((20 << 20) + 1234)
    with Vault(str(small_disk), state, floor=0) as vault:
        with vault.connect() as client:
            stream = client.begin("POST", f"/data/{'a' * 64}", len(content))
            client.upload(stream, content[: 1 << 20], end=False)
            before = time.monotonic() + 20
            while shutil.disk_usage(small_disk).free > 24 << 20 and time.monotonic() < before:
                time.sleep(0.02)
            with pytest.raises(OSError, match="No space"):
                (small_disk / "ballast").write_bytes(bytes(24 << 20))
            client.upload(stream, content[1 << 20 :])
            assert client.answer(stream)[0] == 200
        assert failures(vault.finish()) == []
    assert (small_disk / "data" / "aa" / ("a" * 64)).read_bytes() == content


SIZES = (1, 4095, uncached.SIZE - 1, uncached.SIZE, uncached.SIZE + 1, (3 << 20) + 4097, 4 << 20)


def poured(folder: Path, content: bytes) -> Path:
    """A pack that came out of a pipe."""
    store = DirectoryStore(str(folder), 0)
    store.create()
    name = Name("data", hashlib.sha256(content).hexdigest())
    upload = store.write(name, len(content))
    assert upload.pour is not None
    out, into = os.pipe()

    def send() -> None:
        with open(into, "wb") as pipe:
            pipe.write(content)

    sender = threading.Thread(target=send)
    sender.start()
    left = len(content)
    while left:
        left -= upload.pour(out, left)
    sender.join(20)
    os.close(out)
    upload.commit()
    return folder / "data" / name.hash[:2] / name.hash


def in_cache(file: Path) -> int:
    """Bytes of a file that the kernel has in its cache."""
    argv = ["/usr/bin/fincore", "--bytes", "--noheadings", "--output", "RES", str(file)]
    return int(subprocess.run(argv, check=True, timeout=10, capture_output=True).stdout)


@pytest.mark.parametrize("size", SIZES)
def test_packs_are_whole_and_leave_the_cache_to_others(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    pack = poured(tmp_path, content)
    kind = subprocess.run(["/usr/bin/findmnt", "-nro", "FSTYPE", "-T", tmp_path], check=True,
                          timeout=10, capture_output=True).stdout.decode().strip()  # fmt: skip
    if size >= uncached.SIZE and kind in ("ext4", "xfs"):
        assert in_cache(pack) <= 4096  # what is less than a block
    assert pack.read_bytes() == content
    assert pack.stat().st_size == size


@pytest.mark.parametrize("refused", ["flag", "first", "rest"])
def test_a_filesystem_without_direct_writes_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Some refuse the flag, and some say nothing until they are to write, or have taken half a block."""
    if refused != "flag":
        real, taken = os.write, [refused == "first"]

        def write(fd: int, data: memoryview) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                if taken[0]:
                    raise OSError(errno.EINVAL, "Invalid argument")
                taken[0] = True
                uncached._set_direct(fd, on=False)
                done = real(fd, data[:5000])
                assert uncached._set_direct(fd, on=True)
                return done
            return real(fd, data)

        monkeypatch.setattr(os, "write", write)
    else:
        monkeypatch.setattr(uncached, "_set_direct", lambda _fd, **_on: False)
    content = os.urandom((2 << 20) + 17)
    assert poured(tmp_path, content).read_bytes() == content


def test_the_floor_stops_additions_but_not_removals(small_disk: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    initialised(NEWEST, Vault(str(small_disk), state, Access.ADMIN, floor=0), tmp_path / "cache")
    with Vault(str(small_disk), state, floor=30 << 20) as vault:
        assert vault.add("data", bytes(4 << 20))[0] == 507
        assert failures(vault.finish()) == ["no-space"]
    with Vault(str(small_disk), state, Access.ADMIN, floor=30 << 20) as vault:
        assert vault.add("locks", b"a lock")[0] == 200
        assert failures(vault.finish()) == []


def test_a_missing_directory_is_named_and_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "not" / "there"
    with Vault(str(missing), tmp_path / "state") as vault:
        events = vault.events()
    assert failures(events) == ["no-repository"]
    assert str(missing) in str(events[-1]["text"])
    assert not missing.parent.exists()


def test_a_file_in_the_repositorys_place_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with Vault(str(tmp_path / "file"), tmp_path / "state") as vault:
        assert failures(vault.events()) == ["no-repository"]


def test_a_read_only_disk_is_denied(small_disk: Path, tmp_path: Path) -> None:
    argv = ["/usr/bin/mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(argv, check=True, timeout=10)
    with Vault(str(small_disk), tmp_path / "state") as vault:
        assert failures(vault.events()) == ["denied"]


def test_waiting_files_of_killed_vaults_are_swept(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    (root / "tmp").mkdir(parents=True)
    (root / "tmp" / "capkeep-0123").write_bytes(b"half")
    (root / "tmp" / "theirs").write_bytes(b"not ours")
    with Vault(str(root), tmp_path / "state") as vault:
        assert vault.ask("HEAD", "/config")[0] == 404
    assert os.listdir(root / "tmp") == ["theirs"]
