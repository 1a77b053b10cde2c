"""Putting a read-only view together on a real kernel."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capkeep.kernel import mounts
from tests.rooms.test_kernel_facts import in_child


@pytest.fixture
def tree() -> Iterator[Path]:
    """A source with a file, and an empty stage, on the root's filesystem: /tmp may be another."""
    with tempfile.TemporaryDirectory(prefix="ck-", dir="/srv") as base:
        place = Path(base)
        (place / "src/sub").mkdir(parents=True)
        (place / "src/file").write_text("content")
        (place / "stage").mkdir()
        yield place


def alone(do: Callable[[], None]) -> None:
    """Do it in a mount namespace of its own, and nothing of it outside."""

    def apart() -> None:
        mounts.unshare_mounts()
        do()

    before = mounts.read_mounts()
    assert in_child(apart) == 0
    assert mounts.read_mounts() == before


def refused(do: Callable[[], object], *numbers: int) -> None:
    with pytest.raises(OSError) as error:
        do()
    assert error.value.errno in numbers


def test_the_root_is_shown_read_only_without_setuid_and_devices(tree: Path) -> None:
    def do() -> None:
        stage = str(tree / "stage")
        mounts.bind_below("/", stage)
        shown = f"{stage}{tree}/src/file"
        assert Path(shown).read_text() == "content"
        refused(lambda: Path(shown).write_text("x"), 30)
        flags = os.statvfs(stage).f_flag
        assert flags & os.ST_RDONLY
        assert flags & os.ST_NOSUID
        assert flags & 4  # ST_NODEV
        assert not os.statvfs("/").f_flag & os.ST_RDONLY

    alone(do)


def test_mounts_below_do_not_come_along_unless_shown_too(tree: Path) -> None:
    def do() -> None:
        stage, sub = str(tree / "stage"), str(tree / "src/sub")
        mounts.libc.mount(b"tmpfs", sub.encode(), b"tmpfs", 0)
        Path(sub, "inner").write_text("inner")
        mounts.bind_below("/", stage)
        assert os.listdir(stage + sub) == []
        mounts.bind_below(sub, stage)
        assert os.listdir(stage + sub) == ["inner"]
        refused(lambda: Path(stage + sub, "new").touch(), 30)
        Path(sub, "new").touch()  # the machine itself may still write

    alone(do)


def test_a_file_may_be_a_mount_point(tree: Path) -> None:
    def do() -> None:
        stage, file = str(tree / "stage"), str(tree / "src/file")
        (tree / "other").write_text("over it")
        mounts.bind(str(tree / "other"), file)
        mounts.bind_below("/", stage)
        assert Path(stage + file).read_text() == "content"
        mounts.bind_below(file, stage)
        assert Path(stage + file).read_text() == "over it"

    alone(do)


def test_a_link_put_in_the_way_is_not_followed(tree: Path) -> None:
    """A user who swaps a directory for a link must not aim our mount at /usr."""

    def do() -> None:
        stage = str(tree / "stage")
        mounts.bind_below("/", stage)
        os.rename(tree / "src", tree / "moved")
        os.symlink("/usr", tree / "src")
        refused(lambda: mounts.bind_below(f"{tree}/src", stage), 40)
        refused(lambda: mounts.bind_below(f"{tree}/src/lib", stage), 40)
        refused(lambda: mounts.bind(f"{tree}/moved", f"{tree}/src"), 40)
        refused(lambda: mounts.remount_readonly(f"{tree}/src"), 40)

    alone(do)


def test_a_mount_can_be_made_read_only_later(tree: Path) -> None:
    def do() -> None:
        target = str(tree / "stage")
        mounts.bind(str(tree / "src"), target)
        Path(target, "new").touch()
        mounts.remount_readonly(target)
        refused(lambda: Path(target, "newer").touch(), 30)

    alone(do)


def test_a_missing_source_names_itself(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        mounts.bind_below(f"{tree}/nowhere", str(tree / "stage"))


def test_every_mount_of_this_machine_is_read() -> None:
    points = {m.point for m in mounts.read_mounts()}
    assert "/proc" in points
    assert "/" in {m.point for m in mounts.visible(mounts.read_mounts())}
