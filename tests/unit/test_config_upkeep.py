"""The tables check and retention: what they mean, and how mistakes in them are told."""

from pathlib import Path

import pytest

from capkeep.config.read_data import ReadData, read_read_data
from capkeep.config.settings import as_toml
from capkeep.values import ValueMistake
from tests.unit.test_config_load import Etc


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    tmp_path.chmod(0o755)
    return Etc(tmp_path.resolve())


def test_tables_of_a_job_and_of_the_defaults(etc: Etc) -> None:
    etc.good()
    etc.file("conf.d/a.toml", """
[defaults.check]
read-data = "rotate 30d"
[defaults.retention]
keep-daily = 7
keep-within = "2d"
[jobs.b]
include = ["/b"]
repositories = ["r"]
check.schedule = ["Sun 04:00"]
[jobs.b.retention]
keep-last = 3
keep-tags = ["before-upgrade"]
prune = false
""")  # fmt: skip
    first, second = etc.load().jobs
    assert first.check is not None
    assert (first.check.after_backup, first.check.schedule) == (True, ())
    assert first.check.read_data == ReadData(rotate_seconds=30 * 86400)
    assert first.retention is not None
    assert (first.retention.keep.daily, first.retention.keep.within_seconds) == (7, 2 * 86400)
    assert first.retention.prune
    assert second.check is not None
    assert (second.check.after_backup, second.check.schedule) == (False, ("Sun 04:00",))
    assert second.retention is not None
    assert (second.retention.keep.last, second.retention.keep.daily) == (3, 0)
    assert second.retention.keep.tags == ("before-upgrade",)
    assert not second.retention.prune
    shown = as_toml(etc.load())
    assert 'check.read-data = "rotate 30d"' in shown
    assert "retention.keep-last = 3" in shown


@pytest.mark.parametrize(
    "text, part",
    [
        ("", ""),
        ("all", "all"),
        ("10%", "10%"),
        ("5G", "5120M"),
        ("512M", "512M"),
        ("1.5G", "1536M"),
    ],
)
def test_read_data(text: str, part: str) -> None:
    assert read_read_data(text) == ReadData(part)
    assert read_read_data("rotate 2w").rotate_seconds == 14 * 86400


@pytest.mark.parametrize("text", ["some", "0%", "101%", "1K", "rotate", "rotate 1h", "-5%", 10])
def test_read_data_that_is_none(text: object) -> None:
    with pytest.raises(ValueMistake):
        read_read_data(text)


MISTAKES = """
[jobs.m]
repositories = ["r"]
include = ["/etc"]
tags = ["capkeep:j"]
[jobs.m.check]
read-data = "a bit"
schedule = ["03:00", "no; calendar"]
readdata = "10%"
[jobs.m.retention]
keep-dayly = 3
keep-last = -1
keep-tags = ["a,b"]
[jobs.n]
repositories = ["r"]
include = ["/etc"]
check.after-backup = false
[jobs.n.retention]
prune = false
"""


def test_mistakes_are_told_with_line_key_and_hint(etc: Etc) -> None:
    etc.good()
    etc.file("conf.d/m.toml", MISTAKES)
    told = [(m.line, m.key, m.problem, m.hint) for m in etc.mistakes()]
    expected = [
        (5, "jobs.m.tags[0]", "capkeep's own", "another"),
        (7, "jobs.m.check.read-data", "no part", "rotate 30d"),
        (8, "jobs.m.check.schedule[1]", "not a calendar", "03:00"),
        (9, "jobs.m.check.readdata", "unknown key", "read-data?"),
        (11, "jobs.m.retention.keep-dayly", "unknown key", "keep-daily?"),
        (12, "jobs.m.retention.keep-last", "at least 0", "0 or more"),
        (13, "jobs.m.retention.keep-tags[0]", "no tag of yours", "one tag"),
        (17, "jobs.n.check.after-backup", "nothing ever checks", "schedule"),
        (18, "jobs.n.retention", "what to keep", "keep-daily"),
    ]
    for (line, key, problem, hint), found in zip(expected, sorted(told), strict=True):
        assert found[:2] == (line, key)
        assert problem in found[2]
        assert hint in found[3]
