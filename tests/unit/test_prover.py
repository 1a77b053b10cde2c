"""What a prover makes of what its engine and its snapshot say."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from capkeep.engines import ENGINES
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.live import _Teller
from capkeep.rooms.protocol import MAX_LINE, Message, encode
from capkeep.rooms.prover import _Complaints
from capkeep.rooms.reload import Loaded
from capkeep.rooms.sums import key_of, latest_above
from capkeep.run.drill import _parts

WARNED = '{"type": "log_message", "levelname": "WARNING", "message": "%s"}'
MKNOD = WARNED % "d: mknod: [Errno 1] Operation not permitted: 'd'"
LABEL = '{"type": "attribute", "path": "d", "name": "security.selinux", "message": "Operation not permitted"}'
LIST = LABEL.replace("security.selinux", "system.posix_acl_access").replace(
    "Operation not permitted", "Invalid argument"
)
ZEROS = WARNED % "b: File has damaged (all-zero) chunks. Try running borg check --repair."
NO_DEVICE = '{"unrestored": "/d", "errno": 1, "detail": "operation not permitted"}'


@pytest.mark.parametrize(
    "engine, lines, code, explains",
    [
        ("restic", ["ignoring error for /d: mknod: operation not permitted", "Fatal: There were 1 errors"], 1, True),
        ("restic", ['{"message_type": "error", "error": {"message": "mknod"}, "item": "/d"}',
          '{"message_type": "exit_error", "code": 1, "message": "Fatal: There were 1 errors"}'], 1, True),
        ("restic", ["ignoring error for /d: mknod: operation not permitted"], 1, False),
        ("restic", ["ignoring error for /d: mknod: operation not permitted", "Fatal: context canceled"], 1, False),
        ("restic", ["Fatal: There were 1 errors"], 1, False),
        ("borg", [MKNOD], 1, True),
        ("borg", [MKNOD], 107, True),
        ("borg", [MKNOD], 2, False),
        ("borg", [LABEL], 1, True),
        ("borg", [LABEL, ZEROS], 1, False),
        ("borg", [LABEL, ZEROS], 107, False),
        ("borg", [MKNOD], -9, False),
        ("rdiff-backup", [NO_DEVICE], 3, True),
        ("rdiff-backup", [NO_DEVICE], 1, False),
        ("rdiff-backup", [NO_DEVICE], -9, False),
    ],
)  # fmt: skip
def test_what_nobody_can_restore_excuses_no_engine_that_gave_up(
    engine: str, lines: list[str], code: int, explains: bool
) -> None:
    complaints = _Complaints(ENGINES[engine].read_restore(), {"/d"})
    for line in lines:
        complaints.feed("stderr", line.encode())
    assert complaints.explains(code) == explains
    assert not complaints.others


def test_attributes_that_nobody_can_give_are_left_out_by_their_name() -> None:
    complaints = _Complaints(ENGINES["borg"].read_restore(), set())
    for line in (LABEL, LIST):
        complaints.feed("stderr", line.encode())
    assert complaints.unset == {"/d": ["system.posix_acl_access"]}
    assert not complaints.bare
    complaints.feed("stderr", LABEL.replace("security.selinux", "user.note").encode())
    assert [path for path, _ in complaints.others] == ["/d"]


@pytest.mark.parametrize("own_ids", [True, False])
def test_owners_that_a_room_without_ids_cannot_give_are_no_difference(own_ids: bool) -> None:
    complaints = _Complaints(ENGINES["rdiff-backup"].read_restore(), set(), own_ids=own_ids)
    line = '{"unrestored": "/d", "errno": 1, "detail": "lchown /x/d: operation not permitted"}'
    complaints.feed("stderr", line.encode())
    assert bool(complaints.others) == own_ids


@pytest.mark.parametrize("made", ["fifo", "deep", "nothing"])
def test_a_dump_that_says_nothing_of_itself_is_a_difference(tmp_path: Path, made: str) -> None:
    place = tmp_path / "manifest.json"
    if made == "fifo":
        os.mkfifo(place)  # nobody will ever write to it
    elif made == "deep":
        place.write_text("[" * 200_000)
    told: list[str] = []
    loaded = Loaded(cast("EngineRoom", None), 0.0)
    loaded.load(str(tmp_path), "/dump", lambda path, _detail: told.append(path))
    assert told == ["/dump/manifest.json"]


def test_the_directories_above_a_path_come_to_an_end() -> None:
    top = os.lstat("/").st_ctime_ns
    assert latest_above("//", "") == 0
    assert latest_above("//etc", "") == top == latest_above("/etc", "")


def test_what_is_told_of_files_never_outgrows_a_message() -> None:
    told: list[Message] = []
    teller = _Teller(cast("EngineRoom", SimpleNamespace(tell=told.append)))
    attributes = {f"user.{number}": "0" * 64 for number in range(5000)}
    for number in range(20):
        teller.take({"path": f"/file{number}", "attributes": attributes})
    teller.flush()
    assert len(told) == 20
    assert max(len(encode(message)) for message in told) < MAX_LINE
    paths = [f"/{number:03}" + "\u0444" * 1500 for number in range(400)]
    parts = list(_parts(paths))
    assert [path for part in parts for path in part] == paths
    assert max(len(encode({"paths": part})) for part in parts) < MAX_LINE


def test_whoever_knows_a_sum_cannot_try_passwords_by_the_million() -> None:
    keys = {key_of(word, nonce) for word in ("one", "two", "\udcff") for nonce in ("a", "b")}
    assert len(keys) == 6
    begun = time.process_time()
    for _ in range(3):
        key_of("password", "nonce")
    assert time.process_time() - begun > 3 * 0.005
