"""Root reads the record and the logs, whose directory belongs to the runner: nothing put there may
hang root or lead it elsewhere.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.records.locks import holder, is_shared
from capkeep.records.logs import read_log
from capkeep.records.reader import RecordReader
from capkeep.records.schema import DATABASE, RecordsError
from capkeep.records.store import Recorder

SECONDS = 10


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A reader that waits for a FIFO is ended by the alarm, which fails the test."""

    def hung(*_: object) -> None:
        raise AssertionError("the reader hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plant(path: Path, what: str, target: Path) -> None:
    if what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(target)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("what", ["fifo", "link", "device"])
def test_a_log_is_a_file_or_is_not_read(tmp_path: Path, what: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"event": "secret"}\n')
    plant(tmp_path / "r1.jsonl", what, secret)
    with pytest.raises(OSError):
        list(read_log(str(tmp_path), "r1"))


def test_a_line_without_end_is_not_taken_into_memory(tmp_path: Path) -> None:
    with open(tmp_path / "r1.jsonl", "wb") as file:
        file.truncate(64 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"event": "end"}\n')
    assert [m["event"] for m in read_log(str(tmp_path), "r1")] == ["end"]


@pytest.mark.parametrize("what", ["fifo", "link", "device"])
@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_a_record_is_made_of_files_or_is_not_read(tmp_path: Path, what: str, ending: str) -> None:
    with Recorder(str(tmp_path)):
        pass
    other = tmp_path / "other"
    other.write_bytes((tmp_path / DATABASE).read_bytes())
    place = tmp_path / (DATABASE + ending)
    place.unlink(missing_ok=True)
    plant(place, what, other)
    with pytest.raises(RecordsError, match="not a regular file"):
        RecordReader(str(tmp_path))


@pytest.mark.parametrize("what", ["fifo", "link", "device"])
def test_a_lock_that_is_no_file_says_that_nobody_is_there(tmp_path: Path, what: str) -> None:
    plant(tmp_path / "job.run", what, tmp_path / "none")
    assert not is_shared(str(tmp_path / "job.run"))
    assert holder(str(tmp_path), "job") is None
