"""What a backup says when something is not right, and what the gate makes of it."""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from capkeep.engines.base import Cause, Event, Progress, Seen, Summary, Unreadable, Warned
from capkeep.errors import Failure
from capkeep.plan.model import Job
from capkeep.records.model import Outcome
from capkeep.run.gate import Before, Evidence, SourceFact, Verdict, judge
from tests.contract.conftest import RESTIC, UID, Done, Lab, finish, until
from tests.contract.differences import able

BIG = 24 << 20


def read(done: Done, *watch: Path) -> list[Event]:
    return done.feed(RESTIC.read_backup(tuple(map(str, watch))))


def unreadable(events: Sequence[Event]) -> dict[str, Cause]:
    return {e.path: e.cause for e in events if isinstance(e, Unreadable)}


def summary(events: Sequence[Event]) -> Summary | None:
    return next((e for e in events if isinstance(e, Summary)), None)


def verdict(job: Job, done: Done, *, before: Before | None = None) -> Verdict:
    """The gate's verdict on a real run, with the sources as they are now."""
    events = read(done, *([Path(job.canary)] if job.canary else []))
    facts = tuple(
        SourceFact(p, exists=os.path.lexists(p), empty=os.path.isdir(p) and not os.listdir(p))
        for p in job.include
    )
    return judge(job, Evidence(
        exit_code=done.code, sources=facts, summary=summary(events),
        unreadable=tuple(e for e in events if isinstance(e, Unreadable)),
        canary_seen=any(isinstance(e, Seen) for e in events), before=before,
    ))  # fmt: skip


def noise(path: Path, size: int = BIG) -> None:
    path.write_bytes(os.urandom(size))


def reading(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Whether the process has the file open and has begun to read it."""
    folder = f"/proc/{process.pid}/fd"
    for fd in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{fd}") == str(path):
                info = Path(f"/proc/{process.pid}/fdinfo/{fd}").read_text()
                return int(info.split()[1]) > 0
        except OSError:
            continue
    return False


def stopped_while_reading(lab: Lab, path: Path) -> subprocess.Popen[bytes]:
    process = lab.start(RESTIC.backup(lab.call, lab.job()))
    until(lambda: reading(process, path))
    process.send_signal(signal.SIGSTOP)
    return process


def go_on(process: subprocess.Popen[bytes]) -> Done:
    process.send_signal(signal.SIGCONT)
    with process:
        return finish(process)


def test_a_clean_backup_is_complete(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    (lab.source / "canary").write_text("1")
    job = lab.job(canary=f"{lab.source}/canary")
    done = lab.backup(job)
    events = read(done, lab.source / "canary")
    assert done.code == 0
    assert unreadable(events) == {}
    assert not [e for e in events if isinstance(e, Warned)]
    total = summary(events)
    assert total is not None
    assert (total.files_new, total.total_files, total.bytes_processed) == (2, 2, 2)
    assert lab.snapshots()[0].id.startswith(total.snapshot)
    assert Seen(f"{lab.source}/canary", read=True) in events
    assert verdict(job, done).outcome is Outcome.COMPLETE


def test_the_canary_is_seen_again_and_whether_it_was_read(lab: Lab) -> None:
    canary = lab.source / "sub <&> grün" / "canary"
    canary.parent.mkdir()
    canary.write_text("1")
    assert Seen(str(canary), read=True) in read(lab.backup(), canary)
    assert Seen(str(canary), read=False) in read(lab.backup(), canary)
    canary.write_text("2")
    assert Seen(str(canary), read=True) in read(lab.backup(), canary)
    shutil.rmtree(canary.parent)
    events = read(lab.backup(), canary)
    assert not [e for e in events if isinstance(e, Seen)]


def test_an_excluded_canary_is_not_seen(lab: Lab) -> None:
    canary = lab.source / "canary"
    canary.write_text("1")
    job = lab.job(canary=str(canary), exclude=("canary",))
    done = lab.backup(job)
    assert done.code == 0
    found = verdict(job, done)
    assert found.outcome is Outcome.PARTIAL
    assert "canary" in found.reasons[0]


def test_unreadable_files_and_directories_are_named(lab: Lab) -> None:
    (lab.source / "open").write_text("x")
    (lab.source / "secret").write_text("x")
    (lab.source / "secret").chmod(0o600)
    closed = lab.source / "closed"
    closed.mkdir(0o700)
    (closed / "x").write_text("x")
    done = lab.backup()
    assert done.code == 3
    named = unreadable(read(done))
    why = Cause.DENIED if able(lab.version, "say why a directory was not read") else Cause.UNKNOWN
    assert named == {f"{lab.source}/secret": Cause.DENIED, str(closed): why}
    assert len(lab.snapshots()) == 1, "a snapshot is made all the same"
    assert RESTIC.diagnose(done.code, (), backup=True) is None
    assert verdict(lab.job(), done).outcome is Outcome.PARTIAL
    may = lab.job(may_miss=("**/secret", f"{closed}"))
    found = verdict(may, done)
    assert found.outcome is Outcome.COMPLETE
    assert len(found.missed) == 2


def test_an_unreadable_name_that_is_not_utf8_is_counted(lab: Lab) -> None:
    raw = os.fsencode(lab.source) + b"/secret\xff"
    with open(raw, "w") as file:
        file.write("x")
    os.chmod(raw, 0o600)
    named = unreadable(read(lab.backup()))
    assert (os.fsdecode(raw) in named) is able(lab.version, "name paths that are not UTF-8 in JSON")
    assert named == {f"{lab.source}/secret\ufffd": Cause.DENIED}


def test_an_unchanged_unreadable_file_passes_in_silence(lab: Lab) -> None:
    """As when a capability is lost: nothing about the file has changed, only who asks."""
    (lab.source / "a").write_text("a")
    (lab.source / "a").chmod(0o600)
    assert lab.backup(uid=0).code == 0
    lab.give(UID)
    done = lab.backup()
    noticed = able(lab.version, "notice that an unchanged file has become unreadable")
    assert (done.code != 0) is noticed
    assert bool(unreadable(read(done))) is noticed


def test_a_missing_source_is_named(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    missing = f"{lab.base}/missing"
    job = lab.job(lab.source, missing)
    done = lab.backup(job)
    loud = able(lab.version, "fail when one of several sources is missing")
    assert done.code == (3 if loud else 0)
    assert unreadable(read(done)) == {missing: Cause.VANISHED}
    found = verdict(job, done)
    assert found.outcome is Outcome.PARTIAL
    assert found.reasons == (f"{missing} does not exist",)


def test_no_source_at_all_is_a_failure(lab: Lab) -> None:
    job = lab.job("/nowhere/at/all")
    done = lab.backup(job)
    reader = RESTIC.read_backup()
    done.feed(reader)
    found = RESTIC.diagnose(done.code, reader.tail, backup=True)
    assert found is not None
    assert found.failure is Failure.ENGINE
    assert "none of the job's sources exists" in found.sentence
    assert "do not exist" in found.words
    assert verdict(job, done).outcome is Outcome.FAILED


def test_an_empty_source_is_not_complete(lab: Lab) -> None:
    done = lab.backup()
    assert done.code == 0
    assert verdict(lab.job(), done).outcome is Outcome.PARTIAL
    allowed = lab.job(allow_empty=(str(lab.source),))
    assert verdict(allowed, done).outcome is Outcome.COMPLETE


def test_a_source_that_shrank_is_suspect(lab: Lab) -> None:
    for number in range(100):
        (lab.source / str(number)).write_text(str(number))
    lab.backup()
    for number in range(60):
        (lab.source / str(number)).unlink()
    done = lab.backup()
    assert done.code == 0
    found = verdict(lab.job(), done, before=Before(100, 190))
    assert found.outcome is Outcome.PARTIAL
    assert "from 100 to 40 files" in found.reasons[0]


def test_what_vanishes_before_its_turn_is_told_apart(lab: Lab) -> None:
    for number in range(8):
        noise(lab.source / f"big-{number}", BIG // 2)
    (lab.source / "later").write_text("x")
    (lab.source / "later-dir").mkdir()
    process = stopped_while_reading(lab, lab.source / "big-0")
    (lab.source / "later").unlink()
    (lab.source / "later-dir").rmdir()
    done = go_on(process)
    loud = able(lab.version, "name a file that vanished before its turn")
    gone = {f"{lab.source}/later": Cause.VANISHED, f"{lab.source}/later-dir": Cause.VANISHED}
    assert unreadable(read(done)) == (gone if loud else {})
    assert done.code == (3 if loud else 0)
    found = verdict(lab.job(), done)
    assert found.outcome is Outcome.COMPLETE
    assert len(found.fleeting) == (2 if loud else 0)


def test_what_changes_its_kind_is_told_apart(lab: Lab) -> None:
    for number in range(8):
        noise(lab.source / f"big-{number}", BIG // 2)
    (lab.source / "later").mkdir()
    (lab.source / "later" / "x").write_text("x")
    process = stopped_while_reading(lab, lab.source / "big-0")
    shutil.rmtree(lab.source / "later")
    (lab.source / "later").write_text("now a file")
    done = go_on(process)
    assert unreadable(read(done)) == {}, "it had not been looked at: it is kept as it is now"
    assert done.code == 0


def test_a_file_that_shrinks_while_it_is_read_is_kept_as_read(lab: Lab) -> None:
    noise(lab.source / "big", 4 * BIG)
    process = stopped_while_reading(lab, lab.source / "big")
    os.truncate(lab.source / "big", 1000)
    done = go_on(process)
    loud = able(lab.version, "tell that a file shrank while it was read")
    assert (done.code != 0) is loud
    assert bool(unreadable(read(done))) is loud
    restore = RESTIC.restore(lab.call, "latest", str(lab.target), verify=True)
    assert lab.as_root(restore).code == 0, "the snapshot is sound"
    kept = lab.target / (lab.source / "big").relative_to("/")
    assert 1000 <= kept.stat().st_size < 4 * BIG


def test_an_error_of_the_disk_is_told_apart(lab: Lab) -> None:
    """Nothing is mapped at the beginning of a process's memory: reading there is EIO."""
    sleeper = subprocess.Popen(["/usr/bin/sleep", "60"], user=UID, group=UID, extra_groups=[])
    try:
        path = f"/proc/{sleeper.pid}/mem"
        (lab.source / "a").write_text("a")
        done = lab.backup(lab.job(lab.source, path))
        assert unreadable(read(done)) == {path: Cause.IO}
        assert verdict(lab.job(), done).outcome is Outcome.PARTIAL
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_dry_run_makes_nothing(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    done = lab.run(RESTIC.backup(lab.call, lab.job(), dry_run=True))
    assert done.code == 0
    total = summary(read(done))
    assert total is not None
    assert total.dry_run
    assert total.total_files == 1
    assert lab.snapshots() == ()


def test_a_parent_can_be_chosen(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    lab.backup()
    (first,) = lab.snapshots()
    other = lab.base / "other"
    shutil.copytree(lab.source, other)
    lab.run(RESTIC.backup(lab.call, lab.job(other), parent=first.id))
    assert lab.snapshots()[1].parent == first.id


def test_progress_is_told(lab: Lab) -> None:
    noise(lab.source / "big", 4 * BIG)
    done = lab.backup()
    steps = [e for e in read(done) if isinstance(e, Progress)]
    assert steps
    assert len(steps) < 200
    assert any(p.current == (f"{lab.source}/big",) for p in steps)
    assert all(p.bytes <= 4 * BIG for p in steps)
    assert sorted(p.bytes for p in steps) == [p.bytes for p in steps]
