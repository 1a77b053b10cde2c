"""Pulling from a host that has nothing but sshd: mount, sshfs, link and engine, all real."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.kernel import mounts
from capkeep.plan.model import RoomKind
from capkeep.rooms.protocol import Message
from tests.rooms.house import UIDS, wait_for
from tests.rooms.sftpkit import GROUP_THERE, LINK, OWNER, SERVER, Afar, afar


@pytest.fixture(scope="module", params=["repo", "borgs"])
def far(request: pytest.FixtureRequest) -> Iterator[Afar]:
    with afar(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def restic() -> Iterator[Afar]:
    with afar() as made:
        yield made


def backup(far: Afar) -> Message:
    """How it ended, with all that was said."""
    return ended(far, far.server.ask({"action": "run", "jobs": ["job"]}))


def ended(far: Afar, said: list[Message]) -> Message:
    ends = [m for m in said if m.get("event") == "step-end" and m["kind"] == "backup"]
    return {**(ends[0] if ends else said[-1]), "said": said}


def nodes(far: Afar, snapshot: str) -> dict[str, dict[str, object]]:
    """All of a restic snapshot, by path."""
    plan = far.server.plan
    repository = next(r for r in plan.repositories if r.engine == "restic")
    env = {
        "RESTIC_PASSWORD": "a password", "PATH": "/usr/bin:/bin", "HOME": far.base,
        "RESTIC_REPOSITORY": repository.location, "RESTIC_CACHE_DIR": f"{far.base}/looked",
    }  # fmt: skip
    argv = [repository.program, "--no-lock", "ls", "--json", snapshot]
    lines = subprocess.run(argv, env=env, check=True, capture_output=True).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    return {node["path"]: node for node in found if node["struct_type"] == "node"}


def mounted() -> set[int]:
    """Processes that see a mount of a target's files."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if any(m.source == "far" for m in mounts.read_mounts(int(entry.name))):
                found.add(int(entry.name))
    return found


def of(uid: int) -> set[int]:
    """The processes of a user, those among them that nobody may look into."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            lines = (entry / "status").read_text().splitlines()
            ids = next(line.split()[1] for line in lines if line.startswith("Uid:"))
            if int(ids) == uid and "State:\tZ (zombie)" not in lines:
                found.add(int(entry.name))
    return found


def test_all_of_it_is_kept_and_the_record_says_what_cannot_be(far: Afar) -> None:
    made = backup(far)
    assert made["outcome"] == "complete", made
    said = [m for m in made["said"] if m.get("event") == "warning"]
    assert any("extended attributes" in m["text"] for m in said)
    again = backup(far)
    assert again["outcome"] == "complete", again
    if again["engine"].startswith("restic"):
        assert again["totals"]["files_unmodified"] == 2, again["totals"]  # the canary is another


def test_owners_and_links_are_the_targets_own(restic: Afar) -> None:
    restic.serve()
    made = backup(restic)
    found = nodes(restic, made["snapshot"])
    secret = found[f"{restic.tree}/secret"]
    assert (secret["uid"], secret["gid"]) == (OWNER, GROUP_THERE)
    assert secret.get("user", "faraway") == "faraway"  # newer ones list the names too
    assert found[f"{restic.tree}/absolute"]["type"] == "symlink"
    assert not mounted()


PART = f"{SERVER} -R -e -d / | {{ dd bs=64k count=5000000 iflag=count_bytes status=none"
CUT = PART + "; kill -9 0; }"
FROZEN = PART + "; sleep 600; }"


@pytest.mark.parametrize(("server", "words"), [(CUT, "closed"), (FROZEN, "does not answer")])
def test_a_connection_that_is_lost_makes_no_snapshot_that_counts(
    restic: Afar, server: str, words: str
) -> None:
    (restic.tree / "large").write_bytes(os.urandom(8 << 20))
    impatient(restic)
    restic.serve(server)
    made = backup(restic)
    assert (made["outcome"], made["failure"]) == ("failed", "unreachable"), made
    assert words in str(made["text"])
    assert not mounted()
    restic.serve()
    assert backup(restic)["outcome"] == "complete"


def impatient(far: Afar) -> None:
    """Its link waits for three seconds."""
    path = Path(far.server.package, "capkeep/rooms/pull/carrier.py")
    path.write_text(path.read_text().replace("SECONDS: Final = 40.0", "SECONDS: Final = 3.0"))


@pytest.mark.parametrize("whom", ["reader", "sshfs", "link"])
def test_nothing_is_left_whoever_is_killed(restic: Afar, whom: str) -> None:
    restic.serve(FROZEN)
    (restic.tree / "large").write_bytes(os.urandom(8 << 20))
    mounter, link = UIDS[RoomKind.MOUNTER], LINK.pw_uid
    with contextlib.closing(restic.server.connect()) as asking:
        asking.sendall(b'{"action":"run","jobs":["job"]}\n')
        wait_for(lambda: any("restic" in name_of(p) for p in of(mounter)))
        assert mounted()
        if whom == "sshfs":
            victims = [p for p in of(mounter) if name_of(p) == "sshfs"]
        else:
            owned = of(mounter if whom == "reader" else link)
            victims = [p for p in owned if name_of(p).startswith("python")]
        assert victims
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        wait_for(lambda: not mounted() and not of(mounter) and not of(link))


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
