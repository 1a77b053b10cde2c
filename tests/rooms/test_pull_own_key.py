"""A target that keeps its own key: the server has its backups, and never what opens them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.plan.model import RoomKind
from capkeep.rooms.protocol import Message
from tests.rooms.house import UIDS, wait_for
from tests.rooms.pullkit import PULLER, Pair, as_target, pair
from tests.rooms.test_pull import BACKUP, asking, failure, of, readers

PASSWORD = f"known to the target alone {os.urandom(8).hex()}"
REPOSITORIES = {"job": "repo", "borg": "borgs"}


@pytest.fixture(scope="module")
def pulled() -> Iterator[Pair]:
    with pair(kept=PASSWORD) as made:
        yield made


def init(pulled: Pair, job: str = "job") -> Message:
    """How the one step of it ended."""
    pulled.enroll(job)
    said = pulled.server.ask({"action": "init", "repositories": [REPOSITORIES[job]]})
    (ended,) = (message for message in said if message.get("event") == "step-end")
    return ended


def command(pulled: Pair, *words: str) -> subprocess.CompletedProcess[str]:
    """Root's own, on the server."""
    return subprocess.run(
        pulled.server.command(*words), capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/sbin:/usr/bin"},
    )  # fmt: skip


def files(pulled: Pair, repository: str) -> set[str]:
    place = Path(pulled.server.base, "repositories", repository)
    return {str(p) for p in place.rglob("*") if p.is_file() and "lock" not in str(p)}


@pytest.mark.parametrize("job", REPOSITORIES)
def test_the_target_makes_its_repository_and_seals_what_is_in_it(pulled: Pair, job: str) -> None:
    if job == "job":
        early = pulled.run(job)
        assert early["failure"] == "no-repository", early
    assert files(pulled, REPOSITORIES[job]) == set()
    ended = init(pulled, job)
    assert (ended["outcome"], ended["text"]) == ("complete", "the repository was made"), ended
    made = files(pulled, REPOSITORIES[job])
    again = init(pulled, job)
    assert again["text"] == "the repository was there already", again
    assert made <= files(pulled, REPOSITORIES[job])
    for _ in range(2 if job == "job" else 1):
        ended = pulled.run(job)
        assert ended["outcome"] == "complete", (ended, pulled.server.said(), pulled.target.said())


def test_the_password_is_nowhere_on_the_server(pulled: Pair) -> None:
    """Neither in a room's memory, environment or words while the engine works, nor on the disk."""
    pulled.enroll()
    victim = Path(pulled.target.base, "source/endless")
    with open(victim, "wb") as file:
        file.truncate(1 << 40)  # holes: it takes for ever, and no place
    ours = {PULLER.pw_uid, UIDS[RoomKind.VAULT], UIDS[RoomKind.RUNNER]}
    try:
        with asking(pulled, BACKUP) as said:
            assert any(message.get("event") == "progress" for message in said)
            here = [pid for uid in ours for pid in of(uid)]
            assert len(here) > 2
            assert [pid for pid in here if _knows(pid)] == []
            assert any(map(_knows, readers(pulled))), "or nobody has looked"
    finally:
        victim.unlink()
    wait_for(lambda: not readers(pulled))
    holding = [p for p in Path(pulled.server.base).rglob("*") if p.is_file() and _holds(p)]
    assert holding == []
    assert _holds(Path(pulled.target.base, "etc/secrets/repo"))


def _holds(path: Path) -> bool:
    return PASSWORD.encode() in path.read_bytes()


def _knows(pid: int) -> bool:
    """Whether a process has it anywhere in its memory, which holds its environment and words too."""
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, rights, *_, name = f"{line} -".split()[:7]
                if "r" not in rights or "w" not in rights or name == "[vvar]":
                    continue
                first, last = (int(part, 16) for part in span.split("-"))
                if _found(memory.fileno(), first, last):
                    return True
    except (OSError, ProcessLookupError):
        return False
    return False


def _found(memory: int, first: int, last: int) -> bool:
    size = 1 << 20
    for at in range(first, last, size):
        try:
            part = os.pread(memory, min(size + len(PASSWORD), last - at), at)
        except OSError:
            continue
        if PASSWORD.encode() in part:
            return True
    return False


def test_what_a_keeper_would_do_is_refused_in_one_sentence(pulled: Pair) -> None:
    for action in ("snapshots", "check"):
        (told, _) = pulled.server.ask({"action": action, "repositories": ["repo"]})
        assert told["text"] == "nobody here can open repository repo: its target keeps the password"
        assert "--password-file" in str(told["hint"])
    # Where none is named, it is the others'.
    said = pulled.server.ask({"action": "snapshots"})
    assert said[-1]["exit_code"] == 0, said
    assert all(m.get("repository") in (None, "", "mirror") for m in said), said


def test_a_password_that_opens_something_else_makes_nothing(pulled: Pair) -> None:
    secret = Path(pulled.target.base, "etc/secrets/repo")
    before = files(pulled, "repo")
    try:
        secret.write_text("another one\n")
        assert init(pulled)["failure"] == "wrong-password"
    finally:
        secret.write_text(f"{PASSWORD}\n")
    assert files(pulled, "repo") == before


def test_a_repository_that_has_lost_its_config_is_not_made_anew(pulled: Pair) -> None:
    """Or whoever took it away would have a key put beside the one that opens what is there."""
    place = Path(pulled.server.base, "repositories/repo")
    os.rename(place / "config", place / "gone")
    try:
        ended = init(pulled)
        assert ended["failure"] == "refused", ended
        assert "a key is there and no config" in str(ended["text"])
        assert len(list((place / "keys").iterdir())) == 1
        assert not (place / "config").exists()
    finally:
        os.rename(place / "gone", place / "config")


def test_root_brings_the_password_along_to_restore(pulled: Pair, tmp_path: Path) -> None:
    brought = tmp_path / "brought"
    brought.write_text(f"{PASSWORD}\n")
    target = tmp_path / "back"
    words = ("restore", "latest", "-r", "repo", "--to", str(target))
    refused = command(pulled, *words)
    assert refused.returncode == 4, refused
    assert "its target keeps the password" in refused.stderr
    done = command(pulled, *words, "--password-file", str(brought))
    assert done.returncode == 0, done
    back = Path(f"{target}{pulled.target.base}/source/file")
    assert back.read_text() == "kept\n"
    listed = command(pulled, "snapshots", "borgs", "--password-file", str(brought))
    assert (listed.returncode, listed.stdout.count("/source")) == (0, 1), listed
    checked = command(pulled, "check", "borgs", "--password-file", str(brought))
    assert checked.returncode == 0, checked
    brought.write_text("a wrong one\n")
    wrong = command(pulled, "ls", "latest", "-r", "repo", "--password-file", str(brought))
    assert wrong.returncode not in (0, 4), wrong
    useless = command(pulled, "ls", "latest", "-r", "mirror", "--password-file", str(brought))
    assert useless.returncode == 2, useless


def test_without_a_password_on_either_side_nothing_is_sealed_with_none(pulled: Pair) -> None:
    pulled.enroll()
    try:
        pulled.target.apply(as_target(pulled.target))
        wait_for(lambda: failure(pulled)[0] == "refused")
        assert "has no password to seal its backups with" in failure(pulled)[1]
    finally:
        pulled.target.apply(pulled.target.plan)
    wait_for(lambda: failure(pulled)[0] is None)
