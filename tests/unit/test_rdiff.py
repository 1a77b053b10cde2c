"""rdiff-backup's wire, patterns and lines, without rdiff-backup."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.engines.base import Cause, Progress, Seen, Summary, Unreadable
from capkeep.engines.rdiff import ENGINE
from capkeep.engines.retention import Decision, oldest_first
from capkeep.guest.rdiff.wire import KINDS, Meta, Refused, Tree, from_plain, to_plain

NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda n: not {0, ord("/")} & set(n) and n not in (b".", b"..", b"rdiff-backup-data")
)
NUMBERS = st.integers(0, (1 << 32) - 1)
METAS = st.builds(
    Meta, link=st.just(b""), numbers=st.just(("", 0, 0)), default_acl=st.just(()), sha1=st.just(""),
    uname=st.sampled_from(("", "alice", "domain users")), gname=st.just(""), where=st.lists(NAMES, max_size=5).map(tuple), kind=st.sampled_from(("reg", "dir", "fifo")),
    perms=st.integers(0, 0o7777), uid=NUMBERS, gid=NUMBERS, mtime=st.integers(-(1 << 40), 1 << 40),
    size=NUMBERS, nlink=st.integers(1, 9), inode=NUMBERS, device=NUMBERS,
    xattrs=st.lists(st.tuples(st.just(b"user.x"), st.binary(max_size=30)), max_size=2).map(tuple),
    acl=st.lists(st.tuples(st.sampled_from("UuGgMO"), st.integers(-1, 9), st.just(""),
                           st.integers(0, 7)), max_size=3).map(tuple),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from(("path", *Meta._fields)), JSON | st.sampled_from(KINDS))


@settings(deadline=None)
@given(METAS)
def test_a_node_comes_over_whole(meta: Meta) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(meta)))) == meta


@settings(deadline=None)
@given(JSON | FIELDS)
def test_nonsense_is_refused_and_nothing_else_happens(value: object) -> None:
    try:
        meta = from_plain(value)
    except Refused:
        return
    assert meta.where == () or meta.where[0] != b"rdiff-backup-data"
    assert not {b"", b".", b".."} & set(meta.where)


@settings(deadline=None)
@given(st.lists(METAS, max_size=8))
def test_only_a_tree_is_one(metas: list[Meta]) -> None:
    tree, seen = Tree(), dict[tuple[bytes, ...], str]()
    try:
        for meta in metas:
            tree.add(meta)
            assert not seen or seen[meta.where[:-1]] == "dir"
            assert not seen or meta.where > max(seen)
            seen[meta.where] = meta.kind
    except Refused:
        return


def test_patterns_mean_what_rdiff_backups_mean() -> None:
    from capkeep.rooms.rdiff.globs import matcher

    for pattern, meant, others in (
        ("/var/cache", ("/var/cache", "/var/cache/x/y"), ("/var/cached", "/var", "/x/var/cache")),
        ("**/.cache", ("/home/a/.cache", "/a/b/.cache/x"), ("/home/.cachex",)),
        ("/home/*/tmp", ("/home/a/tmp/x",), ("/home/a/b/tmp",)),
        ("/a?c", ("/abc",), ("/a/c",)),
        ("/[ab]", ("/a", "/b/x"), ("/c",)),
        ("/[!ab]", ("/c",), ("/a",)),
        ("/[x", ("/[x",), ("/x",)),
        ("ignorecase:/TMP", ("/tmp/x",), ("/tm",)),
        (ENGINE.literal("/a*[x]\\?"), ("/a*[x]\\?", "/a*[x]\\?/y"), ("/ab[x]\\?", "/a*x\\?")),
    ):
        means = matcher([pattern])
        assert all(means(p.encode()) for p in meant), pattern
        assert not any(means(p.encode()) for p in others), pattern


def test_what_a_backup_says() -> None:
    reader = ENGINE.read_backup(("/canary",))
    lines: list[dict[str, object]] = [
        {"listed": "/canary"}, {"progress": [3, 70]},
        {"unreadable": "/x", "errno": 13, "detail": "Permission denied", "changed": False},
        {"unreadable": "/y", "errno": 0, "detail": "became shorter meanwhile", "changed": True},
        {"unreadable": "/z", "errno": 2, "detail": "No such file", "changed": False},
        {"summary": {"time": 0x6B020EC0, "total_files": 5, "files_new": 1, "files_changed": 2}},
    ]  # fmt: skip
    events = [e for line in lines for e in reader.feed("stdout", json.dumps(line).encode())]
    assert events[:2] == [Seen("/canary", read=False), Progress(3, 0, 70, 0, (), 0)]
    told = [e for e in events if isinstance(e, Unreadable)]
    assert [e.cause for e in told] == [Cause.DENIED, Cause.CHANGED, Cause.VANISHED]
    assert events[-1] == Summary("6b020ec0", 1, 2, 2, total_files=5)


def test_a_failure_has_its_name() -> None:
    line = json.dumps({"failed": {"kind": "locked", "text": "somebody else is at work"}})
    found = ENGINE.diagnose(1, ("noise", line))
    assert found is not None
    assert (found.failure, found.sentence) == ("locked", "somebody else is at work")
    assert ENGINE.diagnose(3, (), backup=True) is None
    found = ENGINE.diagnose(-9, ())
    assert found is not None
    assert found.failure == "interrupted"


def test_no_snapshot_goes_while_an_older_one_stays() -> None:
    def one(name: str, *, keep: bool) -> Decision:
        return Decision(name, "", True, keep, ("a rule",) if keep else ())

    made = (one("4", keep=True), one("3", keep=False), one("2", keep=True), one("1", keep=False))
    assert [d.keep for d in oldest_first(made)] == [True, True, True, False]
