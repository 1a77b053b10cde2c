"""A disk that is full, missing, read-only or without the newer ways to name a file."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.plan.model import Access
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
        size = 20 << 20
        with vault.connect() as client:
            stream = client.begin("POST", f"/data/{'a' * 64}", size)
            client.upload(stream, bytes(1 << 20), end=False)
            with open(small_disk / "ballast", "wb") as file:
                file.write(bytes(24 << 20))
            client.upload(stream, bytes(size - (1 << 20)))
            assert client.answer(stream)[0] == 507
        assert failures(vault.finish()) == ["no-space"]


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
