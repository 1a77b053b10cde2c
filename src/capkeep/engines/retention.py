"""Which snapshots of a job stay, and why: decided here, the same for every engine; pure.

The rules mean what restic's mean (restic 0.18, doc/060_forget.rst): the newest snapshot of each of
so many hours, days, … that have one. Beyond that:

- Complete snapshots are chosen among themselves, as if there were no others, so no partial one ever
  takes a place from them.
- A partial snapshot stays where it would among all of them, and where no complete one stands for the
  same hour, day, ….
- The newest complete snapshot always stays.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from capkeep.engines.base import Snapshot
from capkeep.values import Keep

SHORT: Final = 8  # characters of an id as people see it
AHEAD_SECONDS: Final = 600  # a snapshot may be so much newer than now: other hosts, other clocks


class Held(NamedTuple):
    """A snapshot of the job as the rules see it."""

    id: str
    moment: datetime  # with the offset of the place where it was made
    tags: tuple[str, ...]
    complete: bool  # the record says so; partial ones and those it does not know are not


class Decision(NamedTuple):
    """What becomes of a snapshot, and why."""

    id: str
    time: str  # ISO 8601, as the snapshot's own clock showed it
    complete: bool
    keep: bool
    why: tuple[str, ...]  # the rules by which it stays


def held(snapshots: Iterable[Snapshot], complete: frozenset[str]) -> tuple[Held, ...]:
    """The job's snapshots, newest first. Raises ValueError for a time that is none.

    Of the snapshot that it makes restic 0.14 tells the beginning of the id alone.
    """
    found = [
        Held(
            s.id, datetime.fromisoformat(s.time), s.tags,
            s.id in complete or s.id[:SHORT] in complete,
        )
        for s in snapshots
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda h: h.moment, reverse=True))


def decide(snapshots: Sequence[Held], rules: Keep) -> tuple[Decision, ...]:
    """What becomes of each snapshot; newest first, as they come."""
    complete = [h for h in snapshots if h.complete]
    why: dict[str, list[str]] = {h.id: [] for h in snapshots}
    for name, reasons in _chosen(complete, rules).items():
        why[name] += reasons
    partial = {h.id for h in snapshots if not h.complete}
    for name, reasons in _chosen(snapshots, rules).items():
        if name in partial:
            why[name] += reasons
    if complete and not why[complete[0].id]:
        why[complete[0].id] = ["newest complete"]
    elif snapshots and not complete and not any(why.values()):
        why[snapshots[0].id] = ["newest"]
    return tuple(
        Decision(h.id, h.moment.isoformat(timespec="seconds"), h.complete, bool(why[h.id]),
                 tuple(why[h.id]))
        for h in snapshots
    )  # fmt: skip


def oldest_first(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """The same (newest first) where no snapshot can go while an older one stays."""
    found: list[Decision] = []
    for one in reversed(decisions):
        between = not one.keep and any(d.keep for d in found[-1:])
        found.append(one._replace(keep=True, why=("leads to an older one",)) if between else one)
    return tuple(reversed(found))


def newer_than_now(snapshots: Sequence[Held], now: float) -> Held | None:
    """A snapshot from the future: this clock was set back, or that one was ahead."""
    ahead = [h for h in snapshots if h.moment.timestamp() > now + AHEAD_SECONDS]
    return ahead[0] if ahead else None


_PERIODS: Final[tuple[tuple[str, str], ...]] = (
    ("hourly", "%Y-%m-%d %H"), ("daily", "%Y-%m-%d"), ("weekly", "%G week %V"), ("monthly", "%Y-%m"),
    ("yearly", "%Y"),
)  # fmt: skip


def _chosen(snapshots: Sequence[Held], rules: Keep) -> dict[str, list[str]]:
    """Which stay among these (newest first), and by which rules."""
    found: dict[str, list[str]] = {}

    def keep(chosen: Held, why: str) -> None:
        found.setdefault(chosen.id, []).append(why)

    for number, chosen in enumerate(snapshots[: rules.last], start=1):
        keep(chosen, f"last {number}")
    for rule, form in _PERIODS:
        periods = _periods(snapshots, form)
        for number, period in enumerate(list(periods)[: getattr(rules, rule)], start=1):
            keep(periods[period], f"{rule} {number}: {period}")
    if rules.within_seconds and snapshots:
        newest = snapshots[0].moment.timestamp()
        for one in snapshots:
            if one.moment.timestamp() >= newest - rules.within_seconds:
                keep(one, "within")
    for one in snapshots:
        for tag in sorted(set(one.tags) & set(rules.tags)):
            keep(one, f"tag {tag}")
    return found


def _periods(snapshots: Sequence[Held], form: str) -> dict[str, Held]:
    """Each period that has a snapshot, newest first, with the one that stands for it.

    That is its newest complete one, or, where there is none, its newest.
    """
    found: dict[str, Held] = {}
    for one in snapshots:
        period = one.moment.strftime(form)
        if period not in found or (one.complete and not found[period].complete):
            found[period] = one
    return found
