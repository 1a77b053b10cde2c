"""What is backed up comes back the same, under the paths that it really has."""

import os
from pathlib import Path

import pytest

from capkeep.engines.base import Change, DiffTotals, Entry
from tests.contract import tree
from tests.contract.conftest import RESTIC, Lab
from tests.contract.differences import able


@pytest.fixture
def full(disk_lab: Lab) -> Lab:
    tree.make(disk_lab.source)
    return disk_lab


def test_all_metadata_comes_back(full: Lab) -> None:
    before = tree.manifest(full.source)
    assert full.backup(uid=0).code == 0
    abilities = RESTIC.abilities(full.as_root(RESTIC.version(full.call)).out)
    done = full.as_root(
        RESTIC.restore(
            full.call, "latest", str(full.target), verify=True, sparse=abilities.sparse_restore
        )
    )
    assert done.code == 0, done.err
    restored = full.target / full.source.relative_to("/")
    after = tree.manifest(restored)
    assert after.keys() == before.keys()
    assert {n: (before[n], after[n]) for n in before if after[n] != before[n]} == {}
    blocks = (restored / "sparse").stat().st_blocks * 512
    assert (blocks < tree.SPARSE_SIZE // 2) is able(full.version, "restore holes as holes")
    assert (restored / "first").stat().st_ino == (restored / "sub" / "third").stat().st_ino


def test_the_snapshot_lists_real_paths(lab: Lab) -> None:
    (lab.source / "a").write_text("a")
    other = lab.base / "other"
    other.mkdir()
    job = lab.job(lab.source, other, host="machine", tags=("one", "two"))
    assert lab.backup(job).code == 0
    (snapshot,) = lab.snapshots()
    assert set(snapshot.paths) == {str(lab.source), str(other)}
    assert snapshot.host == "machine"
    assert set(snapshot.tags) == {"one", "two"}
    assert len(snapshot.id) == 64
    assert snapshot.time.startswith("20")


def test_entries_are_listed_with_owner_mode_and_size(full: Lab) -> None:
    assert full.backup(uid=0).code == 0
    done = full.as_root(RESTIC.ls(full.call, "latest"))
    entries = {e.path: e for e in map(RESTIC.parse_ls_line, done.out.split(b"\n")) if e is not None}
    entry = entries[f"{full.source}/mode-4755"]
    assert entry == Entry(entry.path, "file", 4, 0o4755, 12345, 54321, entry.mtime)
    assert entries[f"{full.source}/dir-1777"].mode == 0o1777
    assert entries[f"{full.source}/dir-1777"].kind == "dir"
    assert entries[f"{full.source}/fifo"].kind == "fifo"
    assert entries[f"{full.source}/link"].kind == "symlink"
    assert entries[f"{full.source}/null"].kind == "chardev"
    assert entries[f"{full.source}/new\nline"].size == 8
    named = f"{full.source}/" + os.fsdecode(b"not utf-8 \xff\xfe") in entries
    assert named is able(full.version, "name paths that are not UTF-8 in JSON")


def test_a_directory_is_listed_alone(lab: Lab) -> None:
    (lab.source / "sub" / "deeper").mkdir(parents=True)
    (lab.source / "sub" / "a").write_text("a")
    (lab.source / "sub" / "deeper" / "b").write_text("b")
    lab.backup()
    done = lab.run(RESTIC.ls(lab.call, "latest", (f"{lab.source}/sub",)))
    paths = [e.path for e in map(RESTIC.parse_ls_line, done.out.split(b"\n")) if e]
    assert f"{lab.source}/sub/a" in paths
    assert f"{lab.source}/sub/deeper" in paths
    assert f"{lab.source}/sub/deeper/b" not in paths


def test_names_are_found(lab: Lab) -> None:
    (lab.source / "needle").write_text("12345")
    (lab.source / "hay").write_text("x")
    lab.backup()
    lab.backup()
    newest, oldest = lab.snapshots()[1].id, lab.snapshots()[0].id
    everywhere = lab.run(RESTIC.find(lab.call, "need*")).out
    assert {m.snapshot for m in RESTIC.parse_find(everywhere)} == {newest, oldest}
    (match,) = RESTIC.parse_find(
        lab.run(RESTIC.find(lab.call, f"{lab.source}/needle", snapshots=(newest,))).out
    )
    assert match.snapshot == newest
    assert match.entry.path == f"{lab.source}/needle"
    assert match.entry.size == 5
    assert list(RESTIC.parse_find(lab.run(RESTIC.find(lab.call, "nothing")).out)) == []


def test_differences_are_told(lab: Lab) -> None:
    (lab.source / "changes").write_text("old")
    (lab.source / "goes").write_text("x")
    (lab.source / "mode").write_text("x")
    lab.backup()
    (lab.source / "changes").write_text("new content")
    (lab.source / "goes").unlink()
    (lab.source / "comes").write_text("y")
    (lab.source / "mode").chmod(0o600)
    os.chown(lab.source / "mode", 61999, 61999)
    lab.backup()
    old, new = lab.snapshots()
    done = lab.run(RESTIC.diff(lab.call, old.id, new.id, metadata=True))
    said = [s for s in map(RESTIC.parse_diff_line, done.out.split(b"\n")) if s]
    changes = {c.path.rpartition("/")[2]: c.modifier for c in said if isinstance(c, Change)}
    assert changes["goes"] == "-"
    assert changes["comes"] == "+"
    assert "M" in changes["changes"]
    assert "U" in changes["mode"]
    (totals,) = (s for s in said if isinstance(s, DiffTotals))
    assert (totals.files_added, totals.files_removed) == (1, 1)
    assert totals.changed_files == 1
    assert totals.bytes_added > 0


def test_chosen_paths_are_restored_to_the_letter(lab: Lab) -> None:
    for name in ("*", "[a]", "a", "b", "\\a"):
        (lab.source / name).mkdir()
        (lab.source / name / "f").write_text(name)
    lab.backup()
    wanted = tuple(f"{lab.source}/{n}" for n in ("*", "[a]", "\\a"))
    done = lab.as_root(RESTIC.restore(lab.call, "latest", str(lab.target), include=wanted))
    assert done.code == 0
    restored = lab.target / lab.source.relative_to("/")
    assert {p.name for p in restored.iterdir()} == {"*", "[a]", "\\a"}
    assert (restored / "[a]" / "f").read_text() == "[a]"


def test_what_is_there_can_be_left_alone(lab: Lab) -> None:
    (lab.source / "a").write_text("from the snapshot")
    lab.backup()
    there = lab.target / (lab.source / "a").relative_to("/")
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    abilities = RESTIC.abilities(lab.run(RESTIC.version(lab.call)).out)
    assert abilities.version[:2] == tuple(map(int, lab.version.split(".")))
    command = RESTIC.restore(
        lab.call, "latest", str(lab.target), keep_existing=abilities.keep_existing
    )
    assert lab.as_root(command).code == 0
    assert (there.read_text() == "mine") is abilities.keep_existing


def test_excludes_and_one_file_system(lab: Lab, small_disk: Path) -> None:
    for name in ("keep", "skip.tmp", "cache"):
        (lab.source / name).write_text("x")
    (small_disk / "inner").write_text("x")
    job = lab.job(
        lab.source, small_disk.parent / "small",
        exclude=("*.tmp", f"{lab.source}/cache"), one_file_system=True,
    )  # fmt: skip
    lab.backup(job)
    done = lab.run(RESTIC.ls(lab.call, "latest"))
    names = {e.path for e in map(RESTIC.parse_ls_line, done.out.split(b"\n")) if e}
    assert f"{lab.source}/keep" in names
    assert not names & {f"{lab.source}/skip.tmp", f"{lab.source}/cache"}
    assert f"{small_disk}/inner" in names, "named sources are kept, whatever they are on"


def test_another_filesystem_below_a_source_can_be_left_out(lab: Lab, small_disk: Path) -> None:
    (small_disk / "inner").write_text("x")
    skip = ("cache", "repo", "source", "target", "tmp")
    exclude = tuple(f"{lab.base}/{name}" for name in skip)
    for one, there in ((True, False), (False, True)):
        lab.backup(lab.job(lab.base, exclude=exclude, one_file_system=one))
        done = lab.run(RESTIC.ls(lab.call, "latest"))
        names = {e.path for e in map(RESTIC.parse_ls_line, done.out.split(b"\n")) if e}
        assert str(small_disk) in names
        assert (f"{small_disk}/inner" in names) is there


def test_the_whole_machine_is_kept_without_the_rooms_own(lab: Lab) -> None:
    """In a room, /proc, /dev and /run are the room's own, and not the machine's."""
    room = [
        "/usr/bin/bwrap", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib",
        "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run",
        "--dir", "/run/inside", "--dir", "/etc/inside", "--dir", "/sys/inside",
        "--ro-bind", lab.call.program, "/engine", "--bind", str(lab.base), str(lab.base),
    ]  # fmt: skip
    command = RESTIC.backup(
        lab.call._replace(program="/engine"), lab.job("/", exclude=("/usr/*", str(lab.base)))
    )
    lab.give(0)
    done = lab.as_root(command._replace(argv=(*room, *command.argv)))
    assert done.code == 0, done.err
    listed = lab.as_root(RESTIC.ls(lab.call, "latest"))
    paths = {e.path for e in map(RESTIC.parse_ls_line, listed.out.split(b"\n")) if e}
    assert {"/etc/inside", "/proc", "/dev", "/run", "/sys", "/engine"} <= paths
    assert not [p for p in paths if p.startswith(("/proc/", "/dev/", "/run/", "/sys/"))]
