"""Objects get their names at once or not at all, also where the newer ways do not exist."""

import os
from pathlib import Path

import pytest

from capkeep.errors import Failure
from capkeep.rooms.rest.directory import (
    DirectoryStore,
    explain,
    rename_noreplace,
)
from capkeep.rooms.rest.names import Name
from capkeep.rooms.rest.store import AlreadyThere, NotThere, StoreError

NAME = Name("data", "ab" * 32)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore(str(tmp_path), 0)
    made.create()
    return made


@pytest.mark.parametrize("anonymous", [True, False])
def test_the_second_of_two_uploads_of_a_name_is_turned_away(
    store: DirectoryStore, anonymous: bool
) -> None:
    store.anonymous = anonymous
    first, second = store.write(NAME, 3), store.write(NAME, 3)
    for upload in (first, second):
        upload.write(memoryview(b"abc"))
    assert store.size(NAME) is None
    first.commit()
    with pytest.raises(AlreadyThere):
        second.commit()
    assert store.size(NAME) == 3
    assert not os.path.isdir(f"{store.root}/tmp") or os.listdir(f"{store.root}/tmp") == []


@pytest.mark.parametrize("anonymous", [True, False])
def test_an_upload_given_up_leaves_nothing(store: DirectoryStore, anonymous: bool) -> None:
    store.anonymous = anonymous
    upload = store.write(NAME, 3)
    upload.write(memoryview(b"abc"))
    upload.abort()
    upload.abort()
    assert store.size(NAME) is None
    assert not os.path.isdir(f"{store.root}/tmp") or os.listdir(f"{store.root}/tmp") == []


def test_a_living_writers_waiting_file_is_not_swept(store: DirectoryStore) -> None:
    store.anonymous = False
    upload = store.write(NAME, 3)
    store.preflight()
    upload.write(memoryview(b"abc"))
    upload.commit()
    assert store.size(NAME) == 3


def test_renaming_replaces_nothing(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    with pytest.raises(FileExistsError):
        rename_noreplace(str(one), str(two))
    rename_noreplace(str(one), str(tmp_path / "three"))
    assert two.read_text() == "2"
    assert not one.exists()


def test_what_is_announced_counts_as_used(tmp_path: Path) -> None:
    state = os.statvfs(tmp_path)
    free = state.f_bavail * state.f_frsize
    store = DirectoryStore(str(tmp_path), free // 4)
    store.create()
    half = free // 2  # one leaves twice the floor, two leave nothing
    held = store.write(NAME, half)
    with pytest.raises(StoreError) as caught:
        store.write(Name("data", "cd" * 32), half)
    assert caught.value.failure is Failure.NO_SPACE
    held.abort()
    store.write(Name("data", "cd" * 32), half).abort()


def test_a_repository_does_not_grow_beyond_its_quota(tmp_path: Path) -> None:
    """What a file takes of the disk counts, and that it is there: many empty ones take much."""
    DirectoryStore(str(tmp_path), 0).create()
    other, block, quota = Name("data", "cd" * 32), 4096, 5 * 4096
    store = DirectoryStore(str(tmp_path), 0, quota)
    upload = store.write(NAME, block)
    with pytest.raises(StoreError, match="may have 20KiB, and would have more"):
        store.write(other, 3 * block + 1)
    upload.write(memoryview(b"x" * block))
    upload.commit()
    store.write(other, 2 * block).abort()
    for one in (store, DirectoryStore(str(tmp_path), 0, quota)):  # a session later, too
        with pytest.raises(StoreError) as caught:
            one.write(other, 2 * block + 1)
        assert caught.value.failure is Failure.NO_SPACE
        one.write(other, 2 * block).abort()
    small = store.write(Name("data", "ef" * 32), 1)
    small.write(memoryview(b"x"))
    small.commit()
    with pytest.raises(StoreError):
        store.write(other, 1)
    assert store.remove(NAME)
    DirectoryStore(str(tmp_path), 0, quota).write(other, 2 * block).abort()


def test_without_a_repository_nothing_is_written(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path), 0)
    for kind in ("data", "keys"):
        with pytest.raises(NotThere):
            store.write(Name(kind, "ab" * 32), 1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "number, failure",
    [(28, Failure.NO_SPACE), (122, Failure.NO_SPACE), (13, Failure.DENIED), (30, Failure.DENIED),
     (5, Failure.UNREACHABLE), (116, Failure.UNREACHABLE)],
)  # fmt: skip
def test_errors_have_names(number: int, failure: Failure) -> None:
    assert explain(OSError(number, "x"), "what").failure is failure
