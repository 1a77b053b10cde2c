"""What `status`, `history` and `log` print, and the exit codes that monitoring reads."""

import json
import os
import time
from pathlib import Path

import pytest

from capkeep.cli.main import main
from capkeep.errors import Failure, UsageError
from capkeep.records.judge import State, Verdict
from capkeep.records.locks import Holder, JobLock
from capkeep.records.logs import LogWriter
from capkeep.records.model import Finding, FindingKind, Outcome, Proof, Run, Totals
from capkeep.records.store import Recorder
from capkeep.records.upkeep import Upkeep
from capkeep.report.nagios import answer
from capkeep.report.status import JobReport, Overview

HOUR = 3600.0
EVIL = os.fsdecode(b"/\x1b[2J\xff")


class Host:
    """A prefix with a record in it, and the command line on it."""

    def __init__(self, prefix: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.prefix = prefix
        self.capture = capture
        self.records = f"{prefix}/state/records"
        os.makedirs(self.records)
        os.makedirs(f"{prefix}/log")

    def plan(self, **jobs: int) -> None:
        plain = {"version": 1, "jobs": [{"name": j, "max_age_seconds": a} for j, a in jobs.items()]}
        Path(self.prefix, "state/plan.json").write_text(json.dumps(plain), encoding="utf-8")

    def ran(self, run_id: str, job: str, hours: float, outcome: Outcome, **fields: object) -> Run:
        run = Run(run_id, job, time.time() - hours * HOUR, trigger_uid=1000, trigger_user="alice")
        with Recorder(self.records) as recorder:
            run = recorder.begin_run(run._replace(**fields))
            step = recorder.begin_step(run, run.action, "offsite")
            recorder.add_proof(step, Proof(f"reader-{job}", "engine", '{"uids": [1, 990]}'))
            recorder.add_findings(step, [Finding(FindingKind.UNREADABLE, EVIL, "denied", "x")])
            totals = Totals(total_files=1234, bytes_processed=5 << 30)
            recorder.end_step(step._replace(outcome=outcome, totals=totals, text=f"{job} text"))
            return recorder.end_run(run._replace(outcome=outcome, text=f"{job} text"))

    def say(self, *words: str) -> tuple[int, str]:
        code = main(["--prefix", str(self.prefix), *words])
        return code, self.capture.readouterr().out


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, capsys)


def test_nothing_at_all(host: Host) -> None:
    code, out = host.say("status")
    assert code == 0
    assert "no job has run" in out
    assert host.say("history") == (0, "nothing has run yet\n")
    with pytest.raises(UsageError, match="nothing has run yet"):
        host.say("log")


def test_every_job_of_the_plan_is_shown_and_judged(host: Host) -> None:
    host.plan(system=36 * 3600, home=36 * 3600, media=36 * 3600, new=0)
    host.ran("r1", "system", 2, Outcome.COMPLETE)
    host.ran("r2", "home", 40, Outcome.COMPLETE)
    host.ran("r3", "media", 3, Outcome.PARTIAL)
    host.ran("r4", "gone", 3, Outcome.FAILED)
    code, out = host.say("status")
    assert code == 1
    lines = out.splitlines()
    assert lines[0].split() == ["job", "state", "last", "run", "last", "complete", "size", "files"]
    assert lines[1] == "system  fresh    complete 2 h ago   2 h ago        5.0 GiB  1,234"
    assert lines[2].split()[:2] == ["home", "late"]
    assert lines[3].split()[:2] == ["media", "partial"]
    assert lines[4].split() == ["new", "never", "never", "never", "-", "-"]
    assert "  home: the last complete backup is older than promised (max-age 36 h)" in lines
    assert "  media: media text" in lines
    assert "  new: it has never run" in lines
    assert "gone" not in out, "the plan no longer has it"


@pytest.mark.parametrize(
    "jobs,expected",
    [(["system"], 0), (["system", "media"], 3), (["media", "home"], 1), (["gone"], 1)],
)
def test_exit_codes_for_monitoring(host: Host, jobs: list[str], expected: int) -> None:
    host.plan(system=36 * 3600, home=36 * 3600, media=36 * 3600)
    host.ran("r1", "system", 2, Outcome.COMPLETE)
    host.ran("r2", "home", 40, Outcome.COMPLETE)
    host.ran("r3", "media", 3, Outcome.PARTIAL)
    host.ran("r4", "gone", 3, Outcome.FAILED)
    code, out = host.say("status", *jobs, "--json")
    plain = json.loads(out)
    assert code == expected == plain["exit_code"]
    assert [job["job"] for job in plain["jobs"]] == jobs


def test_json_says_it_all(host: Host) -> None:
    host.plan(system=7200)
    host.ran("r1", "system", 1, Outcome.COMPLETE)
    host.ran("c1", "", 1, Outcome.FAILED, action="check")
    code, out = host.say("--json", "status")
    plain = json.loads(out)
    assert code == 1, "a repository whose check failed is no place to restore from"
    (job,) = plain["jobs"]
    assert job["state"] == "fresh"
    assert job["max_age_seconds"] == 7200
    assert 3600 <= job["age_seconds"] < 3700
    assert job["last"]["id"] == job["last_complete"]["id"] == "r1"
    assert job["totals"]["total_files"] == 1234
    assert job["running"] is None
    (check,) = plain["checks"]
    assert (check["repository"], check["outcome"]) == ("offsite", "failed")


def test_what_the_plan_no_longer_has_is_nobody_s_alarm(host: Host) -> None:
    """Drills of a job that is gone, and checks of a repository that is, are history."""
    host.ran("r1", "system", 1, Outcome.COMPLETE)
    host.ran("c1", "", 1, Outcome.FAILED, action="check")
    host.ran("d1", "system", 1, Outcome.FAILED, action="drill")

    def plan(repository: str, job: str) -> None:
        one = {"name": job, "max_age_seconds": 7200, "repositories": [repository]}
        plain = {"version": 1, "jobs": [one], "repositories": [{"name": repository}]}
        Path(host.prefix, "state/plan.json").write_text(json.dumps(plain), encoding="utf-8")

    plan("offsite", "system")
    assert host.say("status")[0] == 1
    assert host.say("status", "system")[0] == 1, "its drill failed"
    code, line = host.say("status", "--nagios", "system")
    assert (code, "the drill of system in offsite failed" in line) == (2, True)
    plan("new", "system")
    assert host.say("status")[0] == 0
    assert host.say("status", "--nagios")[0] == 0


def test_a_suspect_repository_is_critical() -> None:
    suspect = Upkeep("offsite", suspect=True, within=0, coverage=None, retention=None, held="")
    job = JobReport(Verdict("system", State.FRESH, "", 5.0), 0, None)
    code, line = answer(Overview((job,), (), 1.0, upkeep=(suspect,)))
    assert (code, "offsite is suspect" in line) == (2, True)


def test_without_a_plan_the_record_is_all_there_is(host: Host) -> None:
    host.ran("r1", "system", 2000, Outcome.COMPLETE)
    host.ran("c1", "", 1, Outcome.COMPLETE, action="check")
    code, out = host.say("status")
    assert code == 0
    assert "system  fresh" in out
    assert out.splitlines()[-1].startswith("offsite     complete    ")


def test_a_plan_that_is_none_does_not_end_it(host: Host) -> None:
    Path(host.prefix, "state/plan.json").write_text("[]", encoding="utf-8")
    host.ran("r1", "system", 1, Outcome.COMPLETE)
    assert main(["--prefix", str(host.prefix), "status"]) == 0
    assert "the plan cannot be read" in host.capture.readouterr().err


def test_a_running_and_an_interrupted_run(host: Host) -> None:
    host.plan(system=0)
    with Recorder(host.records) as recorder:
        recorder.begin_run(Run("r1", "system", time.time() - 60, trigger_user="alice"))
    with JobLock(host.records, "system") as lock:
        lock.acquire(Holder("system", "r1", 1000, "alice", 1.0, 1))
        code, out = host.say("status")
        assert code == 1
        assert "system  running" in out
        assert "running for 1 min 0" in out
        assert "asked for by alice [run r1]" in out
        assert " running " in host.say("history")[1]
    code, out = host.say("status")
    assert code == 1
    assert "system: backup interrupted: the run ended without a word" in out
    assert "failed (interrupted)" in host.say("history")[1]


def test_unknown_jobs_and_runs_are_usage_errors(host: Host) -> None:
    host.plan(system=0)
    for words in (("status", "sytem"), ("history", "sytem"), ("log", "sytem")):
        with pytest.raises(UsageError, match="sytem"):
            host.say(*words)
    assert host.say("history", "system") == (0, "nothing has run yet\n")


def test_history(host: Host) -> None:
    for number in range(5):
        host.ran(f"r{number}", ("system", "home")[number % 2], 5 - number, Outcome.COMPLETE)
    code, out = host.say("history", "system", "--limit", "2")
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["r4", "system", "backup", "complete"], ["r2", "system", "backup", "complete"],
    ]  # fmt: skip
    plain = json.loads(host.say("history", "--json")[1])
    assert [run["id"] for run in plain] == ["r4", "r3", "r2", "r1", "r0"]
    assert plain[0]["steps"][0]["totals"]["bytes_processed"] == 5 << 30
    with pytest.raises(SystemExit):
        host.say("history", "--limit", "0")


def test_the_log_of_a_run(host: Host) -> None:
    host.ran("r1", "home", 2, Outcome.COMPLETE)
    host.ran("r2", "system", 1, Outcome.FAILED, failure=Failure.NO_SPACE)
    with LogWriter(f"{host.prefix}/log", "r2") as log:
        log.write({"event": "unreadable", "path": EVIL, "cause": "denied", "room": "reader"})
        log.write({"event": "proof", "process": "engine", "facts": {}, "room": "reader"})
    code, out = host.say("log", "system")
    assert code == 0
    assert out.startswith("backup of system: failed (no-space)  [run r2 in ")
    assert "\x1b" not in out
    assert out.count(r"/\x1b[2J\xff") == 2, "in the summary and in the log"
    assert "own namespaces" in out
    assert "bounding" in host.say("log", "r2", "--proof")[1]
    assert host.say("log")[1].startswith("backup of system")
    assert [json.loads(line)["event"] for line in host.say("log", "r2", "--json")[1].splitlines()] == [
        "unreadable", "proof",
    ]  # fmt: skip
    assert main(["--prefix", str(host.prefix), "log", "r1"]) == 0
    assert "not kept any more" in host.capture.readouterr().err
