"""Nothing that speaks against a backup is passed over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.engines.base import Cause, Summary, Unreadable
from capkeep.plan.model import Job
from capkeep.records.model import Outcome
from capkeep.run.gate import Before, Evidence, SourceFact, judge

JOB = Job("j", ("r",), ("/etc", "/home"), canary="/etc/capkeep/canary")
GOOD = Evidence(
    exit_code=0,
    sources=(SourceFact("/etc", exists=True), SourceFact("/home", exists=True)),
    unreadable=(),
    summary=Summary("abc", total_files=1000, bytes_processed=500 << 20),
    canary_seen=True,
)


def denied(path: str, cause: Cause = Cause.DENIED) -> Unreadable:
    return Unreadable(path, cause, "")


def outcome(job: Job = JOB, **more: object) -> tuple[Outcome, tuple[str, ...]]:
    found = judge(job, GOOD._replace(**more))  # type: ignore[arg-type]
    return found.outcome, found.reasons


def test_what_nothing_speaks_against_is_complete() -> None:
    assert outcome() == (Outcome.COMPLETE, ())


# -- the engine


@pytest.mark.parametrize(
    "code, summary, sentence",
    [
        (None, GOOD.summary, "the engine did not end by itself"),
        (1, GOOD.summary, "the engine ended with exit code 1"),
        (-9, GOOD.summary, "the engine ended with exit code -9"),
        (99, None, "the engine ended with exit code 99"),
        (0, None, "the engine ended with exit code 0 but without a summary"),
        (0, Summary(""), "the engine made no snapshot"),
    ],
)
def test_without_a_snapshot_it_has_failed(
    code: int | None, summary: Summary | None, sentence: str
) -> None:
    found, reasons = outcome(exit_code=code, summary=summary)
    assert found is Outcome.FAILED
    assert reasons[0] == sentence


def test_a_dry_run_makes_no_snapshot_and_may_be_complete() -> None:
    summary = Summary("", total_files=1000, bytes_processed=500 << 20, dry_run=True)
    assert outcome(summary=summary, dry_run=True)[0] is Outcome.COMPLETE


def test_exit_code_3_without_a_word_is_not_complete() -> None:
    found, reasons = outcome(exit_code=3)
    assert found is Outcome.PARTIAL
    assert "exit code 3" in reasons[0]


# -- what was not read


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("cause", [Cause.DENIED, Cause.IO, Cause.UNKNOWN])
def test_an_unreadable_path_makes_it_partial_whatever_the_exit_code(
    code: int, cause: Cause
) -> None:
    found, reasons = outcome(exit_code=code, unreadable=(denied("/etc/x", cause),))
    assert found is Outcome.PARTIAL
    assert reasons == (f"1 path was not read: /etc/x ({cause})",)


def test_many_are_counted_and_few_are_named() -> None:
    many = tuple(denied(f"/etc/{n}") for n in range(10))
    _, reasons = outcome(unreadable=many, unlisted=90)
    assert reasons == (
        "100 paths were not read: /etc/0 (denied), /etc/1 (denied), /etc/2 (denied), 97 more",
    )


def test_what_was_only_counted_still_counts() -> None:
    assert outcome(unlisted=1)[0] is Outcome.PARTIAL


@pytest.mark.parametrize("cause", [Cause.VANISHED, Cause.CHANGED])
def test_what_vanished_or_changed_is_reported_and_forgiven(cause: Cause) -> None:
    found = judge(JOB, GOOD._replace(exit_code=3, unreadable=(denied("/etc/x", cause),)))
    assert found.outcome is Outcome.COMPLETE
    assert [u.path for u in found.fleeting] == ["/etc/x"]
    assert found.unreadable == ()


def test_a_source_that_vanishes_is_not_forgiven() -> None:
    gone = (denied("/home", Cause.VANISHED),)
    found, reasons = outcome(exit_code=3, unreadable=gone)
    assert found is Outcome.PARTIAL
    assert reasons == ("1 path was not read: /home (vanished)",)


@pytest.mark.parametrize(
    "pattern, path, excused",
    [
        ("/home/*/mnt", "/home/alice/mnt", True),
        ("/home/*/mnt", "/home/alice/mnt/deeper/x", True),
        ("/home/*/mnt", "/home/alice/sub/mnt", False),
        ("**/.gvfs", "/home/alice/.gvfs", True),
        ("/home/alice", "/home/alicea", False),
        ("/home/**/cache", "/home/a/b/c/cache", True),
    ],
)
def test_what_the_job_may_miss_is_excused(pattern: str, path: str, excused: bool) -> None:
    job = JOB._replace(may_miss=(pattern,))
    found = judge(job, GOOD._replace(exit_code=3, unreadable=(denied(path),)))
    assert (found.outcome is Outcome.COMPLETE) is excused
    assert len(found.missed) == excused


def test_one_excuse_does_not_excuse_another() -> None:
    job = JOB._replace(may_miss=("/etc/a",))
    found = judge(job, GOOD._replace(exit_code=3, unreadable=(denied("/etc/a"), denied("/etc/b"))))
    assert found.outcome is Outcome.PARTIAL
    assert [u.path for u in found.unreadable] == ["/etc/b"]


# -- sources


@pytest.mark.parametrize(
    "fact, sentence",
    [
        (SourceFact("/home", exists=False, kind=""), "/home does not exist"),
        (
            SourceFact("/home", exists=True, empty=True),
            "/home is empty and nothing is mounted there",
        ),
        (
            SourceFact("/home", exists=True, empty=True, mount_point=True),
            "the filesystem mounted at /home is empty",
        ),
        (
            SourceFact("/home", exists=True, kind="link"),
            "/home is a symbolic link: it is kept, and not what it points to",
        ),
    ],
)
def test_a_source_that_holds_nothing_makes_it_partial(fact: SourceFact, sentence: str) -> None:
    sources = (GOOD.sources[0], fact)
    assert outcome(sources=sources) == (Outcome.PARTIAL, (sentence,))
    assert outcome(JOB._replace(may_miss=("/home",)), sources=sources) == (Outcome.COMPLETE, ())


def test_a_missing_source_is_said_once() -> None:
    found, reasons = outcome(
        exit_code=3,
        sources=(GOOD.sources[0], SourceFact("/home", exists=False)),
        unreadable=(denied("/home", Cause.VANISHED),),
    )
    assert found is Outcome.PARTIAL
    assert reasons == ("/home does not exist",)


def test_a_source_that_may_be_empty() -> None:
    sources = (GOOD.sources[0], SourceFact("/home", exists=True, empty=True))
    assert outcome(JOB._replace(allow_empty=("/home",)), sources=sources)[0] is Outcome.COMPLETE


def test_a_source_that_nobody_looked_at_is_not_complete() -> None:
    found, reasons = outcome(sources=GOOD.sources[:1])
    assert found is Outcome.PARTIAL
    assert "/home" in reasons[0]


# -- the canary and the size


def test_without_its_canary_it_is_partial() -> None:
    found, reasons = outcome(canary_seen=False)
    assert found is Outcome.PARTIAL
    assert "/etc/capkeep/canary" in reasons[0]
    assert outcome(JOB._replace(canary=""), canary_seen=False)[0] is Outcome.COMPLETE


@pytest.mark.parametrize(
    "before, percent, partial",
    [
        (Before(1000, 500 << 20), 50, False),
        (Before(2000, 500 << 20), 50, False),  # exactly half is not more than half
        (Before(2001, 500 << 20), 50, True),
        (Before(1000, 1001 << 20), 50, True),
        (Before(1_000_000, 500 << 20), 100, False),  # nothing can lose more than all
        (Before(1001, 500 << 20), 0, True),
        (Before(100, 1 << 20), 0, False),  # it grew
    ],
)
def test_a_source_that_lost_too_much_is_suspect(
    before: Before, percent: int, partial: bool
) -> None:
    found, reasons = outcome(JOB._replace(max_shrink_percent=percent), before=before)
    assert (found is Outcome.PARTIAL) is partial
    assert bool(reasons) is partial


def test_the_numbers_are_named() -> None:
    _, reasons = outcome(before=Before(12_000, 2000 << 20))
    files, size = reasons
    assert "from 12,000 to 1,000 files, by more than 50%" in files
    assert "from 2,000.0 to 500.0 MiB, by more than 50%" in size
    assert "--accept-shrink" in files


def test_a_handful_of_files_may_come_and_go() -> None:
    tiny = Summary("abc", total_files=1, bytes_processed=10)
    assert outcome(summary=tiny, before=Before(15, 1000))[0] is Outcome.COMPLETE


# -- all together


def test_every_doubt_is_said() -> None:
    found, reasons = outcome(
        exit_code=3,
        sources=(SourceFact("/etc", exists=True, empty=True),),
        unreadable=(denied("/etc/x"),),
        canary_seen=False,
        before=Before(1_000_000, 1 << 40),
    )
    assert found is Outcome.PARTIAL
    assert len(reasons) == 6


@given(
    code=st.sampled_from([None, 0, 1, 2, 3, 10, -9]),
    paths=st.lists(st.tuples(st.sampled_from(["/etc/a", "/etc/b", "/home"]), st.sampled_from(Cause))),
    exists=st.booleans(),
    seen=st.booleans(),
    unlisted=st.integers(0, 2),
    snapshot=st.sampled_from(["", "abc"]),
)  # fmt: skip
def test_complete_means_that_there_is_no_reason(
    code: int | None,
    paths: list[tuple[str, Cause]],
    exists: bool,
    seen: bool,
    unlisted: int,
    snapshot: str,
) -> None:
    """Every outcome but complete has a sentence, and complete has none and lost nothing."""
    found = judge(JOB, Evidence(
        exit_code=code, sources=(SourceFact("/etc", exists=True), SourceFact("/home", exists=exists)),
        unreadable=tuple(denied(p, c) for p, c in paths), summary=Summary(snapshot),
        canary_seen=seen, unlisted=unlisted,
    ))  # fmt: skip
    assert (found.outcome is Outcome.COMPLETE) is (not found.reasons)
    assert len(found.unreadable) + len(found.missed) + len(found.fleeting) == len(paths)
    if found.outcome is Outcome.COMPLETE:
        assert code in {0, 3}
        assert seen
        assert exists
        assert snapshot
        assert not unlisted
        assert {u.cause for u in found.fleeting} <= {Cause.VANISHED, Cause.CHANGED}
