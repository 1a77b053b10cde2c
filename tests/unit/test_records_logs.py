"""Every message is logged as it came; the size is bounded, and so is the number."""

import os
import stat
import time
from pathlib import Path

from capkeep.records.logs import LogWriter, prune, read_log


def test_messages_come_back_with_their_time(tmp_path: Path) -> None:
    path = "/a\udcff\x1b"
    with LogWriter(str(tmp_path), "r1") as log:
        log.write({"event": "unreadable", "path": path})
        log.write({"event": "progress", "files": 1})
    (line,) = read_log(str(tmp_path), "r1")
    assert line["path"] == path
    assert abs(float(str(line["time"])) - time.time()) < 5
    assert stat.S_IMODE((tmp_path / "r1.jsonl").stat().st_mode) == 0o640


def test_a_torn_line_is_skipped(tmp_path: Path) -> None:
    with LogWriter(str(tmp_path), "r1") as log:
        log.write({"event": "a"})
    with open(tmp_path / "r1.jsonl", "ab") as file:
        file.write(b'[]\n{"event":"b"')
    assert [m["event"] for m in read_log(str(tmp_path), "r1")] == ["a"]


def test_a_full_log_says_so_once_and_still_tells_the_end(tmp_path: Path) -> None:
    with LogWriter(str(tmp_path), "r1", limit=1000) as log:
        for _ in range(100):
            log.write({"event": "unreadable", "path": "x" * 50})
        log.write({"event": "end", "outcome": "partial"})
    events = [m["event"] for m in read_log(str(tmp_path), "r1")]
    assert events[-2:] == ["log-limit", "end"]
    assert events.count("log-limit") == 1
    assert (tmp_path / "r1.jsonl").stat().st_size < 1500


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    with LogWriter(str(tmp_path / "missing"), "r1") as log:
        assert "No such file" in log.error
        log.write({"event": "a"})
    (tmp_path / "r2.jsonl").symlink_to("/dev/full")
    with LogWriter(str(tmp_path), "r2") as log:
        assert log.error


def test_a_full_disk_gives_up_the_log_alone(tmp_path: Path) -> None:
    with LogWriter(str(tmp_path), "r1") as log:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, log._fd)
        os.close(full)
        log.write({"event": "a"})
        log.write({"event": "b"})
        assert "No space left" in log.error


def test_old_logs_are_removed_by_number_and_by_size(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"2026010{number}.jsonl").write_bytes(b"x" * 100)
    (tmp_path / "doors.log").write_bytes(b"x" * 10_000)
    prune(str(tmp_path), keep_logs=4)
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == [
        f"2026010{n}.jsonl" for n in (2, 3, 4, 5)
    ]
    prune(str(tmp_path), keep_bytes=250)
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == ["20260104.jsonl", "20260105.jsonl"]
    prune(str(tmp_path), keep_bytes=1)
    assert [p.name for p in tmp_path.glob("*.jsonl")] == ["20260105.jsonl"]
    assert (tmp_path / "doors.log").exists()
