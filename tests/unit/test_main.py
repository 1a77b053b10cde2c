"""How the command line ends when its standard streams are not what they should be."""

import subprocess
import sys

import pytest

SECONDS = 30


def capkeep(redirections: str) -> tuple[int, str]:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m capkeep config example {redirections}', sys.executable],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_full_disk_below_the_output_is_told_in_one_line() -> None:
    code, said = capkeep(">/dev/full")
    assert code == 1
    assert said == "capkeep: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    assert capkeep(closed) == (0, "")


def test_an_output_that_nobody_reads_is_no_error_message() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m capkeep config example | :; exit 0', sys.executable],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.stderr == ""
