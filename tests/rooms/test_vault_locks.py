"""No stale lock is ever left: the engine is killed, the vault is killed, or both."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from capkeep.plan.model import Access
from tests.engines import restic_programs
from tests.rooms.vaultkit import RELAY, Vault, failures, initialised, restic, start_restic

NEWEST = list(restic_programs().values())[-1]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    vault = Vault(str(root), tmp_path / "state", Access.ADMIN)
    initialised(NEWEST, vault, tmp_path / "cache")
    return root


def locks(repository: Path) -> list[str]:
    return sorted(os.listdir(repository / "locks"))


def notes(state: Path) -> list[Path]:
    return list((state / "vault" / "test").glob("session-*"))


def begin_backup(vault: Vault, repository: Path, cache: Path) -> subprocess.Popen[str]:
    """A backup from a pipe that never ends: it holds its lock until it is killed."""
    child = start_restic(NEWEST, vault, "backup", "--stdin", cache=cache, stdin=subprocess.PIPE)
    deadline = time.monotonic() + 40
    while not locks(repository):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def test_an_engine_that_is_killed_leaves_no_lock(repository: Path, tmp_path: Path) -> None:
    with Vault(str(repository), tmp_path / "state") as vault:
        end(begin_backup(vault, repository, tmp_path / "cache"))
        assert len(locks(repository)) == 1
        assert failures(vault.finish()) == []
        assert locks(repository) == []
        assert notes(tmp_path / "state") == []


def test_an_engine_that_is_killed_leaves_no_relay(repository: Path, tmp_path: Path) -> None:
    def relays() -> list[Path]:
        return [p for p in Path("/proc").glob("[0-9]*") if is_relay(p)]

    def is_relay(process: Path) -> bool:
        """It holds this vault's socket; that of others may have the same number."""
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            return RELAY.encode() in words and os.path.samestat(
                os.stat(process / "fd" / number), here
            )
        except OSError:
            return False

    with Vault(str(repository), tmp_path / "state") as vault:
        number, here = str(vault.handover.fileno()), os.fstat(vault.handover.fileno())
        child = begin_backup(vault, repository, tmp_path / "cache")
        assert len(relays()) == 1
        end(child)
        deadline = time.monotonic() + 10
        while relays():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_room_that_is_killed_leaves_no_lock(repository: Path, tmp_path: Path) -> None:
    """Its end of the wire just closes."""
    with Vault(str(repository), tmp_path / "state") as vault:
        end(begin_backup(vault, repository, tmp_path / "cache"))
    assert locks(repository) == []


def test_the_next_vault_removes_the_locks_of_one_that_was_killed(
    repository: Path, tmp_path: Path
) -> None:
    with Vault(str(repository), tmp_path / "state") as vault:
        child = begin_backup(vault, repository, tmp_path / "cache")
        vault.child.kill()
        end(child)
    assert len(locks(repository)) == 1
    assert len(notes(tmp_path / "state")) == 1
    with Vault(str(repository), tmp_path / "state", Access.ADMIN) as vault:
        cache = tmp_path / "cache"
        assert restic(NEWEST, vault, "list", "locks", "--no-lock", cache=cache).stdout == ""
        assert restic(NEWEST, vault, "prune", cache=cache).returncode == 0
    assert locks(repository) == []
    assert notes(tmp_path / "state") == []


def test_locks_of_living_vaults_and_of_others_stay(repository: Path, tmp_path: Path) -> None:
    (repository / "locks" / ("f" * 64)).write_bytes(b"from another host")
    with Vault(str(repository), tmp_path / "state") as living:
        child = begin_backup(living, repository, tmp_path / "cache")
        mine = len(locks(repository))
        with Vault(str(repository), tmp_path / "state") as other:
            assert other.ask("HEAD", "/config")[0] == 200
            assert len(locks(repository)) == mine
        assert len(locks(repository)) == mine
        end(child)
    assert locks(repository) == ["f" * 64]


def test_notes_are_believed_only_where_they_are_names(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "vault" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "session-torn").write_bytes(b"../config\nconfig\n\xff\xfe\n" + b"a" * 63)
    before = (repository / "config").read_bytes()
    with Vault(str(repository), tmp_path / "state") as vault:
        assert vault.ask("HEAD", "/config")[0] == 200
    assert (repository / "config").read_bytes() == before
    assert notes(tmp_path / "state") == []


def test_a_lock_taken_back_is_not_removed_for_another(repository: Path, tmp_path: Path) -> None:
    """Noted, but not stored by us, or removed by us and stored by somebody else since."""
    name = "e" * 64
    folder = tmp_path / "state" / "vault" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "session-old").write_text(f"{name}\n-{name}\n")
    (repository / "locks" / name).write_bytes(b"somebody's")
    with Vault(str(repository), tmp_path / "state") as vault:
        assert vault.ask("HEAD", "/config")[0] == 200
    assert locks(repository) == [name]
