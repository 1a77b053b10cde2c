"""Pulling from a host that has nothing but sshd: mount, sshfs, link and engine, all real."""

import contextlib
import json
import os
import signal
import socket
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
            alone = uid == UIDS[RoomKind.MOUNTER]  # no other test has it
            own = alone or far.base in words or far.base in os.readlink(entry / "cwd")
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
    far.serve(server)
    with far.having("rooms/pull/carrier", SILENCE_SECONDS=3.0 if server == FROZEN else 40.0):
        made = backup(far)
    assert (made["outcome"], made["failure"]) == ("failed", "unreachable"), made["text"]
    assert words in str(made["text"])
    assert not mounted(far)


@pytest.mark.parametrize("lie, words", [
    ("half", "does not answer"), ("unasked", "what nobody has asked"),
    ("endless", "cannot be seen any more"), ("cut-at-the-end", "closed"),
])  # fmt: skip
def test_a_target_that_lies_is_found_out_and_holds_nobody(far: Afar, lie: str, words: str) -> None:
    far.lie(lie)
    with (
        far.having("rooms/pull/carrier", SILENCE_SECONDS=3.0 if lie == "half" else 40.0),
        far.having("rooms/mounter", SSHFS_BYTES=128 << 20),
    ):
        made = backup(far)
    assert (made["outcome"], made["failure"]) == ("failed", "unreachable"), made
    assert words in str(made["text"])
    wait_for(lambda: nothing_left(far))


def test_a_target_that_keeps_its_reader_in_the_kernel_has_so_long_and_no_longer(far: Afar) -> None:
    far.lie("endless-slow")
    with far.having("rooms/mounter", SLACK_SECONDS=-86_395):
        made = backup(far)
    assert (made["outcome"], made["failure"]) == ("failed", "timeout"), made
    wait_for(lambda: nothing_left(far))


def test_a_canary_that_is_no_file_is_not_waited_for(far: Afar) -> None:
    far.serve()
    canary = far.sshd.base / "etc/capkeep/canary"
    canary.unlink()
    os.mkfifo(canary)
    try:
        made = backup(far)
    finally:
        canary.unlink()
        canary.write_text("seen\n")
        canary.chmod(0)
    assert (made["outcome"], made["failure"]) == ("failed", "weakened"), made
    assert "no plain file" in str(made["text"])


def test_an_sshfs_that_complains_without_end_still_answers(far: Afar) -> None:
    far.serve()
    loud = Path(far.reader.grant.write[0], "loud")
    words = "printf %0100000d 0 >&2\n" * 12  # more than a pipe holds
    loud.write_text(f'#!/bin/sh\n{words}exec /usr/bin/sshfs "$@"\n')
    loud.chmod(0o755)
    with far.having("rooms/mounter", SSHFS=str(loud)):
        made = backup(far)
    assert made["outcome"] == "complete", made["text"]


@pytest.mark.parametrize("whom", ["reader", "reader alone", "sshfs", "link", "runner", "nobody"])
def test_nothing_is_left_whoever_is_killed(far: Afar, whom: str) -> None:
    far.serve(FROZEN)
    (far.tree / "large").write_bytes(os.urandom(8 << 20))
    mounter = UIDS[RoomKind.MOUNTER]
    with contextlib.closing(far.server.connect()) as asking:
        asking.sendall(b'{"action":"run","jobs":["job"]}\n')
        wait_for(lambda: any("restic" in name_of(p) for p in of(mounter, far)))
        assert mounted(far)
        end(far, whom, asking)
        wait_for(lambda: nothing_left(far), 30)


@pytest.mark.parametrize("whom", ["sshfs", "link", "runner", "nobody"])
def test_nothing_is_left_while_the_reader_waits_in_the_kernel(far: Afar, whom: str) -> None:
    far.lie("endless-slow")
    mounter = UIDS[RoomKind.MOUNTER]

    def waits() -> bool:
        stacks = (read(f"/proc/{p}/wchan") for p in of(mounter, far) if name_of(p) != "sshfs")
        return any("fuse" in stack or "request_wait" in stack for stack in stacks)

    with contextlib.closing(far.server.connect()) as asking:
        asking.sendall(b'{"action":"run","jobs":["job"]}\n')
        wait_for(waits)
        end(far, whom, asking)
        wait_for(lambda: nothing_left(far), 30)


def test_no_engine_changes_what_its_room_stands_on(far: Afar) -> None:
    far.serve()
    wait_for(lambda: backup(far)["outcome"] == "complete")  # the run before may be ending still
    own = Path(far.reader.grant.write[0])
    uid = far.reader.grant.uid
    (own / "source").rmdir()
    (own / "source").symlink_to(far.tree)  # as an engine of another visit might have left it
    (own / "etc").mkdir()
    (own / "etc/ld.so.cache").write_text("not the host's")
    for path in (own / "source", own / "etc", own / "etc/ld.so.cache"):
        os.lchown(path, uid, uid)
    far.serve(FROZEN)
    (far.tree / "large").write_bytes(os.urandom(8 << 20))
    with contextlib.closing(far.server.connect()) as asking:
        asking.sendall(b'{"action":"run","jobs":["job"]}\n')
        wait_for(lambda: any("restic" in name_of(p) for p in of(uid, far)))
        engine = next(p for p in of(uid, far) if "restic" in name_of(p))
        seen = Path(f"/proc/{engine}/root/etc")
        assert (seen / "ld.so.cache").read_bytes() == Path("/etc/ld.so.cache").read_bytes()
        assert "faraway" in (seen / "passwd").read_text()
        places = {m.point: m for m in mounts.read_mounts(engine)}
        assert (places["/etc"].kind, places["/etc"].writable) == ("tmpfs", False)
        assert not places[f"{own}/source"].writable
        far.serve()
        looked = subprocess.run(
            far.server.command("target", "check"), capture_output=True, text=True, timeout=60
        )
        assert looked.returncode == 0, looked
        assert "faraway" in (seen / "passwd").read_text()
        assert not list((own / "source").iterdir())
        end(far, "nobody", asking)
    wait_for(lambda: nothing_left(far), 30)


def end(far: Afar, whom: str, asking: socket.socket) -> None:
    """Kill it; of nobody the run is asked to stop."""
    mounter = UIDS[RoomKind.MOUNTER]
    if whom == "nobody":
        asking.sendall(b'{"action":"stop"}\n')
        return
    uid = {"link": LINK.pw_uid, "runner": UIDS[RoomKind.RUNNER]}.get(whom, mounter)
    victims = sorted(p for p in of(uid, far) if (name_of(p) == "sshfs") == (whom == "sshfs"))
    victims = [p for p in victims if whom == "sshfs" or name_of(p).startswith("python")]
    assert victims
    for victim in victims[:1] if whom == "reader alone" else victims:
        with contextlib.suppress(ProcessLookupError):  # a guard goes with its room
            os.kill(victim, signal.SIGKILL)


def nothing_left(far: Afar) -> bool:
    """Whether no process is left that sees the target's files, or leads to them."""
    return not (mounted(far) or of(UIDS[RoomKind.MOUNTER], far) or of(LINK.pw_uid, far))


def read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""


def name_of(pid: int) -> str:
    return read(f"/proc/{pid}/comm").strip()
