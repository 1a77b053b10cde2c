"""The pure parts of drills: what is chosen, what is compared, which ids there are, what is proven."""

import contextlib
import io
import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from capkeep.engines.base import Entry
from capkeep.errors import Failure, StepError
from capkeep.host.subordinate import LOWEST, ids_of
from capkeep.kernel.ownership import id_map
from capkeep.plan.compile import configured
from capkeep.plan.model import Drill, Job, Room
from capkeep.records.drills import MONTH, Earlier, Proven, made, proven
from capkeep.records.model import Outcome, Run, Step
from capkeep.records.store import Recorder
from capkeep.records.upkeep import is_suspect
from capkeep.report.drill import plain_proven, proven_lines
from capkeep.report.metrics import Numbers, render
from capkeep.report.status import Overview
from capkeep.report.style import Style
from capkeep.rooms.choice import Choice
from capkeep.rooms.protocol import Message
from capkeep.rooms.sampling import Sample, batches, weight
from capkeep.run.drill import _Drill, compared, started_of
from capkeep.run.errand import Errand
from capkeep.run.heard import Heard
from capkeep.run.step import Ledger
from tests.unit.test_config_load import Etc

DAY = 86400.0


def entry(number: int, size: int = 100) -> Entry:
    return Entry(f"/data/{number:07}", "file", size, 0o644, 0, 0, "2026-01-01T00:00:00Z")


def sampled(seed: str, count: int, among: int, most: int = 1 << 40) -> list[Entry]:
    sample = Sample(seed, count)
    for number in range(among):
        sample.add(entry(number), DAY)
    return sample.chosen(most)


def test_the_same_seed_chooses_the_same_files() -> None:
    first = sampled("one", 50, 5000)
    assert first == sampled("one", 50, 5000)
    assert len(first) == len({e.path for e in first}) == 50
    assert first != sampled("other", 50, 5000)
    assert len(sampled("one", 50, 7)) == 7


def test_the_same_seed_chooses_the_same_files_a_year_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = 1_767_225_600
    chosen = []
    for now in (moment, moment + 365 * DAY):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        choice = Choice(
            Drill(sample=50, max_bytes=1 << 40), "seed",
            whole=False, dumps=(), listing=io.StringIO(), moment=moment,
        )  # fmt: skip
        for number in range(2000):
            made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment - number * 20_000))
            choice.take(entry(number)._replace(mtime=made))
        chosen.append(choice.chosen(lambda *_: None))
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 50


def test_every_file_can_be_chosen_and_none_is_preferred() -> None:
    """Each of ten thousand samples of 10 among 40: 2,500 times each, give or take."""
    counts: dict[str, int] = {}
    for seed in range(2000):
        for chosen in sampled(str(seed), 10, 40):
            counts[chosen.path] = counts.get(chosen.path, 0) + 1
    assert len(counts) == 40
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


def test_large_and_old_files_are_chosen_more_often() -> None:
    assert weight(1 << 30, DAY) > weight(1 << 20, DAY) > weight(0, DAY)
    assert weight(4096, 1000 * DAY) > weight(4096, DAY) > weight(4096, -DAY)
    sample = Sample("seed", 100)
    for number in range(2000):
        sample.add(entry(number, (1 << 30) if number % 2 else 0), DAY)
    large = sum(1 for e in sample.chosen(1 << 50) if e.size)
    assert large > 80, "of 100, where half of all are large"


def test_a_sample_has_room() -> None:
    chosen = sampled("seed", 50, 500, most=1234)
    assert sum(e.size for e in chosen) == 1200


def test_parts_are_no_larger_than_asked() -> None:
    entries = [entry(n, 10 * n) for n in range(1, 40)]
    for most, size, text in ((7, 10**6, 10**6), (1000, 500, 10**6), (1000, 10**6, 60)):
        parts = batches(entries, most, size, text)
        assert [e for part in parts for e in part] == entries
        for part in parts:
            assert len(part) <= most
            assert len(part) == 1 or sum(e.size for e in part) <= size
            assert len(part) == 1 or sum(len(e.path) for e in part) <= text
    assert batches([], 1, 1, 1) == []


def test_the_ids_of_a_namespace() -> None:
    assert id_map(1_200_000, 5000, 10) == "0 5000 10\n1200000 1200000 1\n"
    assert id_map(3, 5000, 10) == "0 5000 3\n3 3 1\n4 5004 6\n"
    assert id_map(0, 5000, 10) == "0 0 1\n1 5001 9\n"


def test_ids_that_nobody_else_has(tmp_path: Path) -> None:
    users, groups = tmp_path / "subuid", tmp_path / "subgid"
    files = (str(users), str(groups))
    assert ids_of("prover", files) == (LOWEST, 65536)
    users.write_text(f"ann:100000:65536\nbob:{LOWEST + 10}:65536\n")
    groups.write_text(f"# nothing\nann:100000:65536\neve:{LOWEST + 65546}:1\nodd\n")
    assert ids_of("prover", files) == (LOWEST + 65547, 65536)
    users.write_text("prover:300000:65536\n")
    assert ids_of("prover", files)[0] != 300000, "its groups are another's"
    groups.write_text("prover:300000:70000\n")
    users.write_text("prover:300000:70000\n")
    assert ids_of("prover", files) == (300000, 65536)
    for file in (users, groups):
        file.write_text("prover:1000:65536\n")
    assert ids_of("prover", files) == (LOWEST, 65536), "never ids of this system's own users"
    users.write_text("other:0:4294967295\n")
    assert ids_of("prover", files) == (0, 0)


FILE: Message = {
    "kind": "file", "mode": 0o644, "uid": 0, "gid": 0, "size": 6, "mtime": 50, "content": "aa",
    "attributes": {"user.x": "1"},
}  # fmt: skip


@pytest.mark.parametrize(
    "live, kind, words",
    [
        ({}, "same", ""),
        ({"missing": "gone"}, "gone", ""),
        ({"missing": "Permission denied"}, "unreadable", ""),
        ({"ctime": 101, "content": None}, "changed", ""),
        ({"mode": 0o600}, "different", "mode 0644, live 0600"),
        ({"uid": 5, "content": "bb"}, "different", "uid 0, live 5; content differs"),
        ({"attributes": {}}, "different", "attributes: user.x is there, live not"),
        ({"attributes": {"user.x": "2", "user.y": "3"}}, "different",
         "attributes: user.x differs, user.y is missing"),
        ({"size": 7, "content": "bb"}, "different", "size 6, live 7; content differs"),
        ({"size": 7, "content": "bb", "above": 101}, "changed", ""),  # another may be in its place
    ],
)  # fmt: skip
def test_what_was_restored_is_compared_with_what_is_live(
    live: Message, kind: str, words: str
) -> None:
    assert compared(FILE, {**FILE, "ctime": 99, "above": 99, **live}, 100) == (kind, words)


def test_an_engine_that_keeps_whole_seconds_is_compared_by_them() -> None:
    live = {**FILE, "mtime": 2_999_999_999, "ctime": 99, "above": 99}
    kept = {**FILE, "mtime": 2_000_000_000}
    assert compared(kept, live, 100) == ("different", "mtime 2000000000, live 2999999999")
    assert compared({**kept, "whole_seconds": True}, live, 100) == ("same", "")
    link = {k: v for k, v in FILE.items() if k != "mtime"}
    assert compared({**link, "whole_seconds": True}, live, 100) == ("same", "")


def test_attributes_that_nobody_could_give_are_not_compared() -> None:
    bare = {k: v for k, v in FILE.items() if k != "attributes"}
    live: Message = {**FILE, "ctime": 99, "above": 99}
    assert compared(bare, live, 100) == ("same", "")
    assert compared({**FILE, "attributes": {}, "without": ["user.x"]}, live, 100) == ("same", "")


class Told:
    """A ledger that only listens."""

    def tell(self, _message: Message) -> None: ...


class Cut(_Drill):
    """A drill whose prover finds something, or nothing, and whose reader cannot be asked."""

    def __init__(self, found: Message | None) -> None:
        room = cast("Room", SimpleNamespace(name="room", wire=None))
        errand = Errand("drill", room, {"options": {"older": []}}, 60, live=room)
        heard = Heard(None, room, Told().tell)
        super().__init__(cast("Ledger", Told()), cast("Job", None), errand, heard)
        self.found = found

    def restored(self) -> Message:
        if self.found is None:
            return {"failure": None, "text": "all is well", "facts": {"files": 3}}
        self._take({"event": "difference", "path": "/file", "detail": "mode"})
        return self.found

    def compare_live(self, result: Message) -> None:
        raise StepError(Failure.LOCKED, "reader is busy")


def test_damage_that_was_found_is_not_forgotten_for_what_fails_after_it() -> None:
    well = Cut(None)
    result = well.judged(well.done())
    assert (result["failure"], result["text"]) == (Failure.LOCKED, "reader is busy")
    assert well.facts(result)["files"] == 3
    for said in (
        {"failure": "damaged", "text": "1 of 4", "facts": {"files": 3}},
        {"failure": "timeout", "text": "too long"},
    ):
        cut = Cut(dict(said))
        result = cut.judged(cut.done())
        assert result["failure"] == Failure.DAMAGED, said
        assert "1 differences" in str(result["text"])
        assert cut.facts(result)["differences"] == [["/file", "mode"]]


def test_a_dump_that_does_not_load_says_nothing_of_the_repository() -> None:
    drill = Cut(None)
    drill._take({"event": "difference", "path": "/d", "detail": "x", "dump": True})
    said: Message = {"failure": "dump", "text": "a dump does not load"}
    assert drill.judged(said)["failure"] == Failure.DUMP
    drill._take({"event": "difference", "path": "/file", "detail": "mode"})
    result = drill.judged(said)
    assert result["failure"] == Failure.DAMAGED, "files differ too"
    assert result["text"] == "1 differences were found: a dump does not load"


class Asking(Cut):
    """A drill whose reader tells nothing, and notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(None)
        self._job = Job("job", ("repo",), ("/etc", "/srv/data"), canary="/root/bird")
        self.asked: list[str] = []

    def compare_live(self, result: Message) -> None:
        _Drill.compare_live(self, result)

    def _begun(self, result: Message) -> float:
        return 1.0 if result else 0.0

    def _ask_live(self, by_path: Mapping[str, Message], paths: list[str], options: Message) -> None:
        self.asked += paths if by_path and options else []


def test_no_reader_is_asked_for_what_is_the_jobs_no_more() -> None:
    drill = Asking()
    drill._errand = drill._errand._replace(request={"options": {"older": [], "nonce": "n"}})
    paths = ["/etc/passwd", "/etcetera", "/srv/data/x", "/srv/old", "/root/bird", "/root/other"]
    drill._take({"event": "restored", "files": [{"path": path} for path in paths]})
    result = drill.done()
    assert drill.asked == ["/etc/passwd", "/srv/data/x", "/root/bird"]
    assert drill.facts(result)["live"] == {"left": 3}


def test_what_drills_have_shown(tmp_path: Path) -> None:
    now = 2_000_000_000.0
    with Recorder(str(tmp_path)) as record:

        def note(kind: str, days: float, facts: Message, **ended: object) -> Step:
            started = now - days * DAY
            run = Run(id=f"{kind}-{days}", job="job", started=started, action=kind)
            record.begin_run(run)
            step = record.begin_step(run, kind, "repo")
            record.add_detail(step, facts)
            step = step._replace(started=started, ended=started, outcome=Outcome.COMPLETE)
            done = record.end_step(step._replace(**ended))
            record.end_run(run._replace(outcome=done.outcome, exit_code=0))
            return done

        def begin_in_the_past() -> None:
            """Steps begin when they are noted; here with their runs."""
            (path,) = tmp_path.glob("*.db")
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                database.execute(
                    "UPDATE step SET started = (SELECT started FROM run WHERE number = step.run)"
                )

        note("backup", 50, {}, snapshot="aaaa1111")
        note("backup", 40, {}, snapshot="bbbb2222", outcome=Outcome.PARTIAL)
        note("backup", 10, {}, snapshot="cccc3333")
        begin_in_the_past()
        known = made(record, "job", "repo")
        assert [m.snapshot for m in known] == ["cccc3333", "aaaa1111"]
        assert started_of("aaaa1111ffff", known) == known[1].started
        assert started_of("aaaa", known) == known[1].started
        assert started_of("bbbb2222", known) == 0.0
        assert proven(record, now) == ()
        held = {"files": 1000}
        note("drill", 45, {"files": 200, "bytes": 5, "held": held})
        note(
            "drill",
            5,
            {"files": 100, "bytes": 7, "held": held, "restore_seconds": 2.5, "manifest": 40},
        )
        begin_in_the_past()
        (found,) = proven(record, now)
        assert found.passed
        assert found.seconds == 2.5
        assert (found.month.drills, found.month.files, found.month.share) == (1, 100, 0.1)
        assert (found.month.manifest, found.year.manifest) == (40, 40)
        assert (found.year.drills, found.year.files, found.year.bytes) == (2, 300, 12)
        odd = {"files": 10**400, "bytes": float("nan"), "held": held, "restore_seconds": "long"}
        note("drill", 4, odd)  # nothing that a room says keeps `status` from being shown
        begin_in_the_past()
        (found,) = proven(record, now)
        assert (found.seconds, found.month.files, found.month.bytes) == (None, 100, 7)
        assert not is_suspect(record, "repo")
        note("drill", 1, {}, outcome=Outcome.FAILED, failure=Failure.DAMAGED, text="wrong")
        note("drill", 0.5, {}, outcome=Outcome.FAILED, failure=Failure.TIMEOUT)
        assert is_suspect(record, "repo"), "one that could not be made says nothing"
        assert not is_suspect(record, "other")
        note("check", 0.4, {"read_data": "1/4"})
        begin_in_the_past()
        assert is_suspect(record, "repo"), "a quarter of the data was looked at"
        note("check", 0.3, {"read_data": "100%"})
        begin_in_the_past()
        assert not is_suspect(record, "repo")
        note("drill", 0.2, {}, outcome=Outcome.FAILED, failure=Failure.DUMP)
        begin_in_the_past()
        assert not is_suspect(record, "repo"), "a dump that does not load says nothing of the data"
        begin_in_the_past()
        (found,) = proven(record, now)
        assert not found.passed
        assert found.last_passed is not None
        assert now - found.last_passed < MONTH


def restored(
    record: Recorder, now: float, days: float, facts: Message, *, passed: bool = True
) -> None:
    """A drill of so many days ago."""
    started = now - days * DAY
    run = record.begin_run(Run(id=f"r{days}", job="job", started=started, action="drill"))
    step = record.begin_step(run, "drill", "repo")
    record.add_detail(step, facts)
    outcome = Outcome.COMPLETE if passed else Outcome.FAILED
    record.end_step(step._replace(ended=started, outcome=outcome))
    record.end_run(run._replace(outcome=outcome, exit_code=0))


def test_the_last_drill_is_compared_with_those_of_a_year_before(tmp_path: Path) -> None:
    now = time.time()
    mib = 1 << 20

    def known() -> Proven:
        (path,) = tmp_path.glob("*.db")
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(
                "UPDATE step SET started = (SELECT started FROM run WHERE number = step.run)"
            )
        (found,) = proven(record, now)
        return found

    def shown() -> str:
        return "\n".join(proven_lines((known(),), Style(colour=False), now))

    with Recorder(str(tmp_path)) as record:
        restored(record, now, 400, {"bytes": 900 * mib, "restore_seconds": 1})
        restored(record, now, 300, {"bytes": 10 * mib, "restore_seconds": 1})
        restored(record, now, 200, {"bytes": 900 * mib, "restore_seconds": 1}, passed=False)
        odd: tuple[Message, ...] = (
            {"bytes": 0, "restore_seconds": 2}, {"bytes": 10 * mib},
            {"bytes": 10 * mib, "restore_seconds": 0}, {"bytes": mib, "restore_seconds": 5e-324},
            {"bytes": "many", "restore_seconds": -1}, {"bytes": -5, "restore_seconds": 1},
        )  # fmt: skip
        for number, facts in enumerate(odd):
            restored(record, now, 190 - number, facts)
        restored(record, now, 30, {"bytes": 90 * mib, "restore_seconds": 3})
        restored(record, now, 20, {"bytes": 340 * mib, "restore_seconds": 10})
        found = known()
        assert (found.seconds, found.bytes) == (10, 340 * mib)
        assert found.bytes_per_second == 34 * mib
        assert found.earlier is None, (
            "two are too few: neither a year ago, nor failed, nor odd ones"
        )
        assert "restored in 10 s;" in shown()
        assert plain_proven(found)["earlier"] is None

        restored(record, now, 10, {"bytes": 34 * mib, "restore_seconds": 12})
        found = known()
        assert found.earlier == Earlier(3, 3, 30 * mib), "10, 30 and 34 MiB/s"
        text = "restored in 12 s at 2.8 MiB/s (median of 3 before: 30.0 MiB/s);"
        assert text in shown()
        assert plain_proven(found)["earlier"] == {
            "drills": 3, "median_seconds": 3, "median_bytes_per_second": 30 * mib,
        }  # fmt: skip
        json.dumps(plain_proven(found), allow_nan=False)
        assert Overview((), (), now, proven=(found,)).exit_code() == 0, "a slow one has not failed"

        series = render(
            Numbers(jobs=(), statuses={}, steps={}, found={}, checks=(), channels=(),
                    undelivered=(), now=now, version="1", proven=(found,))
        )  # fmt: skip
        labels = '{backup_job="job",repository="repo"}'
        assert f"capkeep_drill_restore_bytes{labels} {34 * mib}\n" in series
        assert f"capkeep_drill_restore_seconds{labels} 12\n" in series

        restored(record, now, 5, {"bytes": 0, "restore_seconds": 1})
        assert "restored in 1.0 s;" in shown(), "nothing to compare"
        restored(record, now, 4, {"bytes": 9, "restore_seconds": 1}, passed=False)
        found = known()
        assert found.bytes_per_second is None, "of one that failed, not all bytes are known"
        assert found.earlier == Earlier(4, 6.5, 20 * mib), "the mean of 3 and 10, of 10 and 30"
        assert "restored in" not in shown()


MISTAKES = """
[jobs.m]
repositories = ["r"]
include = ["/etc"]
[jobs.m.drill]
schedule = ["no; calendar"]
sample = 0
depth = "some"
max-size = "1KiB"
timeout = "1s"
always = ["passwd", "/etc/../etc"]
scratch = "/"
files = 3
[jobs.n]
repositories = ["r"]
include = ["/etc"]
[jobs.n.drill]
schedule = ["Sun 04:00"]
scratch = "/srv/drills/"
depth = "all"
"""


def test_tables_and_their_mistakes(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    etc = Etc(tmp_path.resolve())
    etc.good()
    right = MISTAKES[MISTAKES.index("[jobs.n]") :]
    etc.file("conf.d/m.toml", right)
    job = etc.load().jobs[-1]
    assert job.drill is not None
    assert (job.drill.whole, job.drill.scratch, job.drill.sample) == (True, "/srv/drills", 200)
    (table,) = [t for t in configured(etc.load()) if t.kind == "drill"]
    assert (table.unit, table.calendar) == ("drill-n", ("Sun 04:00",))
    etc.file("conf.d/m.toml", MISTAKES)
    told = sorted((m.line, m.key, m.problem, m.hint) for m in etc.mistakes())
    expected = [
        (6, "jobs.m.drill.schedule[0]", "not a calendar", "03:00"),
        (7, "jobs.m.drill.sample", "at least 1", "1 or more"),
        (8, "jobs.m.drill.depth", "sample", ""),
        (9, "jobs.m.drill.max-size", "1 MiB", "1GiB"),
        (10, "jobs.m.drill.timeout", "a minute", "6h"),
        (11, "jobs.m.drill.always[0]", "absolute", "/etc/passwd"),
        (11, "jobs.m.drill.always[1]", "..", "/etc/passwd"),
        (12, "jobs.m.drill.scratch", "absolute", "/srv/drills"),
        (13, "jobs.m.drill.files", "unknown key", ""),
    ]
    for (line, key, problem, hint), found in zip(expected, told, strict=True):
        assert found[:2] == (line, key)
        assert problem in found[2]
        assert hint in found[3]
