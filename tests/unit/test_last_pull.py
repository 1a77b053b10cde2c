"""When no target is left to be pulled from."""

import time

import pytest

from capkeep.run.last_pull import Pulled, are_over

NOW = time.mktime((2026, 11, 22, 4, 0, 0, 0, 0, -1))
THREE = ("*-*-* 03:00:00",)
HOUR = 3600.0


def pulled(
    minutes_ago: float, calendar: tuple[str, ...] = THREE, *, under_way: bool = False
) -> Pulled:
    return Pulled(calendar, 900.0, NOW - minutes_ago * 60, under_way)


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
