"""What an engine may leave in its cache, where the room's own program works after it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.rooms.calls import read_note, remove_tree, write_note

NOBODY = 65534


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache of an ordinary user, worked in as that user: root's rights would hide mistakes."""
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    made = tmp_path / "cache"
    made.mkdir()
    os.chown(made, NOBODY, NOBODY)
    before = Path.cwd()
    os.chdir("/")
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    yield made
    os.seteuid(0)
    os.setegid(0)
    os.chdir(before)


def test_a_tree_too_deep_for_a_path_is_removed(cache: Path) -> None:
    os.mkdir(cache / "tmp")
    os.chdir(cache / "tmp")
    for _ in range(3000):
        os.mkdir("deep")
        os.chdir("deep")
    Path("file").touch()
    os.chdir("/")
    remove_tree(f"{cache}/tmp")
    assert os.listdir(cache) == []


def test_closed_directories_are_removed(cache: Path) -> None:
    for name in ("tmp/a/b", "tmp/c"):
        (cache / name).mkdir(parents=True)
        (cache / name / "file").touch()
    for name in ("tmp/a/b", "tmp/a", "tmp/c", "tmp"):
        (cache / name).chmod(0)
    remove_tree(f"{cache}/tmp")
    assert os.listdir(cache) == []


@pytest.mark.parametrize("top", [True, False])
def test_links_are_not_followed(cache: Path, *, top: bool) -> None:
    kept = cache / "kept"
    kept.mkdir()
    (kept / "file").touch()
    kept.chmod(0o500)
    if not top:
        (cache / "tmp").mkdir()
    (cache / "tmp" if top else cache / "tmp" / "link").symlink_to(kept)
    remove_tree(f"{cache}/tmp")
    assert os.listdir(cache) == ["kept"]
    assert os.listdir(kept) == ["file"]
    assert kept.stat().st_mode & 0o777 == 0o500


@pytest.mark.parametrize("kind", ["nothing", "file", "fifo", "directory", "link", "closed"])
def test_a_note_is_read_and_written_whatever_has_taken_its_place(cache: Path, kind: str) -> None:
    note = cache / "version"
    if kind == "file":
        note.write_bytes(b"x" * (1 << 20))
    elif kind == "fifo":
        os.mkfifo(note)
    elif kind == "directory":
        (note / "below").mkdir(parents=True)
    elif kind == "link":
        (cache / "other").write_text("other")
        note.symlink_to(cache / "other")
    elif kind == "closed":
        note.touch(mode=0)
    assert len(read_note(str(note))) <= 64 << 10
    assert b"other" not in read_note(str(note))
    write_note(str(note), b"key\nsaid")
    assert read_note(str(note)) == b"key\nsaid"
    if kind == "link":
        assert (cache / "other").read_text() == "other"
