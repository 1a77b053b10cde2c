"""Nobody leads root elsewhere on the way to a directory."""

import os
from pathlib import Path

import pytest

from capkeep.errors import RefusedError
from capkeep.host.files import Owner, make_directory, remove_tree, write_atomic
from capkeep.kernel.ways import open_way, resolve

MINE = Owner(os.geteuid(), os.getegid())


def reached(path: Path, *, links: bool = True) -> str:
    fd = open_way(str(path), make=0o700, links=links)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A real directory, and links to it of one's own, absolute and relative."""
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "relative").symlink_to("../" + tmp_path.name + "/./real")
    return tmp_path


@pytest.mark.parametrize("way", ["real", "absolute", "relative"])
def test_what_is_missing_is_made_where_the_way_leads(place: Path, way: str) -> None:
    assert reached(place / way / "a" / "b") == f"{place}/real/a/b"
    assert (place / "real/a").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("way", ["absolute", "relative"])
def test_no_link_is_followed_unless_that_is_asked_for(place: Path, way: str) -> None:
    with pytest.raises(RefusedError, match="symbolic link"):
        reached(place / way / "a", links=False)
    assert list((place / "real").iterdir()) == []


def test_a_link_that_others_can_exchange_is_not_followed(place: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(RefusedError, match="symbolic link"):
        reached(place / "absolute" / "a")
    place.chmod(0o1777)  # but in a sticky directory they cannot
    assert reached(place / "absolute" / "a") == f"{place}/real/a"


@pytest.mark.parametrize("way", ["real", "absolute", "relative"])
def test_the_real_path_of_what_is_not_there_yet(place: Path, way: str) -> None:
    assert resolve(f"{place}/{way}/a/b") == f"{place}/real/a/b"
    assert list((place / "real").iterdir()) == []


def test_no_real_path_through_a_link_that_others_can_exchange(place: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(RefusedError, match="symbolic link"):
        resolve(f"{place}/absolute/a")


def test_links_in_a_circle_end(place: Path) -> None:
    (place / "round").symlink_to("round")
    with pytest.raises(RefusedError, match="symbolic link"):
        reached(place / "round" / "a")


def test_a_file_on_the_way_is_no_directory(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(NotADirectoryError):
        reached(place / "file" / "a")


def test_nothing_is_made_written_or_removed_through_somebody_elses_link(place: Path) -> None:
    (place / "real/kept").mkdir()
    (place / "real/kept/file").write_text("kept")
    place.chmod(0o777)
    for act in (
        lambda: make_directory(f"{place}/absolute/new", owner=MINE, mode=0o700),
        lambda: make_directory(f"{place}/absolute/kept", owner=MINE, mode=0o711),
        lambda: write_atomic(f"{place}/absolute/kept/file", b"x", owner=MINE, mode=0o600),
        lambda: remove_tree(f"{place}/absolute/kept"),
    ):
        with pytest.raises(RefusedError):
            act()
    assert (place / "real/kept/file").read_text() == "kept"
    assert (place / "real/kept").stat().st_mode & 0o777 != 0o711
    assert not (place / "real/new").exists()


def test_a_tree_is_removed_by_its_own_name(place: Path) -> None:
    (place / "real/gone/deep").mkdir(parents=True)
    remove_tree(f"{place}/absolute/gone")
    assert list((place / "real").iterdir()) == []
