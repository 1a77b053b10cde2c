"""Values: what is written is what is meant, and printing and parsing agree."""

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.values import (
    MAX_DURATION,
    MAX_SIZE,
    SecretSource,
    ValueMistake,
    check_exclude,
    format_duration,
    format_size,
    parse_duration,
    parse_glob,
    parse_location,
    parse_percent,
    parse_size,
)


@pytest.mark.parametrize(
    "text,size",
    [
        ("0", 0), ("512", 512), ("1K", 1024), ("1k", 1024), ("10G", 10 << 30),
        ("512MiB", 512 << 20), ("1.5G", 3 << 29), ("10GB", 10**10), ("1 TiB", 1 << 40),
        ("7B", 7), ("2kB", 2000),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1.G", ".5G", "1..2", "-1G", "1e3", "10X", "9999P", "\u0661G"]
)
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueMistake) as caught:
        parse_size(text)
    assert caught.value.hint


@settings(database=None)  # a checkout may be read-only
@given(st.integers(0, MAX_SIZE - 1))
def test_a_printed_size_is_exact(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    "text,seconds",
    [
        ("36h", 129600), ("1d 2h", 93600), ("1d2h", 93600), ("90m", 5400), ("2w", 1209600),
        ("1 day 3 hours", 97200), ("0s", 0), ("5min", 300), ("2H", 7200),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "h", "1.5h", "1h 1h", "-1h", "1y", "3000w 99999w", "1h,2m"]
)
def test_not_durations(text: str) -> None:
    with pytest.raises(ValueMistake) as caught:
        parse_duration(text)
    assert caught.value.hint


@settings(database=None)  # a checkout may be read-only
@given(st.integers(0, MAX_DURATION))
def test_a_printed_duration_is_exact(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@settings(database=None)  # a checkout may be read-only
@given(st.text())
def test_parsers_only_raise_mistakes(text: str) -> None:
    for parse in (
        parse_size,
        parse_duration,
        parse_percent,
        parse_location,
        parse_glob,
        check_exclude,
    ):
        try:
            parse(text)
        except ValueMistake as mistake:
            assert mistake.problem  # noqa: PT017 - most texts raise nothing


def test_percent() -> None:
    assert [parse_percent(t) for t in ("0%", "50%", " 100 % ")] == [0, 50, 100]
    for text in ("50", "101%", "-1%", "1.5%", "%", "²%"):
        with pytest.raises(ValueMistake):
            parse_percent(text)


def test_secret_sources_print_as_written() -> None:
    assert SecretSource(file="/a").written() == '{ file = "/a" }'
    assert SecretSource(credential="x").written() == '{ credential = "x" }'
    assert SecretSource(command=("/bin/p", 'a"b')).written() == '{ command = ["/bin/p", "a\\"b"] }'


@pytest.mark.parametrize(
    "text,expected",
    [
        ("/srv/repo/", ("local", "/srv/repo", "", 0, "", True)),
        ("local:/srv//x/./y", ("local", "/srv/x/y", "", 0, "", True)),
        ("sftp:u@h:/srv/r", ("sftp", "/srv/r", "h", 0, "u", True)),
        ("sftp:h:rel/r", ("sftp", "rel/r", "h", 0, "", True)),
        ("sftp:[::1]:/r", ("sftp", "/r", "::1", 0, "", True)),
        ("sftp:u@[::1]:/r", ("sftp", "/r", "::1", 0, "u", True)),
        ("sftp://u@h:2222//r", ("sftp", "/r", "h", 2222, "u", True)),
        ("sftp://u@[::1]:2222/r", ("sftp", "r", "::1", 2222, "u", True)),
        ("s3:https://e.org/b/p/", ("s3", "b/p", "e.org", 0, "", True)),
        ("s3:http://127.0.0.1:9000/b", ("s3", "b", "127.0.0.1", 9000, "", False)),
        ("s3:s3.amazonaws.com/b", ("s3", "b", "s3.amazonaws.com", 0, "", True)),
        ("rest:http://h:8000/", ("rest", "", "h", 8000, "", False)),
        ("rest:https://h/name/", ("rest", "name/", "h", 0, "", True)),
        ("rclone:remote:a/b", ("rclone", "a/b", "remote", 0, "", True)),
        ("b2:bucket:path", ("b2", "", "", 0, "", True)),
    ],
)
def test_locations(text: str, expected: tuple[str, str, str, int, str, bool]) -> None:
    found = parse_location(text)
    assert (found.scheme, found.path, found.host, found.port, found.user, found.tls) == expected
    assert found.engine_only == (found.scheme == "b2")
    assert found.is_local == (found.scheme == "local")
    assert parse_location(found.text) == found


@pytest.mark.parametrize(
    "text,hint",
    [
        ("backup", "absolute"), ("./a:b", "absolute"), ("/", "absolute"), ("/a/../b", "absolute"),
        ("https://h/x", "rest:https://h/x"), ("u@h:/x", "sftp:u@h:/x"),
        ("ftp:h", "sftp:"), ("sftp:h", "sftp:user@host"), ("s3:https://h/", "bucket"),
        ("rest:h/x", "rest:"), ("rest:https://u:p@h/x", "RESTIC_REST_PASSWORD"), ("s3:", "s3:"),
        ("sftp:u:pw@h:/x", "identity"), ("rest:https://h:99999/", "65535"), ("rclone:x", "remote"),
        ("sftp:-oProxyCommand=x:/y", "sftp:"), ("", "absolute"),
    ],
)  # fmt: skip
def test_not_locations(text: str, hint: str) -> None:
    with pytest.raises(ValueMistake) as caught:
        parse_location(text)
    assert hint in caught.value.hint
    assert "pw@" not in caught.value.problem + caught.value.hint


@pytest.mark.parametrize(
    "pattern,yes,no",
    [
        (
            "/home/*/.gvfs",
            ["/home/a/.gvfs", "/home/a/.gvfs/x/y"],
            ["/home/.gvfs", "/home/a/b/.gvfs"],
        ),
        ("**/cache", ["/cache", "/a/cache", "/a/b/cache/x"], ["/a/cached", "/"]),
        ("/a/**/b", ["/a/b", "/a/x/b", "/a/x/y/b/c"], ["/b", "/ab", "/a"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a", "/ab"]),
        ("/var/log/*.?z", ["/var/log/x.gz", "/var/log/x.xz"], ["/var/log/x.zz2", "/var/log/xgz"]),
        ("**/x/**/*.tmp", ["/x/a.tmp", "/q/x/y/z/a.tmp"], ["/a.tmp", "/y/a.tmp"]),
        ("/a[b]", ["/a[b]"], ["/ab"]),
        ("/", ["/", "/a"], []),
        ("/a/", ["/a", "/a/b"], ["/ab"]),
        ("**", ["/a", "/a/b"], ["/"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    glob = parse_glob(pattern)
    assert [p for p in yes if not glob.matches(p)] == []
    assert [p for p in no if glob.matches(p)] == []


NAMES = st.text("ab*?", min_size=1, max_size=5).filter(lambda n: "**" not in n)


@settings(database=None)  # a checkout may be read-only
@given(
    st.lists(NAMES | st.just("**"), min_size=1, max_size=5),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=6),
)
def test_patterns_agree_with_a_slow_and_obvious_matcher(parts: list[str], names: list[str]) -> None:
    def slow(p: list[str], n: list[str]) -> bool:
        if not p:
            return True
        if p[0] == "**":
            if len(p) == 1:
                return bool(n)
            return any(slow(p[1:], n[i:]) for i in range(len(n) + 1))
        return bool(n) and fnmatch.fnmatchcase(n[0], p[0]) and slow(p[1:], n[1:])

    flat = [p for i, p in enumerate(parts) if p != "**" or i == 0 or parts[i - 1] != "**"]
    assert parse_glob("/" + "/".join(parts)).matches("/" + "/".join(names)) == slow(flat, names)


def test_a_hostile_name_costs_no_time() -> None:
    """A matcher that tries every way would not be done within any test's time."""
    glob = parse_glob("/" + "*a" * 50 + "b/**/" + "/".join(["**", "a"] * 40))
    assert not glob.matches("/" + "a" * 250 + "/" + "/".join(["a"] * 1000))
    assert not parse_glob("**/" + "/".join(["a", "**"] * 30) + "/b").matches("/" + "a/" * 2000)


@pytest.mark.parametrize("text", ["", "cache", "a/b", "/a/../b", "/a**b", "/a\nb", "./x"])
def test_not_patterns(text: str) -> None:
    with pytest.raises(ValueMistake) as caught:
        parse_glob(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["*.o", "/a/[a-z]*", "[^x]", "!/a/b", "\\[x", "a**b", "[\\]]", "$HOME"]
)
def test_good_excludes(text: str) -> None:
    check_exclude(text)


@pytest.mark.parametrize("text", ["", " ", "[a", "[]", "[a-]", "[-a]", "a\\", "x/[/y", "[a\\"])
def test_bad_excludes(text: str) -> None:
    with pytest.raises(ValueMistake):
        check_exclude(text)
