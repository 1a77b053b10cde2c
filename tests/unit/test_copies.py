"""Copies: what the table means, how mistakes in it are told, and which snapshots are wanted."""

from pathlib import Path

import pytest

from capkeep.engines.base import Call, Snapshot
from capkeep.engines.restic import ENGINE
from capkeep.plan.model import Copy, Job
from capkeep.plan.timetable import timetables
from capkeep.rooms.copier import mark, snapshots_of, wanted_of
from capkeep.values import Keep
from tests.unit.test_config_load import Etc

TABLES = """
[repositories.away]
engine = "restic"
location = "sftp:u@example.org:/away"
password = { file = "p" }
options.identity = { file = "p" }
options.known-hosts = "/etc/hosts"
[jobs.j.copies]
into = ["away"]
"""


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    tmp_path.chmod(0o755)
    return Etc(tmp_path.resolve())


def with_tables(etc: Etc, text: str) -> None:
    secret = etc.file("p", "x", 0o600)
    etc.good(text.replace('"p"', f'"{secret}"'))


def test_the_table_of_a_job(etc: Etc) -> None:
    with_tables(etc, TABLES + 'keep-last = 3\nschedule = ["Sun 06:00"]\n')
    config = etc.load()
    assert not [r for r in config.remarks if "away" in r.problem], "a job uses it"
    found = config.jobs[0].copies
    assert found is not None
    assert (found.origin, found.targets, found.after_backup) == ("r", ("away",), False)
    assert (found.keep.last, found.schedule) == (3, ("Sun 06:00",))


MISTAKES = {
    'into = ["away"]': ("", ""),
    "into = []": ("copies.into", "into which repository"),
    'into = ["awya"]': ("copies.into[0]", "there is no repository 'awya'"),
    'into = ["r"]': ("copies.into[0]", "backs up into r itself"),
    'into = ["away", "away"]': ("copies.into[1]", "named twice"),
    'into = ["away"]\nrepository = "away"': ("copies.repository", "does not back up into 'away'"),
    'into = ["away"]\nafter-backup = false': ("copies.after-backup", "nothing is ever copied"),
    'into = ["away"]\nschedule = ["someday"]': ("copies.schedule[0]", "someday"),
    'into = ["away"]\nkeep-within = "1m"': ("copies.keep-within", "less than any backup"),
    'into = ["away"]\nkeep-tags = ["a,b"]': ("copies.keep-tags[0]", "no tag of yours"),
    'from = "r"\ninto = ["away"]': ("copies.from", "unknown key"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_told_by_their_key(etc: Etc, text: str) -> None:
    with_tables(etc, TABLES.replace('into = ["away"]', text))
    key, problem = MISTAKES[text]
    if not key:
        etc.load()
        return
    told = [m for m in etc.mistakes() if m.key == f"jobs.j.{key}"]
    assert [m for m in told if problem in m.problem], etc.mistakes()
    assert all(m.hint and m.line for m in told)


def test_what_cannot_copy_is_refused(etc: Etc) -> None:
    with_tables(etc, TABLES.replace(
        'engine = "restic"\nlocation = "sftp:u@example.org:/away"', 'engine = "borg"\nlocation = "/b"'
    ).replace('options.identity = { file = "p" }\noptions.known-hosts = "/etc/hosts"\n', ""))  # fmt: skip
    (told,) = [m for m in etc.mistakes() if "copies" in m.key]
    assert "repositories of the same engine" in told.problem
    assert 'repositories = ["r", "away"]' in told.hint
    with_tables(etc, TABLES.replace("options.identity", "engine-network = true\n#"))
    told = next(m for m in etc.mistakes() if "copies" in m.key)
    assert "both passwords" in told.problem


def test_copies_have_times_of_their_own() -> None:
    copies = Copy("disk", ("away",), after_backup=False, schedule=("Sun 06:00",))
    job = Job("a", ("disk",), ("/etc",), copies=copies)
    (table,) = timetables(job)
    assert (table.kind, table.unit) == ("copy", "copy-a")
    assert table.request == {"action": "copy", "jobs": ["a"]}
    assert not copies.keep.chooses()
    assert Keep(tags=("x",)).chooses()


def snapshot(number: int, *tags: str, host: str = "h", paths: tuple[str, ...] = ()) -> Snapshot:
    time = f"2026-11-{number:02}T12:00:00Z"
    return Snapshot(f"{number:064x}", time, host, "u", paths, tags)


def test_which_snapshots_are_wanted() -> None:
    job = Job("a", ("disk",), (), host="h", dumps=("db",))
    own = [snapshot(n, "capkeep:a") for n in (1, 2, 3)]
    streamed = [snapshot(n, "capkeep:a:db", paths=(f"/db.{n % 2}",)) for n in (4, 5, 6)]
    others = [snapshot(7, "capkeep:b"), snapshot(8, "capkeep:a", host="other"), snapshot(9)]
    groups = snapshots_of(job, tuple(own + streamed + others))
    assert sorted(len(group) for group in groups) == [1, 2, 3]
    every = Copy("disk", ("away",))
    assert set(wanted_of(groups, every, frozenset())) == {*own, *streamed}
    newest = wanted_of(groups, every._replace(keep=Keep(last=1)), frozenset(s.id for s in own))
    assert {s.id for s in newest} == {own[2].id, streamed[1].id, streamed[2].id}
    # As with retention a partial one does not stand for a day that has a complete one.
    known = frozenset(s.id for s in own[:2])
    assert own[1] in wanted_of(groups, every._replace(keep=Keep(last=1)), known)


def test_one_that_claims_to_be_a_copy_of_another_is_none() -> None:
    honest = snapshot(1, "capkeep:a")._replace(tree="aa")
    copy = honest._replace(id="f" * 64, original=honest.id)
    assert mark(copy) == mark(honest)
    assert mark(copy._replace(tree="bb")) != mark(honest)
    assert mark(copy._replace(time="2026-11-02T12:00:00Z")) != mark(honest)


def test_restic_is_told_which_repository_is_which() -> None:
    call = Call("/restic", "/far", "/c", "/t", "ours", relay=("/py", "relay", "3", "6"))
    origin = call._replace(origin=True, password="theirs")
    command = ENGINE.copy(call, origin, ("aa", "bb"))
    assert command is not None
    assert command.argv[-5:] == ("copy", "--from-repo=rclone:origin:", "--", "aa", "bb")
    env = dict(command.env)
    assert env["RESTIC_REPOSITORY"] == "rclone:capkeep:"
    assert (env["RESTIC_PASSWORD"], env["RESTIC_FROM_PASSWORD"]) == ("ours", "theirs")
    listing = ENGINE.snapshots(origin)
    assert dict(listing.env)["RESTIC_REPOSITORY"] == "rclone:origin:"
    made = ENGINE.init_alike(call, origin)
    assert made is not None
    assert "--copy-chunker-params" in made.argv
