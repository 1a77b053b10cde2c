"""When no target is left to be pulled from."""

import time

import pytest

from capkeep.run.last_pull import Pulled, are_over, were_forgotten

NOW = time.mktime((2026, 11, 22, 4, 0, 0, 0, 0, -1))
THREE = ("*-*-* 03:00:00",)
HOUR = 3600.0


def pulled(
    minutes_ago: float, calendar: tuple[str, ...] = THREE, *, under_way: bool = False
) -> Pulled:
    begun = NOW - minutes_ago * 60
    return Pulled(calendar, 900.0, begun, begun + 30, missed=False, under_way=under_way)


@pytest.mark.parametrize(
    "jobs, over",
    [
        ([pulled(60), pulled(59)], True),
        ([pulled(60), pulled(59, under_way=True)], False),
        ([pulled(60), pulled(25 * 60)], True),  # due an hour ago, and given up
        ([pulled(60), pulled(25 * 60)._replace(patience=2 * HOUR)], False),  # it may still come
        ([pulled(60), pulled(25 * 60, ())], True),  # it has no times
        ([pulled(13 * 60), pulled(14 * 60, ())], False),  # that was before the last time
    ],
)
def test_it_is_over_when_none_is_under_way_or_about_to_come(jobs: list[Pulled], over: bool) -> None:
    assert are_over(jobs, NOW - 12 * HOUR, NOW) is over


def test_it_is_over_once() -> None:
    jobs = [pulled(60), pulled(59)]
    assert are_over(jobs, 0.0, NOW)
    assert not are_over(jobs, NOW - 1, NOW)
    assert are_over([*jobs, pulled(0)], NOW - 1, NOW)


def test_who_looks_by_the_way_does_not_meet_a_pause_between_two_pulls() -> None:
    jobs = [pulled(60), pulled(1)]  # which ended 30 seconds ago
    assert are_over(jobs, 0.0, NOW)
    assert not were_forgotten(jobs, 0.0, NOW)
    assert were_forgotten(jobs, 0.0, NOW + 31)


def test_nobody_waits_for_the_end_of_a_pull_that_was_killed() -> None:
    assert were_forgotten([pulled(60), pulled(1)._replace(ended=0.0)], 0.0, NOW)


def test_nothing_comes_after_pulls_that_did_not_come() -> None:
    jobs = [pulled(60)._replace(missed=True), pulled(25 * 60)]
    assert not are_over(jobs, NOW - 12 * HOUR, NOW)
    assert are_over([*jobs, pulled(50, ())], NOW - 12 * HOUR, NOW)
