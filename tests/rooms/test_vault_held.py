"""Removals that a keeper has held back until all went well."""

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.plan.model import Access
from capkeep.rooms.vault import COMMIT, HOLD
from tests.rooms.test_vault_policy import KINDS, NAME, make_repository
from tests.rooms.vaultkit import Vault


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    make_repository(root)
    return root


@pytest.fixture
def keeper(repository: Path, tmp_path: Path) -> Iterator[Vault]:
    with Vault(str(repository), tmp_path / "state", Access.ADMIN) as vault:
        yield vault


def hold(vault: Vault) -> dict[str, object]:
    """Ask for it, and hear the answer."""
    vault.near.settimeout(30)
    vault.near.sendall(HOLD)
    said = b""
    while b'"snapshots"' not in said or not said.endswith(b"\n"):
        said += vault.near.recv(65536)
    found = json.loads(said.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def objects(root: Path) -> set[str]:
    return {p.parent.parent.name if p.parts[-3] == "data" else p.parent.name
            for p in root.rglob(NAME)}  # fmt: skip


def test_what_was_held_back_goes_at_the_end(repository: Path, keeper: Vault) -> None:
    assert hold(keeper)["names"] == [NAME]
    keeper.add("locks", b"a lock of who removes")
    for kind in ("snapshots", "index", "data"):
        assert keeper.ask("DELETE", f"/{kind}/{NAME}")[0] == 200
        assert keeper.ask("HEAD", f"/{kind}/{NAME}")[0] == 200
    assert objects(repository) == set(KINDS)
    keeper.near.sendall(COMMIT)
    said = keeper.finish()
    assert [m["event"] for m in said] == ["committed", "stored"]
    assert objects(repository) == {"keys", "locks"}


@pytest.mark.parametrize("word", [b"", b'{"commit":1}\n', b'{"commit":true}'])
def test_without_the_word_nothing_goes(repository: Path, keeper: Vault, word: bytes) -> None:
    hold(keeper)
    assert keeper.ask("DELETE", f"/snapshots/{NAME}")[0] == 200
    keeper.near.sendall(word)
    assert "committed" not in [m["event"] for m in keeper.finish()]
    assert objects(repository) == set(KINDS)


def test_the_lock_stays_until_what_it_protects_is_gone(repository: Path, keeper: Vault) -> None:
    hold(keeper)
    _, first = keeper.add("locks", b"a lock of a check")
    assert keeper.ask("DELETE", f"/locks/{first}")[0] == 200
    assert not (repository / "locks" / first).exists()
    _, second = keeper.add("locks", b"a lock of who removes")
    assert keeper.ask("DELETE", f"/data/{NAME}")[0] == 200
    assert keeper.ask("DELETE", f"/locks/{second}")[0] == 200
    assert (repository / "locks" / second).exists()
    keeper.near.sendall(COMMIT)
    keeper.finish()
    assert not (repository / "locks" / second).exists()


def test_who_may_only_add_can_neither_hold_nor_remove(repository: Path, tmp_path: Path) -> None:
    for word in (HOLD, COMMIT):
        with Vault(str(repository), tmp_path / "state") as reader:
            assert reader.ask("DELETE", f"/snapshots/{NAME}")[0] == 403
            reader.near.sendall(word)
            events = [m["event"] for m in reader.events()]
            assert "snapshots" not in events
    assert objects(repository) == set(KINDS)


def test_without_a_lock_that_still_stands_nothing_goes(repository: Path, keeper: Vault) -> None:
    """Somebody has called it stale, and may rely by now on what was to go."""
    hold(keeper)
    _, lock = keeper.add("locks", b"a lock of who removes")
    for kind in ("snapshots", "index", "data"):
        assert keeper.ask("DELETE", f"/{kind}/{NAME}")[0] == 200
    (repository / "locks" / lock).unlink()
    keeper.near.sendall(COMMIT)
    said = keeper.finish()
    assert [m["event"] for m in said] == ["failure", "stored"]
    assert said[0]["failure"] == "locked"
    assert objects(repository) == set(KINDS)


def test_many_go_side_by_side(repository: Path, keeper: Vault) -> None:
    names = []
    for number in range(25):
        content = f"pack {number}".encode()
        names.append(hashlib.sha256(content).hexdigest())
        assert keeper.add("data", content)[0] == 200
    hold(keeper)
    keeper.add("locks", b"a lock of who removes")
    for name in names:
        assert keeper.ask("DELETE", f"/data/{name}")[0] == 200
    keeper.near.sendall(COMMIT)
    keeper.near.shutdown(socket.SHUT_WR)
    assert [m["event"] for m in keeper.events()] == ["committed", "stored"]
    assert objects(repository) == set(KINDS)
    assert not [n for n in names if (repository / "data" / n[:2] / n).exists()]
