"""All data is read in the time asked for, and not much oftener."""

import random

import pytest

from capkeep.records.rotation import BYTES, DAY, Read, coverage, next_part, read_times


def follow(within: float, gap: float, jitter: float) -> tuple[float, float]:
    """Checks for three rotations: the oldest that anything got, and how often all was read in one."""
    chance = random.Random(4713)
    now, total, oldest = 0.0, 0.0, 0.0
    reads: list[Read] = []
    while now < 3 * within:
        part, parts = next_part(reads, within, now)
        reads.append(Read(now, part, parts))
        total += 1 / parts
        if now > within:
            oldest = max(oldest, *(now - (t or 0.0) for t in read_times(reads)))
        now += gap * (1 + chance.uniform(-jitter, jitter))
    return oldest, total / (now / within)


@pytest.mark.parametrize(
    "within, gap, jitter, most",
    [
        (30 * DAY, DAY, 0.0, 1.8),
        (30 * DAY, DAY, 0.3, 2.0),
        (30 * DAY, 7 * DAY, 0.2, 2.9),
        (7 * DAY, DAY, 0.0, 2.2),
        (365 * DAY, DAY, 0.5, 2.0),
        (30 * DAY, DAY / 4, 0.5, 2.0),
    ],
)
def test_all_is_read_in_time(within: float, gap: float, jitter: float, most: float) -> None:
    oldest, times = follow(within, gap, jitter)
    assert oldest <= within
    assert times <= most


def test_a_rare_check_reads_all() -> None:
    assert next_part([Read(0, 1, 1)], 30 * DAY, 40 * DAY) == (1, 1)


def test_the_first_check_does_not_read_all() -> None:
    assert next_part([], 30 * DAY, 1e9)[1] > 8


def test_coverage_says_how_much_and_how_old() -> None:
    assert coverage([], DAY, 0).share == 0
    half = coverage([Read(0, 1, 2)], DAY, 10)
    assert (half.share, half.oldest) == (0.5, None)
    whole = coverage([Read(0, 1, 2), Read(5, 2, 2)], DAY, 10)
    assert (whole.share, whole.oldest) == (1.0, 0)
    later = coverage([Read(0, 1, 2), Read(5, 2, 2)], DAY, DAY + 1)
    assert later.share == 0.5
    assert len(read_times([])) == BYTES
