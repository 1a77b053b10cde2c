"""The files that root writes for itself."""

import os
from pathlib import Path

import pytest

from capkeep.host.files import LOG_BYTES, Owner, open_log, write_atomic

MINE = Owner(os.geteuid(), os.getegid())


def test_a_log_is_begun_anew_when_it_has_grown_large(tmp_path: Path) -> None:
    log = tmp_path / "doors.log"
    for size in (LOG_BYTES, LOG_BYTES + 1, LOG_BYTES + 1):
        log.write_bytes(b"x" * size)
        os.close(open_log(str(log)))
        assert log.stat().st_size == (size if size == LOG_BYTES else 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["doors.log", "doors.log.old"]


def test_a_log_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "doors.log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        open_log(str(tmp_path / "doors.log"))
    assert not (tmp_path / "other").exists()


def test_a_draft_that_was_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".plan.capkeep-draft").write_text("of an apply that was killed")
    (tmp_path / "plan.new").write_text("a neighbour's")
    write_atomic(str(tmp_path / "plan"), b"whole", owner=MINE, mode=0o600)
    assert (tmp_path / "plan").read_bytes() == b"whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan", "plan.new"]
