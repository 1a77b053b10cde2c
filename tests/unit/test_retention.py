"""Which snapshots stay: the rules, and that partial ones never push complete ones out."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.engines.base import Snapshot
from capkeep.engines.retention import Held, decide, held, newer_than_now
from capkeep.values import Keep

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def made(*ages: float, complete: bool = True, tags: tuple[str, ...] = ()) -> list[Held]:
    """Snapshots that are so many days old; named by their age."""
    mark = "c" if complete else "p"
    return [Held(f"{mark}{age}", NOON - timedelta(days=age), tags, complete) for age in ages]


def newest_first(*groups: list[Held]) -> list[Held]:
    return sorted((h for g in groups for h in g), key=lambda h: h.moment, reverse=True)


def stay(snapshots: list[Held], rules: Keep) -> list[str]:
    return [d.id for d in decide(snapshots, rules) if d.keep]


def test_each_rule_keeps_the_newest_of_its_periods() -> None:
    every_6_hours = made(0, 0.25, 0.5, 1, 1.25, 2, 2.5, 40, 400)
    assert stay(every_6_hours, Keep(last=2)) == ["c0", "c0.25"]
    assert stay(every_6_hours, Keep(daily=3)) == ["c0", "c1", "c2"]
    assert stay(every_6_hours, Keep(monthly=3)) == ["c0", "c40", "c400"]
    assert stay(every_6_hours, Keep(yearly=5)) == ["c0", "c400"]
    assert stay(every_6_hours, Keep(weekly=1, last=1)) == ["c0"]
    assert stay(every_6_hours, Keep(within_seconds=86400)) == ["c0", "c0.25", "c0.5", "c1"]


def test_why_says_every_rule() -> None:
    (first, second, *_) = decide(made(0, 1, 2), Keep(last=2, daily=1))
    assert first.why == ("last 1", "daily 1: 2026-11-20")
    assert second.why == ("last 2",)


def test_partial_snapshots_push_no_complete_one_out() -> None:
    snapshots = newest_first(made(3, 4, 5, 6), made(0, 1, 2, complete=False))
    kept = stay(snapshots, Keep(daily=3))
    assert kept == ["p0", "p1", "p2", "c3", "c4", "c5"]


def test_a_partial_one_does_not_stand_for_a_day_that_has_a_complete_one() -> None:
    snapshots = newest_first(made(0.3, 1), made(0, 0.2, complete=False))
    assert stay(snapshots, Keep(daily=2)) == ["c0.3", "c1"]


def test_old_partial_ones_go_as_the_rules_say() -> None:
    snapshots = newest_first(made(0, 1, 2), made(3, 4, complete=False))
    assert stay(snapshots, Keep(daily=3)) == ["c0", "c1", "c2"]


def test_the_newest_complete_one_always_stays() -> None:
    snapshots = newest_first(made(5), made(0, 1, complete=False, tags=("keep",)))
    assert "c5" in stay(snapshots, Keep(tags=("keep",)))
    assert stay(made(0, 1), Keep(tags=("nothing-has-it",))) == ["c0"]
    assert stay(made(0, 1, complete=False), Keep(tags=("nothing-has-it",))) == ["p0"]


def test_tags_keep() -> None:
    snapshots = newest_first(made(0, 1), made(9, tags=("before-upgrade",)))
    assert stay(snapshots, Keep(last=1, tags=("before-upgrade",))) == ["c0", "c9"]


def test_ids_may_be_known_by_their_beginning() -> None:
    one = Snapshot("ab" * 32, "2026-11-20T12:00:00.123456789+01:00", "h", "u", (), ())
    assert held([one], frozenset(["ab" * 4]))[0].complete
    assert held([one], frozenset(["ab" * 32]))[0].complete
    assert not held([one], frozenset(["cd" * 4]))[0].complete


def test_a_snapshot_from_the_future_is_found() -> None:
    snapshots = made(0, 1)
    assert newer_than_now(snapshots, NOON.timestamp() - 3600) == snapshots[0]
    assert newer_than_now(snapshots, NOON.timestamp() - 60) is None
    assert newer_than_now([], 0) is None


COUNTS = st.integers(0, 5)
RULES = st.builds(
    Keep, last=COUNTS, hourly=COUNTS, daily=COUNTS, weekly=COUNTS, monthly=COUNTS,
    yearly=COUNTS, within_seconds=st.sampled_from((0, 7200, 864000)),
)  # fmt: skip
AGES = st.lists(st.floats(0, 900), unique=True, max_size=30)


@settings(deadline=None)
@given(AGES, AGES, RULES)
def test_whatever_is_partial_what_is_complete_stays_as_if_it_were_not_there(
    complete: list[float], partial: list[float], rules: Keep
) -> None:
    alone = stay(newest_first(made(*complete)), rules)
    both = stay(newest_first(made(*complete), made(*partial, complete=False)), rules)
    assert [name for name in both if name.startswith("c")] == alone
    assert not complete or alone
