"""Reading mountinfo, and choosing what a reader must see."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.kernel.mounts import Mount, parse, source_mounts, visible


def mount(number: int, parent: int, point: str, kind: str = "ext4", device: str = "") -> Mount:
    return Mount(number, parent, device or f"8:{number}", "/", point, ("rw",), kind, "src", ("rw",))


ROOT = mount(1, 0, "/")


def staged(*mounts: Mount, include: tuple[str, ...], one: bool = False) -> tuple[str, ...]:
    return source_mounts((ROOT, *mounts), include, one_file_system=one)[0]


def left_out(*mounts: Mount, include: tuple[str, ...], one: bool = False) -> dict[str, str]:
    return dict(source_mounts((ROOT, *mounts), include, one_file_system=one)[1])


def test_a_line_is_read_field_by_field() -> None:
    line = (
        rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 propagate_from:3 - ext3 /dev/r\011t"
        b" ro,errors=continue\n"
    )
    assert parse(line) == (
        Mount(36, 35, "98:0", "/mnt1", "/mnt 2", ("rw", "noatime"), "ext3", "/dev/r\tt",
              ("ro", "errors=continue")),
    )  # fmt: skip
    assert not parse(line)[0].writable  # the filesystem is read-only, whatever the mount says


def test_names_that_are_not_text_survive() -> None:
    line = b"1 0 8:1 / /mnt/\xff\\134x rw - ext4 /dev/x rw\n"
    assert parse(line)[0].point == "/mnt/\udcff\\x"


def test_a_dash_in_a_name_is_not_the_separator() -> None:
    assert parse(b"1 0 8:1 - /a rw - ext4 - rw\n")[0].kind == "ext4"


@pytest.mark.parametrize("text", [b"x\n", b"1 2 3\n", b"1 0 8:1 / / rw shared:1\n", b"a b - - -\n"])
def test_what_is_not_mountinfo_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="mountinfo"):
        parse(text)


@given(st.binary(max_size=60))
def test_hostile_text_raises_one_error_only(text: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(text)


def test_a_later_mount_covers_an_earlier_one() -> None:
    first = mount(2, 1, "/a")
    inside = mount(3, 2, "/a/b")
    over = mount(4, 2, "/a", "tmpfs")
    assert [m.id for m in visible((ROOT, first, inside, over))] == [1, 4]


def test_a_mount_above_buries_what_was_below() -> None:
    deep = mount(2, 1, "/a/b/c")
    deeper = mount(3, 2, "/a/b/c/d")
    over = mount(4, 1, "/a")
    on_top = mount(5, 4, "/a/b/c")
    assert [m.id for m in visible((ROOT, deep, deeper, over, on_top))] == [1, 4, 5]


def test_a_root_that_is_its_own_parent_is_seen() -> None:
    assert [m.id for m in visible((mount(1, 1, "/"), mount(2, 1, "/a")))] == [1, 2]


def test_a_root_mounted_over_the_first_root_wins() -> None:
    assert [m.id for m in visible((mount(1, 1, "/"), mount(2, 1, "/"), mount(3, 2, "/a")))] == [
        2,
        3,
    ]


def test_storage_below_an_include_is_shown_and_the_rest_is_named() -> None:
    mounts = (
        mount(2, 1, "/srv", "xfs"), mount(3, 2, "/srv/nfs", "nfs4"), mount(4, 1, "/proc", "proc"),
        mount(5, 1, "/home/u/sshfs", "fuse.sshfs"), mount(6, 1, "/usb", "fuseblk"),
        mount(7, 1, "/tmp", "tmpfs"), mount(8, 1, "/snap/x", "squashfs"),
        mount(9, 1, "/new", "somefs"),
    )  # fmt: skip
    assert staged(*mounts, include=("/",)) == ("/", "/new", "/srv", "/usb")
    assert set(left_out(*mounts, include=("/",))) == {
        "/srv/nfs", "/proc", "/home/u/sshfs", "/tmp", "/snap/x",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["nfs4", "tmpfs", "fuse.sshfs", "squashfs"])
def test_what_an_include_names_is_shown_whatever_it_is(kind: str) -> None:
    assert "/mnt" in staged(mount(2, 1, "/mnt", kind), include=("/mnt",))
    assert "/mnt" in staged(mount(2, 1, "/mnt", kind), include=("/mnt/deep/file",))


def test_other_mounts_are_not_shown() -> None:
    other = mount(2, 1, "/secret")
    assert staged(other, include=("/etc",)) == ("/",)
    assert left_out(other, include=("/etc",)) == {}


def test_a_name_that_only_begins_alike_is_another() -> None:
    assert staged(mount(2, 1, "/srv2"), include=("/srv",)) == ("/",)


def test_mounts_above_come_along_and_first() -> None:
    mounts = (mount(2, 1, "/run", "tmpfs"), mount(3, 2, "/run/media/disk"))
    assert staged(*mounts, include=("/run/media/disk",)) == ("/", "/run", "/run/media/disk")


def test_storage_below_something_left_out_is_named_too() -> None:
    mounts = (mount(2, 1, "/run", "tmpfs"), mount(3, 2, "/run/media/disk"))
    assert staged(*mounts, include=("/",)) == ("/",)
    assert "below /run" in left_out(*mounts, include=("/",))["/run/media/disk"]


def test_one_file_system_leaves_others_out_but_not_binds_of_itself() -> None:
    same = mount(2, 1, "/home", device="8:1")
    other = mount(3, 1, "/srv")
    assert staged(same, other, include=("/",), one=True) == ("/", "/home")
    assert "stays on one" in left_out(same, other, include=("/",), one=True)["/srv"]


def test_one_file_system_counts_from_each_include() -> None:
    srv, data = mount(2, 1, "/srv"), mount(3, 2, "/srv/data", device="8:2")
    assert staged(srv, data, include=("/srv",), one=True) == ("/", "/srv", "/srv/data")


def test_a_file_that_is_mounted_over_is_shown() -> None:
    assert staged(mount(2, 1, "/etc/hosts"), include=("/etc",)) == ("/", "/etc/hosts")


def test_programs_bring_their_filesystem() -> None:
    got, _ = source_mounts(
        (ROOT, mount(2, 1, "/opt")), ("/etc",), one_file_system=False, programs=("/opt/x/restic",)
    )
    assert got == ("/", "/opt")


_names = st.sampled_from(["a", "b", "c"])


@given(
    st.lists(st.lists(_names, min_size=1, max_size=3), max_size=8),
    st.sampled_from(["ext4", "tmpfs", "nfs"]),
    st.lists(st.lists(_names, max_size=3), min_size=1, max_size=3),
)
def test_every_staged_mount_has_its_parents_staged_before_it(
    points: list[list[str]], kind: str, includes: list[list[str]]
) -> None:
    mounts = [ROOT]
    for number, point in enumerate(points, 2):
        path = "/" + "/".join(point)
        under = [
            m
            for m in visible(mounts)
            if path == m.point or path.startswith(m.point.rstrip("/") + "/")
        ]
        parent = max(under, key=lambda m: len(m.point))
        mounts.append(mount(number, parent.id, path, kind if number % 2 else "ext4"))
    chosen, out = source_mounts(
        mounts, ["/" + "/".join(i) for i in includes], one_file_system=False
    )
    seen = {m.point for m in visible(mounts)}
    for i, point in enumerate(chosen):
        above = [p for p in seen if p != point and point.startswith(p.rstrip("/") + "/")]
        assert set(above) <= set(chosen[:i])
    assert not set(chosen) & {point for point, _ in out}
