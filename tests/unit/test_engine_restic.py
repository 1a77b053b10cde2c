"""What is asked of restic, and what is read from it, line by line."""

import base64
import hashlib
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.engines import ENGINES, gives
from capkeep.engines.base import (
    TAIL_LINES,
    Call,
    Cause,
    CheckResult,
    Progress,
    RestoreResult,
    Seen,
    Summary,
    Unreadable,
    Warned,
)
from capkeep.engines.causes import cause_of_text
from capkeep.engines.restic_listing import posix_mode
from capkeep.plan.model import Job
from tests.unit.engine_lines import BACKUP, FAILURES

RESTIC = ENGINES["restic"]
CALL = Call("/usr/bin/restic", "rest:http://127.0.0.1:9/", "/cache", "/cache/tmp", "pass word")


def job(*include: str, **more: object) -> Job:
    return Job("j", ("r",), include)._replace(**more)  # type: ignore[arg-type]


def read(version: str, watch: tuple[str, ...] = ()) -> list[object]:
    out, err = BACKUP[version]
    reader = RESTIC.read_backup(watch)
    return [
        e
        for s, lines in (("stdout", out), ("stderr", err))
        for x in lines
        for e in reader.feed(s, x)
    ]


# -- asking


def test_the_environment_is_small_and_holds_the_password() -> None:
    env = dict(RESTIC.snapshots(CALL).env)
    assert env == {
        "RESTIC_REPOSITORY": "rest:http://127.0.0.1:9/", "RESTIC_PASSWORD": "pass word",
        "RESTIC_CACHE_DIR": "/cache", "RESTIC_PROGRESS_FPS": "4", "TMPDIR": "/cache/tmp",
        "HOME": "/cache", "PATH": "/usr/bin:/bin",
    }  # fmt: skip


def test_no_secret_and_no_repository_is_on_a_command_line() -> None:
    commands = [
        RESTIC.init(CALL), RESTIC.backup(CALL, job("/etc")), RESTIC.check(CALL, read_data="all"),
        RESTIC.snapshots(CALL), RESTIC.ls(CALL, "latest"), RESTIC.find(CALL, "x"),
        RESTIC.diff(CALL, "a", "b"), RESTIC.restore(CALL, "latest", "/t"),
        RESTIC.forget(CALL, ("a",)), RESTIC.prune(CALL), RESTIC.unlock(CALL), RESTIC.version(CALL),
    ]  # fmt: skip
    for argv, *_ in commands:
        assert argv[0] == "/usr/bin/restic"
        assert not [word for word in argv if "pass word" in word or "127.0.0.1" in word]


def test_a_relay_takes_the_place_of_the_repository() -> None:
    relay = ("/usr/bin/python3", '/a place, "quoted"/relay.py', "it's", "3")
    argv, env, _ = RESTIC.snapshots(CALL._replace(relay=relay))
    assert dict(env)["RESTIC_REPOSITORY"] == "rclone:capkeep:"
    assert argv[1:5] == (
        "-o",
        '"rclone.program=\'/usr/bin/python3\' \'/a place, ""quoted""/relay.py\' ""it\'s"" \'3\'"',
        "-o", "rclone.args=",
    )  # fmt: skip
    assert "capkeep" not in " ".join(RESTIC.snapshots(CALL).argv)


def test_who_only_looks_leaves_no_lock() -> None:
    call = CALL._replace(unlocked=True)
    for command in (
        RESTIC.snapshots(call), RESTIC.ls(call, "latest"), RESTIC.find(call, "x"),
        RESTIC.diff(call, "a", "b"), gives("restic").look(call, "aa", "", ("b",)),
        gives("restic").content(call, "latest", "/x"),
    ):  # fmt: skip
        assert command.argv.count("--no-lock") == 1, command
    assert "--no-lock" not in RESTIC.ls(CALL, "latest").argv


def test_a_backup_is_asked_for_with_all_that_the_job_says() -> None:
    asked = job(
        "/etc", "-odd", exclude=("*.tmp", "-x"), one_file_system=True, tags=("a", "b"), host="h"
    )
    argv = RESTIC.backup(CALL, asked, dry_run=True, parent="abc").argv
    assert argv == (
        "/usr/bin/restic", "backup", "--json", "-vv", "--one-file-system", "--dry-run",
        "--parent=abc", "--host=h", "--tag=a", "--tag=b", "--exclude=*.tmp", "--exclude=-x",
        "--", "etc", "-odd",
    )  # fmt: skip


def test_files_are_named_and_counted_ahead_only_where_that_is_of_use() -> None:
    plain = RESTIC.backup(CALL, job("/etc"), name=False, count=False).argv
    assert "-vv" not in plain
    assert "--no-scan" in plain
    assert "--no-scan" not in RESTIC.backup(CALL, job("/etc")).argv


def test_only_random_bytes_pass_for_a_password_that_nobody_guesses() -> None:
    made = base64.b64encode(bytes(range(32))).decode()
    assert RESTIC.master(CALL, made) is not None
    for text in ("", "a password", made[:-1], made[1:], f"{made}=", f" {made}", "correct-horse" * 4,
                 hashlib.sha256(b"x").hexdigest()):  # fmt: skip
        assert RESTIC.master(CALL, text) is None, text


def test_a_key_is_made_of_nothing_but_a_master_key() -> None:
    made = base64.b64encode(bytes(range(32))).decode()
    for text in (b"{}", b'{"mac": {"k": 1, "r": "x"}, "encrypt": "y"}', b"not JSON"):
        with pytest.raises(ValueError):
            RESTIC.make_key(text, made)


@pytest.mark.parametrize(
    "include, patterns",
    [
        ("/", ["/dev/*", "/proc/*", "/run/*", "/sys/*"]),
        ("/run", ["/run/*"]),
        ("/run/", ["/run/*"]),
        ("/run/user/1000", []),
        ("/runs", []),
        ("/etc", []),
    ],
)  # fmt: skip
def test_the_rooms_own_places_are_left_out(include: str, patterns: list[str]) -> None:
    argv = RESTIC.backup(CALL, job(include)).argv
    assert [w.removeprefix("--exclude=") for w in argv if w.startswith("--exclude")] == patterns


def test_paths_to_restore_are_not_patterns() -> None:
    argv = RESTIC.restore(CALL, "latest", "/t", include=("/a/[b]*?\\",)).argv
    assert "--include=/a/\\[b]\\*\\?\\\\" in argv
    assert argv[-2:] == ("--", "latest")


def test_abilities_are_asked_for_by_name() -> None:
    plain = RESTIC.restore(CALL, "latest", "/t").argv
    assert not {"--sparse", "--overwrite=never", "--verify"} & set(plain)
    rich = RESTIC.restore(CALL, "latest", "/t", verify=True, sparse=True, keep_existing=True).argv
    assert {"--sparse", "--overwrite=never", "--verify"} <= set(rich)
    assert not any(word.startswith("--exclude-xattr") for word in rich)
    assert "--exclude-xattr=security.*" in RESTIC.restore(CALL, "latest", "/t", plain=True).argv


def test_abilities_follow_from_the_version() -> None:
    old = RESTIC.abilities(b"restic 0.14.0 compiled with go1.19.8 on linux/amd64\n")
    assert old == ((0, 14, 0), *[False] * 5)
    new = RESTIC.abilities(b"restic 0.19.1-dev (compiled manually) compiled with go1.26\n")
    assert new == ((0, 19, 1), *[True] * 5)
    with pytest.raises(ValueError, match="restic version"):
        RESTIC.abilities(b"bash: restic: command not found")


# -- hearing a backup


@pytest.mark.parametrize("version", BACKUP)
def test_what_is_unreadable_is_heard_once(version: str) -> None:
    found = [e for e in read(version) if isinstance(e, Unreadable)]
    assert [u.path for u in found] == ["/s/missing", "/s/closed", "/s/secret"]
    assert [u.cause for u in found] == [
        Cause.VANISHED, Cause.UNKNOWN if version == "0.14" else Cause.DENIED, Cause.DENIED,
    ]  # fmt: skip


@pytest.mark.parametrize("version", BACKUP)
def test_the_summary_and_the_canary_are_heard(version: str) -> None:
    events = read(version, ("/s/canary",))
    assert [e for e in events if isinstance(e, Seen)] == [Seen("/s/canary", read=True)]
    (total,) = (e for e in events if isinstance(e, Summary))
    assert (total.files_new, total.dirs_new, total.total_files) == (5, 6, 5)
    assert total.bytes_stored == (0 if version == "0.14" else 3148525)
    assert total.snapshot.startswith(("b8e2034c", "a07edbed"))
    assert not total.dry_run


def test_progress_is_heard_and_the_end_of_counting_is_not() -> None:
    first, last = (e for e in read("0.14") if isinstance(e, Progress))
    assert first == Progress(0, 1, 0, 2, (), 0)
    assert last == Progress(4, 6, 3145732, 3145739, ("/s/sub/big",), 0)
    (only,) = (e for e in read("0.18") if isinstance(e, Progress))
    assert only.seconds_left == 3


def test_a_watched_path_is_not_mistaken_for_another() -> None:
    reader = RESTIC.read_backup(("/s/can",))
    for line in BACKUP["0.18"][0]:
        assert not [e for e in reader.feed("stdout", line) if isinstance(e, Seen)]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_name_can_be_watched(name: str) -> None:
    """Go writes <, >, & and the two line separators as escapes, everything else as itself."""
    path = "/" + name
    text = json.dumps(path, ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    line = '{"message_type":"verbose_status","action":"unchanged","item":' + text + ',"x":0}'
    assert RESTIC.read_backup((path,)).feed("stdout", line.encode()) == (Seen(path, read=False),)


@given(st.binary(max_size=200))
def test_no_line_is_too_odd(line: bytes) -> None:
    for reader in (RESTIC.read_backup(("/x",)), RESTIC.read_check(), RESTIC.read_restore()):
        for stream in ("stdout", "stderr"):
            for odd in (
                line,
                b'{"message_type":"' + line,
                b'{"message_type":"error","error":' + line,
            ):
                reader.feed(stream, odd)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from(["status", "error", "summary", "exit_error", "verbose_status", "change"]),
    st.sampled_from(["error", "item", "total_files", "current_files", "message", "num_errors",
                     "broken_packs", "snapshot_id", "error_count", "percent_done", "files_done"]),
)  # fmt: skip
def test_no_value_is_too_odd(value: object, kind: str, key: str) -> None:
    line = json.dumps({"message_type": kind, key: value, "percent_done": 1}).encode()
    for reader in (RESTIC.read_backup(("/x",)), RESTIC.read_check(), RESTIC.read_restore()):
        reader.feed("stdout", line)


def test_other_trouble_is_told_and_kept() -> None:
    reader = RESTIC.read_backup()
    line = b"Save(<data/1>) returned error, retrying after 552ms: connection reset by peer"
    assert reader.feed("stderr", line) == (Warned(line.decode()),)
    assert reader.tail == (line.decode(),)


def test_memory_does_not_grow_with_what_is_said() -> None:
    reader = RESTIC.read_backup(("/x",))
    tracemalloc.start()
    try:
        for number in range(20_000):
            reader.feed("stderr", b"Load(<data/%d>) failed: %s" % (number, b"x" * 400))
            reader.feed("stdout", BACKUP["0.18"][0][1])
            reader.feed("stderr", BACKUP["0.18"][1][3])
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
    assert len(reader.tail) == TAIL_LINES


@pytest.mark.parametrize(
    "text, cause",
    [
        ("open /a: permission denied", Cause.DENIED),
        ("lstat /a: operation not permitted", Cause.DENIED),
        ("lstat /no such file or directory/a: input/output error", Cause.IO),
        ("read /a: input/output error", Cause.IO),
        ("lstat /mnt/x: transport endpoint is not connected", Cause.IO),
        ("lstat /a: no such file or directory", Cause.VANISHED),
        ("open /a: too many levels of symbolic links", Cause.CHANGED),
        ("file /a changed type, refusing to archive", Cause.CHANGED),
        ("readdirent /a: not a directory", Cause.CHANGED),
        ("open /srv/share: stale file handle", Cause.IO),  # perhaps all of a mounted server's files
        ("something else", Cause.UNKNOWN),
    ],
)  # fmt: skip
def test_causes_are_told_apart(text: str, cause: Cause) -> None:
    assert cause_of_text(text) is cause


# -- hearing the rest


def test_a_check_of_0_14_is_counted_from_its_words() -> None:
    reader = RESTIC.read_check()
    pack = "9e414fb17a81f925d7b1d7d42f6ee8c09fcb7085e127da0fb704438a74f1f45c"
    words = f"Pack ID does not match, want {pack}, got a898c9c3"
    for line in ("load indexes", "check all packs"):
        reader.feed("stdout", line.encode())
    for line in (words, "Fatal: repository contains errors", ""):
        reader.feed("stderr", line.encode())
    assert reader.result() == CheckResult(1, (pack,), (words,))


def test_a_check_of_0_18_is_counted_by_itself() -> None:
    reader = RESTIC.read_check()
    pack = "d93949dc52b0053dbd7dfcf28609daa50d98ddc45794389c55334c4de7a93514"
    for line in (
        {"message_type": "error", "message": f"pack {pack}: does not exist\n"},
        {"message_type": "error", "message": "\nThe repository is damaged and must be repaired.\n"},
        {"message_type": "summary", "num_errors": 2, "broken_packs": None},
        {"message_type": "exit_error", "code": 1, "message": "Fatal: repository contains errors"},
    ):
        reader.feed("stderr", json.dumps(line).encode())
    assert reader.result() == CheckResult(2, (pack,), (f"pack {pack}: does not exist",))
    assert reader.tail[-1] == "Fatal: repository contains errors"


def test_a_restore_names_what_could_not_be_restored() -> None:
    old, new = RESTIC.read_restore(), RESTIC.read_restore()
    (event,) = old.feed("stderr", b"ignoring error for /a/b: UtimesNano: no such file or directory")
    assert isinstance(event, Unreadable)
    assert event.path == "/a/b"
    (event,) = new.feed(
        "stderr",
        b'{"message_type":"error","error":{"message":"lchown /t/a: operation not permitted"},"during":"restore","item":"/a"}',
    )
    assert event == Unreadable("/a", Cause.DENIED, "lchown /t/a: operation not permitted")
    new.feed(
        "stdout",
        b'{"message_type":"summary","total_files":12,"files_restored":12,"files_skipped":1,"total_bytes":14,"bytes_restored":14,"bytes_skipped":3145728}',
    )
    assert new.result() == RestoreResult(12, 12, 14, 1)


@pytest.mark.parametrize("version, code, words, failure", FAILURES)
def test_every_failure_has_its_name(version: str, code: int, words: str, failure: str) -> None:
    found = RESTIC.diagnose(
        code, tuple(words.split("\n")) if not words.startswith("{") else (words,)
    )
    assert found is not None
    assert found.failure == failure
    assert found.sentence
    assert "message_type" not in found.words


def test_what_is_no_failure() -> None:
    assert RESTIC.diagnose(0, ()) is None
    assert RESTIC.diagnose(0, ("Load(<data/1>) failed: connection reset",)) is None
    assert RESTIC.diagnose(3, (), backup=True) is None
    assert RESTIC.diagnose(3, ()) is not None


def test_0_14_lists_a_missing_snapshot_with_exit_0() -> None:
    line = 'Ignoring "deadbeef": no matching ID found for prefix "deadbeef"'
    found = RESTIC.diagnose(0, (line,))
    assert found is not None
    assert found.sentence == "the repository holds no such snapshot"


@pytest.mark.parametrize(
    "go, posix",
    [(2148532735, 0o1777), (2147484141, 0o755), (8389101, 0o4755), (4194797, 0o2755), (420, 0o644)],
)
def test_modes_are_translated(go: int, posix: int) -> None:
    assert posix_mode(go) == posix


@pytest.mark.parametrize("text", [b"{}", b"[1]", b"[{}]", b"nonsense", b'["x"]'])
def test_a_list_of_snapshots_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"restic|Expecting"):
        RESTIC.parse_snapshots(text)


def test_an_empty_repository_has_no_snapshots() -> None:
    assert RESTIC.parse_snapshots(b"[]") == ()
    assert RESTIC.parse_snapshots(b"") == ()


def test_how_far_a_copy_is() -> None:
    said = {
        b"snapshot 778261c9 saved": (True, ""),  # 0.14 and 0.18
        b"snapshot 41efb7f2 saved, copied from source snapshot cbcf63cd": (True, ""),  # 0.19
        b"[0:07] 12.50%  2 / 16 packs copied": (False, "12.50%"),
        b"snapshot eea9c511 of [/srv/f] at 2026-11-22 18:39:52.5 +0000 UTC)": (False, ""),
        b"skipping source snapshot eea9c511, was already copied to snapshot 778261c9": (False, ""),
    }
    assert {line: tuple(ENGINES["restic"].copy_line(line)) for line in said} == said
    assert ENGINES["borg"].copy_line(b"snapshot 778261c9 saved") == (False, "")
