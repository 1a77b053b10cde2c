"""A command that asks for a run knocks before it has loaded, and never without being asked to run."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.cli import early
from capkeep.cli.places import SYSTEM


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "run.sock")
    monkeypatch.setattr(early, "DOOR", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen(4)
        listening.settimeout(5)
        yield listening


@pytest.mark.parametrize(
    "words", [["run"], ["run", "home", "mail"], ["run", "--dry-run", "home", "--json"]]
)
def test_the_connection_is_kept_for_the_request(door: socket.socket, words: list[str]) -> None:
    early.knock(words)
    there, _ = door.accept()
    ours = early.opened(early.DOOR)
    assert ours is not None
    with there, ours:
        ours.sendall(b"asked")
        assert there.recv(5) == b"asked"
    assert early.opened(early.DOOR) is None


@pytest.mark.parametrize(
    "words",
    [[], ["status"], ["--json", "run"], ["run", "--help"], ["run", "--prefix", "/x"],
     ["run", "--user"], ["run", "--prefix=/x"], ["run", "-h"]],
)  # fmt: skip
def test_nobody_is_disturbed_otherwise(door: socket.socket, words: list[str]) -> None:
    early.knock(words)
    door.setblocking(False)
    with pytest.raises(BlockingIOError):
        door.accept()


def test_another_door_is_not_this_one(door: socket.socket) -> None:
    early.knock(["run"])
    assert early.opened("/run/elsewhere/run.sock") is None
    ours = early.opened(early.DOOR)
    assert ours is not None
    ours.close()


def test_a_closed_door_is_met_again_by_who_can_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early, "DOOR", str(tmp_path / "nobody.sock"))
    early.knock(["run"])
    assert early.opened(early.DOOR) is None


def test_the_door_is_where_the_system_has_it() -> None:
    assert SYSTEM.runner_socket == early.DOOR
