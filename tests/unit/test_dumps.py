"""What dumps make of what servers say, and how they are put in their place."""

import os
from pathlib import Path

import pytest

from capkeep.rooms.dumps import staging
from capkeep.rooms.dumps.base import file_name
from capkeep.rooms.dumps.mariadb import account
from capkeep.rooms.dumps.staging import Staging


def test_no_name_of_a_user_ends_its_quotation() -> None:
    def said(user: str, host: str) -> str:
        return account(f"{user.encode().hex()}\t{host.encode().hex()}")

    assert said("ada", "%") == "'ada'@'%'"
    assert said("", "") == "''@''"
    assert said("it's", "h") == "'it''s'@'h'"
    assert said("\\'; DROP DATABASE shop; -- ", "h") == "'\\\\''; DROP DATABASE shop; -- '@'h'"
    assert said("a\nb\rc\0d\x1ae\u2028", "h") == "'a\\nb\\rc\\0d\\Ze\u2028'@'h'"


def test_a_long_name_is_cut_and_stays_the_only_one() -> None:
    name = "\u5e93" * 64  # as long as MySQL lets a database's name be
    first, second = file_name(name, ".sql"), file_name(name[:-1] + "\u8868", ".sql")
    assert first.startswith("%E5%BA%93")
    assert first.endswith(".sql")
    assert len(first) < 255
    assert first != second
    assert file_name("a" * 200, ".sql") == "a" * 200 + ".sql"


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Staging:
    """On a filesystem that cannot exchange, with a dump that is good."""
    monkeypatch.setattr(staging, "_RENAMEAT2", {})
    place = Staging(str(tmp_path))
    written(place, "first")
    place.keep()
    return place


def written(place: Staging, text: str) -> None:
    place.begin()
    fd = place.make("dump")
    os.write(fd, text.encode())
    os.close(fd)


def test_a_dump_takes_its_place_where_nothing_can_be_exchanged(
    simple: Staging, tmp_path: Path
) -> None:
    written(simple, "second")
    simple.keep()
    assert (tmp_path / "last/dump").read_text() == "second"
    assert os.listdir(tmp_path) == ["last"]


@pytest.mark.parametrize("when", [1, 2])
def test_who_is_killed_there_leaves_one_good_dump_and_nothing_for_ever(
    simple: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    written(simple, "second")
    calls: list[str] = []
    rename = os.rename

    def dies(source: str, target: str) -> None:
        rename(source, target)
        calls.append(target)
        if len(calls) == when:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        simple.keep()
    monkeypatch.undo()
    simple.begin()
    simple.drop()
    assert os.listdir(tmp_path) == ["last"]
    assert (tmp_path / "last/dump").read_text() == ("first" if when == 1 else "second")
