"""Restored files are found again although restic cannot write down every name."""

import os
from pathlib import Path

from capkeep.rooms.restorer import places


def test_a_plain_name_is_where_it_says(tmp_path: Path) -> None:
    assert places(str(tmp_path), "/etc/fstab") == [f"{tmp_path}/etc/fstab"]


def test_a_name_that_is_not_utf8_is_looked_up(tmp_path: Path) -> None:
    inside = os.fsencode(tmp_path) + b"/a\xff"
    os.mkdir(inside)
    Path(os.fsdecode(inside), "b\udce2\udc82").touch()
    found = places(str(tmp_path), "/a\ufffd/b\ufffd\ufffd")
    assert found == [os.fsdecode(inside) + "/b\udce2\udc82"]


def test_names_that_look_alike_are_all_candidates(tmp_path: Path) -> None:
    for name in ("x\udcff", "x\udcfe", "x\ufffd", "xy"):
        (tmp_path / name).touch()
    assert len(places(str(tmp_path), "/x\ufffd")) == 3


def test_what_is_missing_has_its_plain_place(tmp_path: Path) -> None:
    assert places(str(tmp_path), "/gone\ufffd") == [f"{tmp_path}/gone\ufffd"]
