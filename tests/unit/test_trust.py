"""What others could change must not be executed."""

import os
import struct
from pathlib import Path

import pytest

from capkeep.host.trust import files_below, untrusted

ME = frozenset({0, os.getuid()})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose way is trusted: pytest's own lies below a sticky /tmp."""
    tmp_path.chmod(0o755)
    return tmp_path


def test_a_program_of_the_system_is_trusted() -> None:
    assert untrusted(["/usr/bin/env"]) == ()


@pytest.mark.parametrize("mode", [0o757, 0o777, 0o602])
def test_a_file_that_others_can_write_is_not(place: Path, mode: int) -> None:
    program = place / "engine"
    program.write_text("")
    program.chmod(mode)
    found = untrusted([str(program)], ME)
    assert len(found) == 1
    assert str(program) in found[0]


def test_a_directory_on_the_way_that_others_can_write_is_not(place: Path) -> None:
    way = place / "open"
    way.mkdir()
    (way / "engine").write_text("")
    way.chmod(0o777)
    assert any(str(way) in sentence for sentence in untrusted([str(way / "engine")], ME))


def test_the_target_of_a_link_is_looked_at_too(place: Path) -> None:
    target = place / "target"
    target.write_text("")
    target.chmod(0o666)
    link = place / "engine"
    link.symlink_to(target)
    assert any("target" in sentence for sentence in untrusted([str(link)], ME))


def test_a_link_in_the_middle_of_a_chain_is_looked_at(place: Path) -> None:
    """Whoever can replace it decides what is executed, whatever lies at both ends."""
    (place / "target").write_text("")
    way = place / "open"
    way.mkdir()
    (way / "middle").symlink_to("../target")
    (place / "engine").symlink_to("open/middle")
    assert untrusted([str(place / "engine")], ME) == ()
    way.chmod(0o777)
    assert any(str(way) in s for s in untrusted([str(place / "engine")], ME))
    way.chmod(0o755)
    os.lchown(way / "middle", 70000, 70000)
    assert any("open/middle" in s for s in untrusted([str(place / "engine")], ME))


def test_links_that_lead_in_a_circle_end(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    assert untrusted([str(place / "a")], ME) == ()


def test_what_is_missing_is_said(place: Path) -> None:
    assert "No such file" in untrusted([str(place / "none")], ME)[0]


def test_a_package_is_walked_whole(place: Path) -> None:
    (place / "pkg" / "sub").mkdir(parents=True)
    weak = place / "pkg" / "sub" / "module.py"
    weak.write_text("")
    weak.chmod(0o666)
    assert any(str(weak) in s for s in untrusted(files_below(str(place / "pkg")), ME))


def test_a_user_whom_an_access_list_lets_write_is_seen(place: Path) -> None:
    """His right shows as that of the file's group, which may be root's own."""
    program = place / "engine"
    program.write_text("")
    os.chown(program, -1, os.getuid())
    program.chmod(0o664)
    assert untrusted([str(program)], ME) == ()
    entries = ((0x01, 6, -1), (0x02, 6, 65534), (0x04, 4, -1), (0x10, 6, -1), (0x20, 4, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(program, "system.posix_acl_access", acl)
    assert str(program) in untrusted([str(program)], ME)[0]
