"""Pulling from a host that has nothing but sshd: mount, sshfs, link and engine, all real."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.kernel import fuse, mounts
from capkeep.plan.model import RoomKind
from capkeep.rooms.protocol import Message
from tests.rooms.house import UIDS, wait_for
from tests.rooms.sftpkit import GROUP_THERE, LINK, OWNER, SERVER, Afar, afar


@pytest.fixture(scope="module")
def far() -> Iterator[Afar]:
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


def mounted(far: Afar) -> set[int]:
    """Processes that see a mount of the target's files."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            seen = mounts.read_mounts(int(entry.name))
            if any(m.kind == fuse.KIND and m.point.startswith(far.base) for m in seen):
                found.add(int(entry.name))
    return found


def of(uid: int, far: Afar) -> set[int]:
    """The processes of a user that are this installation's, those among them that nobody may look into."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            lines = (entry / "status").read_text().splitlines()
            ids = next(line.split()[1] for line in lines if line.startswith("Uid:"))
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            own = uid != LINK.pw_uid or far.base in words or far.base in os.readlink(entry / "cwd")
            if int(ids) == uid and own and "State:\tZ (zombie)" not in lines:
                found.add(int(entry.name))
    return found


def test_it_is_kept_as_it_is_there_and_the_record_says_what_cannot_be(far: Afar) -> None:
    made = backup(far)
    assert made["outcome"] == "complete", made["text"]
    said = [m for m in made["said"] if m.get("event") == "warning"]
    assert any("extended attributes" in m["text"] for m in said)
    found = nodes(far, made["snapshot"])
    secret = found[f"{far.tree}/secret"]
    assert (secret["uid"], secret["gid"], secret["size"]) == (OWNER, GROUP_THERE, 5)
    assert found[f"{far.tree}/absolute"]["type"] == "symlink"
    assert not mounted(far)
    again = backup(far)
    assert again["totals"]["files_unmodified"] == 3, again["totals"]


def test_borg_keeps_it_with_the_names_that_the_target_has() -> None:
    with afar("borgs") as far:
        made = backup(far)
        assert made["outcome"] == "complete", made["text"]
        repository = next(r for r in far.server.plan.repositories if r.engine == "borg")
        env = {"BORG_PASSPHRASE": "a password", "BORG_BASE_DIR": f"{far.base}/looked",
               "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes", "PATH": "/usr/bin:/bin"}  # fmt: skip

        def borg(*words: str) -> list[str]:
            argv = [repository.program, "list", "--bypass-lock", *words]
            said = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
            return said.stdout.splitlines()

        (name,) = borg("--format={archive}{NL}", repository.location)
        said = borg("--format={user} {group} {path}{NL}", f"{repository.location}::{name}")
        assert f"faraway farfolk {str(far.tree).lstrip('/')}/secret" in said


PART = f"{SERVER} -R -e -d / | {{ dd bs=64k count=5000000 iflag=count_bytes status=none"
CUT = PART + "; kill -9 0; }"
FROZEN = PART + "; sleep 600; }"


@pytest.mark.parametrize("server, words", [(CUT, "closed"), (FROZEN, "does not answer")])
def test_a_connection_that_is_lost_makes_no_snapshot_that_counts(
    far: Afar, server: str, words: str
) -> None:
    (far.tree / "large").write_bytes(os.urandom(8 << 20))
    patience(far, 3 if server == FROZEN else 40)
    far.serve(server)
    made = backup(far)
    assert (made["outcome"], made["failure"]) == ("failed", "unreachable"), made["text"]
    assert words in str(made["text"])
    assert not mounted(far)
    patience(far, 40)


def patience(far: Afar, seconds: int) -> None:
    """How long its link waits."""
    path = Path(far.server.package, "capkeep/rooms/pull/carrier.py")
    text = re.sub(r"(SILENCE_SECONDS: Final) = .*", rf"\1 = {seconds}.0", path.read_text())
    path.write_text(text)


@pytest.mark.parametrize("whom", ["reader", "sshfs", "link"])
def test_nothing_is_left_whoever_is_killed(far: Afar, whom: str) -> None:
    far.serve(FROZEN)
    (far.tree / "large").write_bytes(os.urandom(8 << 20))
    mounter, link = UIDS[RoomKind.MOUNTER], LINK.pw_uid
    with contextlib.closing(far.server.connect()) as asking:
        asking.sendall(b'{"action":"run","jobs":["job"]}\n')
        wait_for(lambda: any("restic" in name_of(p) for p in of(mounter, far)))
        assert mounted(far)
        if whom == "sshfs":
            victims = [p for p in of(mounter, far) if name_of(p) == "sshfs"]
        else:
            owned = of(mounter if whom == "reader" else link, far)
            victims = [p for p in owned if name_of(p).startswith("python")]
        assert victims
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        wait_for(lambda: not mounted(far) and not of(mounter, far) and not of(link, far), 60)


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
