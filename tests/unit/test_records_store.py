"""The record keeps what it is told, whatever that is, and answers about it."""

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.errors import Failure
from capkeep.records import store
from capkeep.records.locks import Holder, JobLock
from capkeep.records.model import (
    Finding,
    FindingKind,
    Outcome,
    Proof,
    Run,
    Step,
    Totals,
    elapsed,
    new_run_id,
)
from capkeep.records.queries import path_from_blob, path_to_blob
from capkeep.records.reader import RecordReader
from capkeep.records.schema import DATABASE, RecordsError
from capkeep.records.store import Recorder

TOTALS = Totals(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)


@pytest.fixture
def places(tmp_path: Path) -> str:
    return str(tmp_path)


def begin(recorder: Recorder, number: int, **fields: object) -> Run:
    run = Run(f"run-{number:05d}", "system", 1000.0 + number)._replace(**fields)
    return recorder.begin_run(run)


def whole(
    recorder: Recorder,
    number: int,
    outcome: Outcome = Outcome.COMPLETE,
    totals: Totals = TOTALS,
    **fields: object,
) -> Run:
    run = begin(recorder, number, **fields)
    step = recorder.begin_step(run, run.action, "offsite")
    recorder.end_step(step._replace(outcome=outcome, totals=totals))
    return recorder.end_run(run._replace(outcome=outcome))


def test_everything_comes_back_as_it_was_told(places: str) -> None:
    with Recorder(places) as recorder:
        run = recorder.begin_run(
            Run("r1", "system", 12.5, action="backup", trigger_uid=1000, trigger_user="alice")
        )
        step = recorder.begin_step(run, "backup", "offsite")
        proofs = (Proof("reader", "room", '{"pid": 1}', ("a", "b")), Proof("reader", "vault", "{}"))
        for proof in proofs:
            recorder.add_proof(step, proof)
        findings = (
            Finding(FindingKind.UNREADABLE, "/etc/shadow", "denied", "permission denied"),
            Finding(FindingKind.LEFT_OUT, "/home/alice/mnt", "", "fuse"),
        )
        recorder.add_findings(step, findings)
        step = recorder.end_step(
            step._replace(
                outcome=Outcome.PARTIAL, failure=Failure.ENGINE, exit_code=3, engine="restic 0.18.0",
                snapshot="abc", text="one file", engine_words="said\nso", totals=TOTALS,
                engine_network=True,
            )
        )  # fmt: skip
        run = recorder.end_run(
            run._replace(outcome=Outcome.PARTIAL, exit_code=3, text="t", reasons=("x", "y"))
        )
    with RecordReader(places) as reader:
        assert reader.run("r1") == run
        assert reader.last_runs() == (run,)
        assert reader.steps("r1") == (step,)
        assert reader.proofs(step) == proofs
        assert reader.findings(step) == findings
        assert reader.finding_counts(step) == {FindingKind.UNREADABLE: 1, FindingKind.LEFT_OUT: 1}


def test_files_are_for_the_group_to_read_and_nobody_else(places: str) -> None:
    os.umask(0)
    try:
        with Recorder(places) as recorder:
            begin(recorder, 1)
            modes = {e.name: stat.S_IMODE(e.stat().st_mode) for e in os.scandir(places)}
    finally:
        os.umask(0o022)
    assert modes == {DATABASE + ending: 0o640 for ending in ("", "-wal", "-shm", "-writer")}


@given(st.binary(max_size=300))
def test_any_path_survives(raw: bytes) -> None:
    path = os.fsdecode(raw)
    assert path_to_blob(path) == raw
    assert path_from_blob(path_to_blob(path)) == path


def test_paths_that_are_no_text_survive_the_database(places: str) -> None:
    path = os.fsdecode(b"/home/\xff\xfe/\x1b[31m\n\x00?")
    with Recorder(places) as recorder:
        run = begin(recorder, 1)
        step = recorder.begin_step(run, "backup", "offsite")
        recorder.add_findings(step, [Finding(FindingKind.WARNING, path, "x", "at " + path)])
        (found,) = recorder.findings(step)
    assert found.path == path
    assert found.detail == "at /home/\\udcff\\udcfe/\x1b[31m\n\x00?"


@given(st.text(alphabet=st.characters(), max_size=50), st.integers(), st.integers())
def test_nothing_a_room_says_breaks_the_record(
    tmp_path_factory: pytest.TempPathFactory, text: str, code: int, count: int
) -> None:
    with Recorder(str(tmp_path_factory.mktemp("hostile"))) as recorder:
        run = recorder.begin_run(Run("r", "system", 1.0, trigger_user=text))
        step = recorder.begin_step(run, "backup", "offsite")
        recorder.add_proof(step, Proof(text, text, text, (text,)))
        recorder.add_findings(step, [Finding(FindingKind.WARNING, text, text, text)])
        ended = step._replace(outcome=Outcome.FAILED, exit_code=code, engine=text, snapshot=text,
                              text=text, engine_words=text, totals=Totals(count))  # fmt: skip
        recorder.end_step(ended)
        recorder.end_run(run._replace(outcome=Outcome.FAILED, text=text, reasons=(text,)))
        assert recorder.steps("r")[0].outcome is Outcome.FAILED


def test_a_lone_surrogate_that_is_no_path_stays_readable() -> None:
    assert path_from_blob(path_to_blob("/a\ud800")) == "/a\\ud800"


def test_very_many_findings_are_counted_and_the_first_kept(
    places: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FINDINGS_KEPT", 5)
    many = (Finding(FindingKind.UNREADABLE, f"/f{n}") for n in range(12))
    with Recorder(places) as recorder:
        step = recorder.begin_step(begin(recorder, 1), "backup", "offsite")
        recorder.add_findings(step, many)
        recorder.add_findings(step, [Finding(FindingKind.WARNING, "/w")], {FindingKind.WARNING: 99})
        found = recorder.findings(step)
        assert [f.path for f in found] == ["/f0", "/f1", "/f2", "/f3", "/f4", "/w"]
        assert recorder.findings(step, limit=2) == found[:2]
        assert recorder.finding_counts(step) == {
            FindingKind.UNREADABLE: 12,
            FindingKind.WARNING: 99,
        }


def test_a_clock_that_jumped_makes_no_negative_durations(places: str) -> None:
    future = time.time() + 86400
    with Recorder(places) as recorder:
        done = whole(recorder, 1, started=future)
    assert done.ended is not None and done.ended < future
    assert done.seconds is not None and 0 <= done.seconds < 10
    assert elapsed(future, None, None, time.time()) == 0
    assert elapsed(10.0, 7.0, None, 0.0) == 0
    assert elapsed(10.0, None, None, 12.0) == 2.0


def test_the_last_run_is_the_one_begun_last_whatever_the_clock_said(places: str) -> None:
    with Recorder(places) as recorder:
        whole(recorder, 1, started=9e9)
        second = whole(recorder, 2, started=5.0)
        assert recorder.last_runs(limit=1) == (second,)
        assert recorder.last_complete("system") == second
        assert recorder.statuses()[0].latest == (second,)


def test_statuses(places: str) -> None:
    with Recorder(places) as recorder:
        complete = whole(recorder, 1)
        partial = whole(recorder, 2, Outcome.PARTIAL, Totals(99))
        check = whole(recorder, 3, Outcome.FAILED, action="check")
        other = whole(recorder, 4, job="home", totals=Totals(5))
        running = begin(recorder, 5)
        home, system = recorder.statuses()
        assert recorder.jobs() == ("home", "system")
        assert recorder.last_runs("home") == (other,)
    assert (home.latest, home.last_complete, home.running) == ((other,), other, None)
    assert home.totals == Totals(5)
    assert system.latest == (partial, check)
    assert system.last_complete == complete
    assert system.running == running
    assert system.totals == TOTALS


def test_totals_to_compare_with_are_of_the_same_job_and_complete(places: str) -> None:
    with Recorder(places) as recorder:
        assert recorder.previous_complete_totals("system", "offsite") is None
        whole(recorder, 1, totals=Totals(1))
        whole(recorder, 2, totals=Totals(2), job="home")
        whole(recorder, 3, Outcome.PARTIAL, Totals(3))
        whole(recorder, 4, totals=Totals(4), action="check")
        assert recorder.previous_complete_totals("system", "offsite") == Totals(1)
        assert recorder.previous_complete_totals("system", "elsewhere") is None


def test_the_last_check_of_each_repository(places: str) -> None:
    with Recorder(places) as recorder:
        run = begin(recorder, 1, job="", action="check")
        for repository, outcome in (
            ("b", Outcome.FAILED),
            ("a", Outcome.COMPLETE),
            ("b", Outcome.COMPLETE),
        ):
            step = recorder.begin_step(run, "check", repository)
            recorder.end_step(step._replace(outcome=outcome))
        recorder.begin_step(run, "check", "a")
        found = [(s.repository, s.outcome, s.seq) for s in recorder.last_steps("check")]
    assert found == [("a", Outcome.COMPLETE, 2), ("b", Outcome.COMPLETE, 3)]


def test_a_run_is_found_by_the_beginning_of_its_id(places: str) -> None:
    with Recorder(places) as recorder:
        for name in ("20260101T000000Z-aaaa", "20260101T000000Z-aabb", "2026"):
            recorder.begin_run(Run(name, "system", 1.0))
        assert recorder.run("20260101T000000Z-aaa").id.endswith("aaaa")  # type: ignore[union-attr]
        assert recorder.run("20260101T000000Z-aa") is None
        assert recorder.run("2026").id == "2026"  # type: ignore[union-attr]
        assert recorder.run("") is None
        assert recorder.run("x") is None


def test_run_ids_sort_by_time_and_are_short() -> None:
    early, late = new_run_id(1_795_000_000.0), new_run_id(1_795_000_001.0)
    assert early < late
    assert len(early) == len("20261121T040506Z-ab12")
    assert early.startswith("20261118T")


def test_details_of_old_runs_are_forgotten_and_the_runs_are_not(
    places: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DETAILED_RUNS", 2)
    steps: list[Step] = []
    with Recorder(places) as recorder:
        for number in range(4):
            run = begin(recorder, number)
            step = recorder.begin_step(run, "backup", "offsite")
            recorder.add_proof(step, Proof("room", "engine", "{}"))
            recorder.add_findings(step, [Finding(FindingKind.WARNING, "/x")])
            steps.append(recorder.end_step(step._replace(outcome=Outcome.COMPLETE)))
            recorder.end_run(run._replace(outcome=Outcome.COMPLETE))
        assert [len(recorder.proofs(s)) for s in steps] == [0, 0, 1, 1]
        assert [len(recorder.findings(s)) for s in steps] == [0, 0, 1, 1]
        assert recorder.finding_counts(steps[0]) == {FindingKind.WARNING: 1}
        assert len(recorder.last_runs()) == 4


def test_a_run_without_a_runner_was_interrupted(places: str) -> None:
    with Recorder(places) as recorder:
        run = begin(recorder, 1)
        recorder.begin_step(run, "backup", "offsite")
    with RecordReader(places) as reader:
        shown = reader.run(run.id)
        (status,) = reader.statuses()
        (step,) = reader.steps(run.id)
    for seen in (shown, *status.latest):
        assert seen is not None
        assert (seen.outcome, seen.failure) == (Outcome.FAILED, Failure.INTERRUPTED)
        assert seen.ended is None and seen.seconds is None
    assert status.running is None
    assert (step.outcome, step.failure) == (Outcome.FAILED, Failure.INTERRUPTED)
    with Recorder(places) as recorder:  # the next one writes it down
        assert recorder.unended() == ()
        assert recorder.run(run.id) == shown
        assert recorder.steps(run.id) == (step,)


def test_a_run_with_its_runner_goes_on(places: str) -> None:
    with JobLock(places, "system") as lock, Recorder(places) as recorder:
        lock.acquire(Holder("system", "run-00001", 0, "root", 1.0, os.getpid()))
        run = begin(recorder, 1)
        with Recorder(places) as second:  # another job's runner leaves it alone
            assert second.unended() == (run,)
        with RecordReader(places) as reader:
            assert reader.run(run.id) == run
            assert reader.statuses()[0].running == run


def test_the_next_run_of_a_job_is_not_taken_for_the_interrupted_one(places: str) -> None:
    with Recorder(places) as recorder:
        begin(recorder, 1)
    with JobLock(places, "system") as lock:
        lock.acquire(Holder("system", "run-00002", 0, "root", 1.0, os.getpid()))
        with RecordReader(places) as reader:
            assert reader.last_runs()[0].failure is Failure.INTERRUPTED
        with Recorder(places) as recorder:
            assert recorder.last_runs()[0].failure is Failure.INTERRUPTED


def test_no_record_yet_is_an_empty_record(places: str) -> None:
    with RecordReader(places) as reader:
        assert reader.statuses() == ()
        assert reader.last_runs() == ()
        assert reader.jobs() == ()
    assert os.listdir(places) == []
    Path(places, DATABASE).touch()  # its writer was killed before it had made the tables
    with RecordReader(places) as reader:
        assert reader.statuses() == ()
    with Recorder(places) as recorder:
        assert whole(recorder, 1).seconds is not None


@pytest.mark.parametrize(
    "content", [b"this is no database, " * 200, b"SQLite format 3\0" + b"\xff" * 4080]
)
def test_a_damaged_record_is_put_aside_and_backups_go_on(places: str, content: bytes) -> None:
    Path(places, DATABASE).write_bytes(content)
    with pytest.raises(RecordsError), RecordReader(places) as reader:
        reader.statuses()
    with Recorder(places) as recorder:
        whole(recorder, 1)
    (aside,) = (name for name in os.listdir(places) if "damaged" in name)
    assert Path(places, aside).read_bytes() == content


def test_a_record_of_a_newer_capkeep_is_left_alone(places: str) -> None:
    connection = sqlite3.connect(f"{places}/{DATABASE}")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for kind in (Recorder, RecordReader):
        with pytest.raises(RecordsError, match="newer capkeep"):
            kind(places)


def test_a_directory_that_may_not_be_used_is_one_sentence() -> None:
    with pytest.raises(RecordsError, match="cannot be used"):
        Recorder("/proc/nowhere")


def test_a_name_with_every_special_character_of_a_uri_works(tmp_path: Path) -> None:
    places = tmp_path / "a %25 ?mode=rw #x"
    places.mkdir()
    with Recorder(str(places)) as recorder:
        run = whole(recorder, 1)
    with RecordReader(str(places)) as reader:
        assert reader.last_runs() == (run,)


def test_a_reader_of_a_still_file_sees_what_is_written_later(places: str) -> None:
    with Recorder(places) as recorder:
        first = whole(recorder, 1)
    with RecordReader(places) as reader:
        assert reader.last_runs() == (first,)
        with Recorder(places) as recorder:
            second = whole(recorder, 2)
        assert reader.last_runs() == (second, first)


def remove_index(path: str) -> None:
    os.unlink(path + "-shm")


def empty_index(path: str) -> None:
    os.truncate(path + "-shm", 0)


def only_header(path: str) -> None:
    os.truncate(path + "-wal", 32)


def torn_first_frame(path: str) -> None:
    os.truncate(path + "-wal", 100)


@pytest.mark.parametrize(
    "damage,found",
    [(remove_index, ("two", "one")), (empty_index, ("two", "one")), (only_header, ("one",)), (torn_first_frame, ("one",))],
)  # fmt: skip
def test_what_a_killed_writer_leaves_is_read_at_once_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[str], None], found: tuple[str, ...]
) -> None:
    """SQLite alone cannot open some of these states read-only, or takes ten seconds to say so."""
    live, left = tmp_path / "live", tmp_path / "left"
    live.mkdir()
    with Recorder(str(live)) as recorder:
        recorder.begin_run(Run("one", "system", 1.0))
    with Recorder(str(live)) as recorder:
        recorder.begin_run(Run("two", "system", 2.0))
        shutil.copytree(live, left)
    damage(f"{left}/{DATABASE}")
    before = {e.name: e.stat().st_mtime_ns for e in os.scandir(left)}
    begun = time.monotonic()
    with RecordReader(str(left)) as reader:
        assert tuple(run.id for run in reader.last_runs()) == found
    assert time.monotonic() - begun < 8
    assert {e.name: e.stat().st_mtime_ns for e in os.scandir(left)} == before
