"""Which runs are missed: none unreported, none twice, and none that was made up for."""

import json
import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.host.power import is_metered, on_battery
from capkeep.plan import codec
from capkeep.records.due import LEFT_OUT, Moment, Rules, Watched, look, overdue
from capkeep.records.model import Outcome, Run

HOUR = 3600
START = 1_800_000_000 // HOUR * HOUR  # a full hour
HOURLY = ("*:00 UTC",)
RULES = Rules(600, 900)


class Host:
    """A machine that runs jobs, sleeps, is switched off and has its clock set; and its watch."""

    def __init__(self, calendar: tuple[str, ...] = HOURLY) -> None:
        self.calendar = calendar
        self.wall = float(START + 60)
        self.steady = 100.0
        self.boots = 1
        self.applied = self.wall
        self.watched: Watched | None = None
        self.runs: list[Run] = []
        self.missed: list[int] = []

    def now(self) -> Moment:
        return Moment(self.wall, self.steady, str(self.boots))

    def look(self) -> list[int]:
        self.watched, found = look(
            self.calendar, self.watched, self.applied, self.runs, self.now(), RULES
        )
        # What is remembered survives being written down.
        assert codec.loads(Watched, codec.dumps(self.watched)) == self.watched
        self.missed += found
        return list(found)

    def wait(self, seconds: float) -> None:
        """Awake, with a look every ten minutes."""
        end = self.wall + seconds
        while self.wall < end:
            self.look()
            step = min(600.0, end - self.wall)
            self.wall += step
            self.steady += step
        self.look()

    def sleep(self, seconds: float) -> None:
        self.wall += seconds

    def off(self, seconds: float) -> None:
        self.wall += seconds
        self.steady = 5.0
        self.boots += 1

    def run(
        self, seconds: float = 60, outcome: Outcome = Outcome.COMPLETE, action: str = "backup"
    ) -> None:
        self.runs.append(
            Run("r", "job", self.wall, action, self.wall + seconds, seconds, outcome)
        )  # fmt: skip


def hours(*numbers: int) -> list[int]:
    return [START + n * HOUR for n in numbers]


def test_each_missed_time_is_told_once() -> None:
    host = Host()
    host.wait(4 * HOUR + 1800)
    assert host.missed == hours(1, 2, 3, 4)


def test_nothing_is_missed_before_its_grace_is_over() -> None:
    host = Host()
    host.wait(HOUR - 60 + 890)
    assert host.missed == []
    host.wait(650)
    assert host.missed == hours(1)


def test_a_run_that_began_is_not_missed_however_it_ended() -> None:
    for outcome in (Outcome.COMPLETE, Outcome.FAILED, Outcome.PARTIAL):
        host = Host()
        host.wait(HOUR - 58)
        host.run(outcome=outcome)
        host.wait(1800)
        assert host.missed == []


def test_a_run_that_still_went_on_stands_for_the_next() -> None:
    host = Host()
    host.wait(HOUR - 58)
    host.run(seconds=1.5 * HOUR)
    host.wait(2 * HOUR + 1800)
    assert host.missed == hours(3)
    host = Host()
    host.wait(HOUR - 58)
    host.runs.append(Run("r", "job", host.wall, "backup"))  # it has not ended
    host.wait(3 * HOUR)
    assert host.missed == []


def test_what_was_left_out_on_purpose_is_not_missed() -> None:
    host = Host()
    host.wait(HOUR - 58)
    host.run(outcome=Outcome.SKIPPED, action=LEFT_OUT + "backup")
    host.wait(1800)
    assert host.missed == []


def test_what_was_due_while_the_machine_was_off_is_made_up_for_by_one_run() -> None:
    for gone in (Host.off, Host.sleep):
        host = Host()
        host.wait(1200)
        gone(host, 5 * HOUR)
        host.look()
        host.wait(120)
        host.run()
        host.wait(1800)
        assert host.missed == []


def test_what_is_not_made_up_for_is_missed_once() -> None:
    for gone in (Host.off, Host.sleep):
        host = Host()
        host.wait(1200)
        gone(host, 5 * HOUR)
        host.wait(1500)
        assert host.missed == hours(5)


def test_a_clock_that_jumps_ahead_gives_a_run_its_time() -> None:
    host = Host()
    host.wait(1200)
    host.sleep(30 * 24 * HOUR)  # for the watch a jump and a sleep are the same
    assert host.look() == []
    host.run()
    host.wait(1800)
    assert host.missed == []


def test_a_clock_that_was_wrong_hides_nothing() -> None:
    host = Host()
    host.wait(1200)
    host.sleep(365 * 24 * HOUR)
    host.run()
    host.wait(1800)
    host.wall -= 365 * 24 * HOUR
    host.wait(2 * HOUR)
    assert host.missed, "the run of next year does not stand for those of today"
    assert len(host.missed) == len(set(host.missed))


def test_another_schedule_counts_from_when_it_was_applied() -> None:
    host = Host()
    host.wait(HOUR + 600)
    host.calendar = ("*:30 UTC",)
    host.applied = host.wall
    host.wait(2 * HOUR)
    # The time of the schedule before, which nobody kept, is not forgotten.
    assert host.missed == [*hours(1), START + 5400, START + 9000]


def test_what_is_due_while_the_timers_start_is_not_missed() -> None:
    for early, missed in ((3, []), (60, hours(1)[:1])):
        host = Host()
        host.wall = host.applied = hours(1)[0] - float(early)
        host.wall += early + 2
        host.steady += early + 2
        host.wait(HOUR - 600)
        assert host.missed == missed


def test_a_restart_of_the_watch_forgets_nothing_that_matters() -> None:
    host = Host()
    host.wait(HOUR + 300)
    host.watched = None
    host.wait(1800)
    assert host.missed == hours(1)


def test_a_host_without_a_watch_is_seen_through() -> None:
    host = Host()

    def unwatched() -> int | None:
        return overdue(host.calendar, host.watched, host.applied, host.runs, host.now(), RULES)

    assert unwatched() is None
    host.wall, host.steady = host.wall + 2 * HOUR, host.steady + 2 * HOUR
    assert unwatched() == hours(1)[0], "there has never been one"
    host.run()
    assert unwatched() is None
    host.wait(HOUR)
    assert unwatched() is None
    host.wall, host.steady = host.wall + 3 * HOUR, host.steady + 3 * HOUR
    assert unwatched() == hours(5)[0], "it looked once, and not for hours"
    host.off(8 * HOUR)
    assert unwatched() is None, "it will look soon"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["wait", "off", "sleep", "run", "fail"]), st.integers(1, 5 * HOUR)
        ),
        max_size=12,
    )
)
def test_whatever_happens_no_time_is_told_twice_and_none_is_lost(
    life: list[tuple[str, int]],
) -> None:
    host = Host()
    for what, seconds in life:
        if what == "run":
            host.run()
        elif what == "fail":
            host.run(outcome=Outcome.FAILED)
        else:
            getattr(host, what)(seconds)
    host.wait(2 * HOUR)
    assert len(host.missed) == len(set(host.missed))
    assert all(due % HOUR == 0 for due in host.missed)
    # Awake for so long, and nobody ran: the last time that is over is settled one way or the other.
    last = int(host.wall - 1600) // HOUR * HOUR
    covered = any(r.started >= last - 1 or (r.ended or 0) >= last for r in host.runs)
    assert covered or last in host.missed


def test_a_machine_on_its_battery_is_known(tmp_path: Path) -> None:
    def supply(name: str, **files: str) -> None:
        os.makedirs(tmp_path / name, exist_ok=True)
        for key, text in files.items():
            (tmp_path / name / key).write_text(text + "\n")

    assert not on_battery(str(tmp_path / "nothing"))
    supply("mouse", type="Battery", scope="Device", status="Discharging")
    assert not on_battery(str(tmp_path))
    supply("BAT0", type="Battery", status="Discharging")
    assert on_battery(str(tmp_path))
    supply("AC", type="Mains", online="1")
    assert not on_battery(str(tmp_path))
    supply("AC", type="Mains", online="0")
    assert on_battery(str(tmp_path))
    supply("BAT0", type="Battery", status="Full")
    assert not on_battery(str(tmp_path))


def test_what_networkmanager_says_is_understood() -> None:
    said = {n: is_metered(json.dumps({"type": "u", "data": n})) for n in range(5)}
    assert [n for n, metered in said.items() if metered] == [1, 3]
    assert not is_metered("Failed to get property")
