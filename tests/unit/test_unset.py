"""What is told of attributes that could not be set."""

import json
from types import SimpleNamespace
from typing import cast

from capkeep.engines import ENGINES
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.protocol import Message
from capkeep.rooms.unset import NAMES_TOLD, OTHERS, PATHS_TOLD, UnsetReader


def said(unset: UnsetReader) -> list[Message]:
    told: list[Message] = []
    unset.tell(cast("EngineRoom", SimpleNamespace(tell=told.append)))
    return told


def reader(*attributes: str) -> UnsetReader:
    """By one attribute of one file after another, in rdiff-backup's words."""
    unset = UnsetReader(ENGINES["rdiff-backup"].read_restore(), "/back")
    for number, name in enumerate(attributes):
        line = {"unset": f"/{number}", "attribute": name, "detail": "Operation not permitted"}
        assert unset.feed("stdout", json.dumps(line).encode()) == ()
    return unset


def test_many_files_are_one_number_and_the_first_few_of_them() -> None:
    unset = reader(*["security.selinux"] * 12_345, "user.note")
    assert unset.words.endswith("security.selinux of 12345 files, user.note of 1 file")
    assert [m["path"] for m in said(unset)] == ["/0", "/1", "/2", "/12345"]
    assert "restorecon -R /back" in unset.hint


def test_a_snapshot_with_ever_new_names_does_not_fill_the_memory() -> None:
    unset = reader(*(f"user.{number}" for number in range(1000)))
    assert f"{OTHERS} of {1000 - NAMES_TOLD} files" in unset.words
    assert len(said(unset)) == NAMES_TOLD + PATHS_TOLD
    assert len(reader("user." + "x" * 100_000).words) < 300


def test_nothing_is_said_of_nothing() -> None:
    assert reader().words == "" and not said(reader())


def test_borg_names_them_too_and_does_not_blame_its_repository() -> None:
    unset = UnsetReader(ENGINES["borg"].read_restore(), "/back")
    line = {"type": "attribute", "path": "srv/a", "name": "security.ima", "message": "No"}
    assert unset.feed("stderr", json.dumps(line).encode()) == () == unset.tail
    assert said(unset) == [
        {"event": "difference", "path": "/srv/a",
         "detail": "attribute security.ima could not be set: no"},
    ]  # fmt: skip
