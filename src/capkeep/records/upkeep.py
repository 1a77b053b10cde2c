"""How repositories are kept: what their last checks and retentions found; pure but for its questions."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from capkeep.records import drills
from capkeep.records.model import Step
from capkeep.records.queries import Records
from capkeep.records.rotation import Coverage, Read, coverage

LOOK_BACK: Final = 2  # times of a rotation in which parts that were read are looked for
WHOLE: Final = frozenset(("all", "100%"))  # ways of asking a check to read all data


class Upkeep(NamedTuple):
    """What is known of a repository's upkeep."""

    repository: str
    suspect: bool  # a check or drill found errors, and none since has taken them back
    within: int  # seconds in which all data is to be read; 0: nobody asks for that
    coverage: Coverage | None
    retention: Step | None  # the last one
    held: str  # why that one removed nothing; "" if it did its work


def upkeep_of(records: Records, rotations: Mapping[str, int], now: float) -> tuple[Upkeep, ...]:
    """All repositories that were ever checked or thinned out, by name."""
    checks = {step.repository for step in records.last_steps("check")}
    retentions = {step.repository: step for step in records.last_steps("retention")}
    return tuple(
        _upkeep(records, name, rotations.get(name, 0), retentions.get(name), now)
        for name in sorted(checks | retentions.keys())
    )


def kept_and_rotating(
    records: Records, rotations: Mapping[str, int], now: float
) -> tuple[Upkeep, ...]:
    """The same with those whose data is to be read, and of which nothing was read yet."""
    known = upkeep_of(records, rotations, now)
    missing = rotations.keys() - {one.repository for one in known}
    never = (
        Upkeep(name, suspect=False, within=rotations[name], coverage=Coverage(0.0, None),
               retention=None, held="")
        for name in sorted(missing)
    )  # fmt: skip
    return (*known, *never)


def _upkeep(records: Records, name: str, within: int, retention: Step | None, now: float) -> Upkeep:
    found = None
    if within:
        found = coverage(reads_of(records.checks_read(name, now - LOOK_BACK * within)), within, now)
    held = records.detail(retention).get("held") if retention else ""
    return Upkeep(name, is_suspect(records, name), within, found, retention, str(held or ""))


def is_suspect(records: Records, repository: str) -> bool:
    """Whether a drill or a check found errors, and none since has looked at the same and found none.

    Errors in data are taken back by a check that read the same part, or all of it; a check of the
    structure alone, or of any other tenth, did not look at them. What a drill found is taken back by
    that job's next one, or by a check of all data: the job may be gone.
    """
    failed = drills.last_failed(records, repository)
    if failed is not None and WHOLE.isdisjoint(
        p for _, p in records.checks_read(repository, failed)
    ):
        return True
    last = records.last_damaged(repository)
    if last is None:
        return False
    read = str(records.detail(last).get("read_data") or "")
    passed = {part for _, part in records.checks_read(repository, last.started)}
    if not read:
        return not passed
    same = {read} if "/" in read else set[str]()
    return passed.isdisjoint(WHOLE | same)


def reads_of(checks: Iterable[tuple[float, str]]) -> tuple[Read, ...]:
    """The parts of which it is known what is in them; "10%" is any tenth."""
    found = []
    for when, part in checks:
        number, slash, count = part.partition("/")
        if part == "all":
            found.append(Read(when, 1, 1))
        elif slash and number.isdecimal() and count.isdecimal():
            found.append(Read(when, int(number), int(count)))
    return tuple(found)
