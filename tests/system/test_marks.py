"""What monitoring finds after a run: stamps, metrics and the answer of a plugin."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from capkeep.records.reader import RecordReader
from tests.rooms.house import STRANGER, UIDS, RoomKind
from tests.system.conftest import Product
from tests.system.outside import until
from tests.system.test_notify import break_job

SCHEDULED = """[jobs.job.check]
schedule = ["Sun 04:00"]
read-data = "rotate 30d"
[jobs.job]
schedule = ["03:30"]
"""
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def with_metrics(product: Product) -> Path:
    folder = Path(product.home.base, "metrics")
    product.configure("[engines.restic]", f'[metrics]\ndirectory = "{folder}"\n[engines.restic]')
    # The doors take the new plan over; a runner that waits has the old one before its eyes.
    until(lambda: "a new plan" in product.home.said())
    return folder / "capkeep.prom"


def samples(path: Path) -> Samples:
    text = path.read_text()
    if tool := shutil.which("promtool"):
        subprocess.run([tool, "check", "metrics"], input=text, text=True, check=True, timeout=60)
    return {
        (s.name.removeprefix("capkeep_"), frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_the_stamp_moves_with_complete_backups_alone(product: Product) -> None:
    stamp = Path(product.home.places.stamps, "job")
    assert product("run", "--dry-run").code == 0
    assert product("check").code == 0
    assert not stamp.exists()
    before = time.time()
    assert product("run").code == 0
    with RecordReader(product.home.places.records) as records:
        run = records.last_complete("job")
    assert run is not None
    first = stamp.read_text()
    assert first.split() == [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.started)), run.id]
    state = stamp.stat()
    assert abs(state.st_mtime - run.started) < 0.001
    assert before <= state.st_mtime <= time.time()
    assert state.st_mode & 0o777 == 0o644
    break_job(product)
    assert product("run").code == 3
    assert stamp.read_text() == first
    read = subprocess.run(
        ["cat", stamp], user=STRANGER, group=STRANGER, extra_groups=[], capture_output=True,
        timeout=20, check=True,
    ).stdout  # fmt: skip
    assert read.decode() == first, "anybody may read it"


def test_metrics_say_what_the_record_says(product: Product) -> None:
    product.configure("[jobs.job]\n", SCHEDULED)
    path = with_metrics(product)
    assert product("run").code == 0
    until(path.exists)
    found = samples(path)
    for action, days in (("backup", 1), ("check", 7)):
        due = value(found, "next_run_timestamp_seconds", backup_job="job", action=action)
        assert time.time() - 60 < due < time.time() + days * 86400 + 7200
        assert time.localtime(due)[3:5] == {"backup": (3, 30), "check": (4, 0)}[action]
    assert value(found, "check_rotation_seconds", repository="repo") == 30 * 86400
    assert value(found, "check_coverage_ratio", repository="repo") == 0
    assert value(found, "run_outcome", backup_job="job", action="backup", outcome="complete") == 1
    assert value(found, "run_outcome", backup_job="job", action="backup", outcome="partial") == 0
    assert value(found, "run_exit_code", backup_job="job", action="backup") == 0
    assert 0 < value(found, "run_duration_seconds", backup_job="job", action="backup") < 60
    assert value(found, "backup_unreadable_paths", backup_job="job", repository="repo") == 0
    assert value(found, "backup_files", backup_job="job", repository="repo") >= 1
    complete = value(found, "job_last_complete_timestamp_seconds", backup_job="job")
    assert abs(complete - time.time()) < 60
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_uid == UIDS[RoomKind.RUNNER]
    break_job(product)
    assert product("run").code == 3
    until(lambda: value(samples(path), "run_exit_code", backup_job="job", action="backup") == 3)
    found = samples(path)
    assert value(found, "run_outcome", backup_job="job", action="backup", outcome="partial") == 1
    assert value(found, "job_last_complete_timestamp_seconds", backup_job="job") == complete
    assert product("check", "--job", "job").code == 0
    until(lambda: ("check_success", frozenset({("repository", "repo")})) in samples(path))
    found = samples(path)
    assert value(found, "check_success", repository="repo") == 1
    assert 0 < value(found, "check_coverage_ratio", repository="repo") <= 1
    assert value(found, "repository_suspect", repository="repo") == 0
    assert [p.name for p in path.parent.iterdir()] == ["capkeep.prom"]


def test_a_directory_for_metrics_that_is_gone_or_closed_stops_no_backup(product: Product) -> None:
    path = with_metrics(product)
    assert product("run").code == 0
    until(path.exists)
    shutil.rmtree(path.parent)
    assert product("run").code == 0
    path.parent.mkdir(mode=0o700)
    assert product("run").code == 0
    assert not path.exists()
    os.chown(path.parent, UIDS[RoomKind.RUNNER], -1)
    assert product("run").code == 0
    until(path.exists)


def test_apply_leaves_a_directory_that_is_there_as_it_is(product: Product) -> None:
    folder = Path(product.home.base, "metrics")
    folder.mkdir(mode=0o2775)
    os.chown(folder, 12345, UIDS[RoomKind.RUNNER])
    with_metrics(product)
    assert folder.stat().st_uid == 12345


def test_a_monitoring_plugin_gets_its_line_and_code(product: Product) -> None:
    nothing = product("status", "--nagios")
    assert (nothing.code, nothing.out[:17]) == (1, "CAPKEEP WARNING -"), nothing
    assert product("run").code == 0
    good = product("status", "--nagios")
    assert good.code == 0, good
    line, bar, numbers = good.out.strip().partition(" | ")
    assert line.startswith("CAPKEEP OK - 1 job is fresh")
    assert bar
    parts = dict(part.split("=", 1) for part in numbers.split())
    assert parts.keys() == {"'job_age'", "'job_files'", "'job_size'", "'job_duration'"}
    assert parts["'job_age'"].endswith(";0")
    assert "\n" not in good.out.rstrip("\n")
    break_job(product)
    assert product("run").code == 3
    bad = product("status", "--nagios")
    assert (bad.code, bad.out[:18]) == (2, "CAPKEEP CRITICAL -"), bad
    assert "job is partial" in bad.out
    unknown = product("status", "--nagios", "nobody")
    assert (unknown.code, unknown.out[:17]) == (3, "CAPKEEP UNKNOWN -"), unknown
    refused = product("status", "--nagios", uid=STRANGER, group=STRANGER)
    assert refused.code == 3, refused
