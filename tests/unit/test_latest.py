"""What "latest" means where several hosts, jobs and dumps share a repository."""

from collections.abc import Iterator

import pytest

from capkeep.engines.base import Snapshot
from capkeep.errors import Failure, StepError
from capkeep.plan.model import Job
from capkeep.rooms.latest import latest

HERE = (Job("system", ("repo",), ("/etc",), host="here"), Job("home", ("repo",), (), host="here"))
NEW = (Job("recovery", ("repo",), ("/etc",), host="new"),)
HOURS: Iterator[int] = iter(range(10, 24))


def made(host: str, tag: str, *paths: str) -> Snapshot:
    """Each later than the one before."""
    hour = next(HOURS)
    return Snapshot(f"{hour:064x}", f"2026-11-20T{hour}:00:00Z", host, "", paths, (tag,))


SYSTEM = made("here", "capkeep:system", "/etc")
HOME = made("here", "capkeep:home", "/home")
OTHERS = made("there", "capkeep:system", "/etc")
STREAM = made("here", "capkeep:system:wiki", "/wiki.sql")
FOREIGN = made("here", "by hand", "/etc")
ALL = (SYSTEM, HOME, OTHERS, STREAM, FOREIGN)


def test_it_is_of_this_hosts_own_jobs() -> None:
    assert latest(ALL, HERE) is HOME
    assert latest(ALL, HERE[:1]) is SYSTEM


def test_it_is_of_the_job_that_keeps_the_paths() -> None:
    assert latest(ALL, HERE, ["/etc/fstab"]) is SYSTEM
    assert latest(ALL, HERE, ["/home"]) is HOME
    assert latest(ALL, HERE, ["/etc", "/etcetera"]) is HOME  # no job does
    nobody_notes = tuple(s._replace(paths=()) for s in ALL)
    assert latest(nobody_notes, HERE, ["/etc"]).id == HOME.id


def test_on_a_new_machine_it_is_of_the_only_one_there_was() -> None:
    before = SYSTEM._replace(id="0" * 64)
    assert latest((before, SYSTEM, STREAM), NEW) is SYSTEM
    assert latest((STREAM,), NEW) is STREAM
    assert latest((FOREIGN,), NEW) is FOREIGN


def test_where_that_is_not_plain_it_is_asked_for() -> None:
    with pytest.raises(StepError) as refused:
        latest(ALL, NEW, ["/etc"])
    assert refused.value.failure is Failure.CONFLICT
    for snapshot in (SYSTEM, HOME, OTHERS, FOREIGN):
        assert f"{snapshot.id[:16]} (" in refused.value.hint
    assert "(system of there, 2026-11-20T12:00)" in refused.value.hint
    many = [SYSTEM._replace(host=f"{n}" * 1000) for n in range(20)]
    with pytest.raises(StepError) as refused:
        latest(many, NEW)
    assert len(refused.value.hint) < 2000
    with pytest.raises(StepError, match="no snapshot yet"):
        latest((), HERE)
