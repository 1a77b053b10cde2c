"""Schedules in the configuration: what they become in the plan, and what is told of a mistake."""

from pathlib import Path

import pytest

from capkeep.host.scheduler import stable_delay
from capkeep.plan.timetable import Timetable
from tests.unit.test_config_load import Etc


@pytest.fixture
def files(tmp_path: Path) -> Etc:
    tmp_path.chmod(0o755)
    return Etc(tmp_path.resolve())


def test_what_is_written_and_what_is_not(files: Etc) -> None:
    files.good(
        '[watch]\nevery = "5m"\n', job='schedule = ["Mon 03:00"]\nspread = "30m"\non-battery = true'
    )
    config = files.load()
    (job,) = config.jobs
    assert (job.schedule, job.spread_seconds, job.on_battery, job.on_metered) == (
        ("Mon 03:00",),
        1800,
        True,
        False,
    )
    assert (config.watch.every_seconds, config.watch.grace_seconds) == (300, 900)
    assert config.settings["jobs.j.spread"].value == "30m"
    assert config.settings["watch.grace"].value == "15m"


@pytest.mark.parametrize(
    "job,more,line,key,problem",
    [
        ('schedule = ["03:00", "25:00"]', "", 10, "jobs.j.schedule", "25 is not from 0 to 23"),
        ('schedule = ["*-02-30"]', "", 10, "jobs.j.schedule", "never comes"),
        ('schedule = ["03:00 CET"]', "", 10, "jobs.j.schedule", "is not a calendar expression"),
        ('schedule = ["03:00 Mars/Olympus"]', "", 10, "jobs.j.schedule", "is not a time zone"),
        ('spread = "25h"', "", 10, "jobs.j.spread", "longer than a day"),
        ("spread = 30", "", 10, "jobs.j.spread", "must be a duration"),
        ("", '[watch]\nevery = "2h"\n', 12, "watch.every", "2h is not from 1s to 1h"),
        ("", '[watch]\ngrace = "0s"\n', 12, "watch.grace", "0s is not from 1s to 1d"),
        ("", "[watch]\nevry = 3\n", 12, "watch.evry", "unknown key"),
    ],
)
def test_a_mistake_is_told_with_its_line(
    files: Etc, job: str, more: str, line: int, key: str, problem: str
) -> None:
    files.good(more, job=job)
    mistake = files.mistake()
    assert mistake.line == line
    assert mistake.key.startswith(key)
    assert problem in mistake.problem
    assert mistake.hint


def test_a_spread_is_the_same_every_time_and_another_for_every_job() -> None:
    def table(job: str) -> Timetable:
        return Timetable(job, "backup", ("03:00",), {}, 1800, on_battery=False, on_metered=False)

    delays = [stable_delay(table(f"job-{n}")) for n in range(50)]
    assert delays == [stable_delay(table(f"job-{n}")) for n in range(50)]
    assert all(0 <= delay <= 1800 for delay in delays)
    assert len(set(delays)) > 40
    assert stable_delay(table("x")._replace(spread_seconds=0)) == 0
