"""What was listed once: it is believed only of names that are there, and whole."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from capkeep.engines.base import Snapshot
from capkeep.report.snapshots import show_snapshots
from capkeep.rooms.calls import Caller
from capkeep.rooms.keeper import in_a_message
from capkeep.rooms.listing import remember, remembered
from capkeep.rooms.protocol import MAX_LINE, encode


def caller(folder: Path) -> Caller:
    """Of whom only the place for its note is used."""
    return cast("Caller", SimpleNamespace(call=SimpleNamespace(cache_dir=str(folder))))


def snapshot(mark: str, path: str) -> Snapshot:
    time = "2026-11-20T12:00:00+00:00"
    return Snapshot(mark * 64, time, "host", "", (path,), ("capkeep:job:dump",))


def test_what_tells_streamed_files_apart_is_remembered(tmp_path: Path) -> None:
    listed = (snapshot("a", "/dump.shop"), snapshot("b", "/dump.mail"))
    remember(caller(tmp_path), listed)
    names = frozenset(s.id for s in listed)
    found = remembered(caller(tmp_path), names, ())
    assert found is not None
    assert {(s.id, s.paths) for s in found} == {(s.id, s.paths) for s in listed}


def test_a_new_one_is_what_it_is_only_by_its_whole_name(tmp_path: Path) -> None:
    known, foreign = snapshot("a", "/x"), snapshot("b", "/y")
    remember(caller(tmp_path), (known,))
    names = frozenset((known.id, foreign.id))
    claimed = foreign._replace(id=foreign.id[:8])
    assert remembered(caller(tmp_path), names, (claimed,)) is None
    assert remembered(caller(tmp_path), names, (foreign,)) is not None


def test_what_is_not_there_any_more_is_forgotten(tmp_path: Path) -> None:
    remember(caller(tmp_path), (snapshot("a", "/x"), snapshot("b", "/y")))
    found = remembered(caller(tmp_path), frozenset(("a" * 64,)), ())
    assert [s.id for s in found or ()] == ["a" * 64]


def test_a_snapshot_with_endless_labels_keeps_no_list_from_anybody() -> None:
    evil = "\udcff" * 5_000
    one = Snapshot(evil, evil, evil, evil, (evil,) * 1_000, (evil,) * 1_000, evil, evil, name=evil)
    message = in_a_message(one)
    assert (
        len(encode({"event": "snapshot", "snapshot": message, "repository": "r" * 32})) < MAX_LINE
    )
    assert message["paths"] == [*one.paths[:13], "… and 987 more"]
    usual = snapshot("a", "/srv")
    assert in_a_message(usual)["paths"] == ["/srv"]


def test_no_word_of_an_engine_s_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x07"
    row = {"id": evil, "time": evil, "host": evil, "paths": [evil]}
    show_snapshots({"r": [row]}, as_json=False)
    assert capsys.readouterr().out.replace("\n", "").isprintable()
