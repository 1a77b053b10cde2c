"""Calendar expressions: the same times as systemd itself computes."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from capkeep import calendars
from capkeep.values import ValueMistake

ANALYZE = shutil.which("systemd-analyze")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
LINE = re.compile(r"(?:Next elapse|\(in UTC\)|Iter\w*\.? #\d+): \w+ (\S+ \S+) UTC")
BERLIN_SPRING, BERLIN_AUTUMN = 1774746000, 1792890000  # 2026-03-29, 2026-10-25, 01:00 UTC


@pytest.fixture(autouse=True)
def own_zone() -> Iterator[None]:
    """Every test may move to another zone."""
    before = os.environ.get("TZ")
    yield
    _move(before)


def _move(zone: str | None) -> None:
    os.environ.pop("TZ", None)
    if zone is not None:
        os.environ["TZ"] = zone
    time.tzset()


class AtFaultError(Exception):
    """systemd says that it is: 252 finds no time for "Sat,Sun *-1/5-02 *:*" in Berlin."""


def systemds(expression: str, base: int, zone: str) -> list[int] | None:
    """The next times as systemd says them; None for what it does not take."""
    assert ANALYZE, "systemd-analyze is needed: apt-get install systemd"
    done = subprocess.run(
        [ANALYZE, "calendar", "--iterations=4", f"--base-time=@{base}", expression],
        capture_output=True, text=True, timeout=30, env={"TZ": zone, "LANG": "C"},
    )  # fmt: skip
    if "Infinite loop" in done.stderr:
        raise AtFaultError
    if done.returncode:
        return None
    found = []
    for moment in LINE.findall(done.stdout):
        found.append(int(datetime.fromisoformat(f"{moment}+00:00").timestamp()))
    return found


def ours(expression: str, base: int, zone: str) -> list[int] | None:
    _move(zone)
    try:
        return list(calendars.upcoming((calendars.parse(expression),), base, 4))
    except ValueMistake:
        return None


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    # Of a range with one second only systemd itself thinks that it leads too far.
    ranges = (
        st.tuples(number, number)
        .map(lambda t: f"{min(t)}..{max(t)}")
        .filter(lambda text: len(set(text.split(".."))) == 2)
    )
    steps = st.tuples(number, st.integers(1, 7)).map(lambda t: f"{t[0]}/{t[1]}")
    both = st.tuples(ranges, st.integers(1, 5)).map(lambda t: f"{t[0]}/{t[1]}")
    item = st.one_of(number.map("{:02}".format), ranges, steps, both)
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


WEEKDAYS = st.sampled_from(["", "", "Mon ", "Sat,Sun ", "Mon..Fri ", "tue-thu, ", "Wed,Fri..Sun "])
YEARS = st.sampled_from(["*-", "*-", "", "2026..2028-", "27-", "2026/2-"])
DATES = st.one_of(
    st.just(""),
    st.builds("{}{}-{} ".format, YEARS, numbers(1, 12), numbers(1, 31)),
    # systemd 252 takes fewer days the longer a list of days before the end of a month is.
    st.builds("{}{}~{} ".format, YEARS, numbers(1, 12), numbers(1, 19)),
)
CLOCKS = st.builds(
    "{}:{}{}".format,
    numbers(0, 23),
    numbers(0, 59),
    st.one_of(st.just(""), numbers(0, 59).map(":{}".format)),
)
IN_ZONE = st.sampled_from(["", "", "", " UTC", " America/New_York", " Asia/Kolkata"])
EXPRESSIONS = st.builds("{}{}{}{}".format, WEEKDAYS, DATES, CLOCKS, IN_ZONE)
BASES = st.one_of(
    st.integers(1767225600, 1798761600),
    st.integers(BERLIN_SPRING - 90000, BERLIN_SPRING + 3600),
    st.integers(BERLIN_AUTUMN - 90000, BERLIN_AUTUMN - 3601),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(EXPRESSIONS, BASES, st.sampled_from(ZONES))
def test_the_times_are_systemds(expression: str, base: int, zone: str) -> None:
    try:
        expected = systemds(expression, base, zone)
    except AtFaultError:
        reject()
    assert sound(expression, base, ours(expression, base, zone)) == sound(
        expression, base, expected
    )


def sound(expression: str, base: int, times: list[int] | None) -> list[int] | None:
    """Those of which systemd is to be believed.

    At the turn of a year 252 passes over the first of an open step: "*-*-1/7" has no first of January,
    and "*-*-1,8,15,22,29" has one.
    """
    if times is None or "/" not in expression:
        return times
    turn = datetime(datetime.fromtimestamp(base, UTC).year + 1, 1, 1, tzinfo=UTC).timestamp()
    return [t for t in times if t < turn - 86400 and base < turn - 86400]


@pytest.mark.parametrize(
    "expression",
    [
        "minutely", "hourly", "daily", "Weekly", "monthly", "quarterly", "semiannually", "yearly",
        "biannually", "annually", "Mon", "Mon,", "Sunday", "mon 3:0", "03:00", "3:5:7", "*:0/15",
        "*-*-01", "05-01", "26-05-01", "2027-02-28 12:00", "*-*~1", "*-*~7/1", "*-02~1..3 02:00",
        "*-02-29", "Mon *-02-29", "1..1:00", "8..9/5:00", "0/5:0", "Mon..Wed,Sat *-01..06-1,15 4:30:10",
        "2030-01-01 00:00:00 Europe/Berlin", "02:30", "*:30", "00:00 utc",
    ],
)  # fmt: skip
def test_what_people_write_is_taken(expression: str) -> None:
    found = ours(expression, BERLIN_SPRING - 50000, "Europe/Berlin")
    assert found
    assert found == systemds(expression, BERLIN_SPRING - 50000, "Europe/Berlin")


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "never", "25:00", "12:60", "*/2:00", "Sat..Mon 03:00", "*-*~3..1", "*-13-01", "*-*-32",
        "*-*~29", "03:00 03:00", "0/0:00", "22/5:00", "*-*-*-*", "1:2:3:4", "Mon Tue 03:00", "a", "-", ":",
        "*-*~-1", "03:00 Europe/Nowhere", "3..1:00", "1,:00", "--", "*-*-*T03:00", "~1", "2200-01-01",
    ],
)  # fmt: skip
def test_what_systemd_does_not_take_is_a_mistake(expression: str) -> None:
    with pytest.raises(ValueMistake) as mistake:
        calendars.parse(expression)
    assert mistake.value.hint
    assert systemds(expression, BERLIN_SPRING, "Europe/Berlin") is None


@pytest.mark.parametrize(
    "expression", ["03:00 CET", "*:*:0/0.5", "@1774746000", "03:00\n", "03:00é"]
)
def test_what_no_run_needs_is_a_mistake(expression: str) -> None:
    with pytest.raises(ValueMistake):
        calendars.parse(expression)


def test_a_time_that_the_clocks_skip_does_not_come_and_one_that_they_repeat_comes_once() -> None:
    _move("Europe/Berlin")
    nightly = (calendars.parse("02:30"),)
    spring = calendars.between(nightly, BERLIN_SPRING - 7200, BERLIN_SPRING + 40000)
    autumn = calendars.between(nightly, BERLIN_AUTUMN - 7200, BERLIN_AUTUMN + 40000)
    assert spring == ()
    assert autumn == (BERLIN_AUTUMN - 1800,)
    # However late in that night one asks, it is the first of the two.
    assert calendars.before(nightly[0], BERLIN_AUTUMN + 5000) == BERLIN_AUTUMN - 1800
    assert calendars.after(nightly[0], BERLIN_AUTUMN + 600) == BERLIN_AUTUMN + 86400 + 1800


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(EXPRESSIONS, BASES, st.sampled_from(ZONES))
def test_before_and_after_agree(expression: str, base: int, zone: str) -> None:
    _move(zone)
    try:
        calendar = calendars.parse(expression)
    except ValueMistake:
        return
    following = calendars.after(calendar, base)
    if following is not None:
        assert following > base
        assert calendars.before(calendar, following) == following
        assert calendars.before(calendar, following - 0.5) == calendars.before(calendar, base)
        assert calendars.after(calendar, following - 1) == following


def test_what_never_comes_is_found_out_soon() -> None:
    assert calendars.after(calendars.parse("*-02-30"), 0) is None
    assert calendars.before(calendars.parse("*-02-30"), 2e9) is None
