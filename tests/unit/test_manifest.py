"""What a reader reads for drills: whose turn it is, what is believed of it, how long it is kept."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import capkeep
from capkeep.engines import ENGINES
from capkeep.engines.base import Entry
from capkeep.plan.model import Drill, Job
from capkeep.rooms import manifest as summing
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.calls import Caller
from capkeep.rooms.choice import Choice
from capkeep.rooms.manifest import CIRCLE, Summing, Turn
from capkeep.rooms.protocol import Message
from capkeep.rooms.prover import _Drill
from capkeep.rooms.sums import DRILL, MANIFEST, content_sum, key_of, text_sum
from capkeep.run import manifest as kept
from capkeep.run.manifest import Manifest, Read, Shelf, asked, compared, parse

SUM = "ab" * 32
SNAPSHOT = "8d2f6c11"


def job(*include: str) -> Job:
    return Job("job", ("repo",), include or ("/data",))


def turn(begin: int, names: list[str], most: int) -> Turn:
    found = Turn(begin, most)
    for name in names:
        found.take(json.dumps(name).encode())
    return found


def test_turns_follow_each_other_until_every_file_had_its_own() -> None:
    names = [f"/data/{number}" for number in range(500)]
    begin, seen = 0, list[str]()
    for _ in range(5):
        files = list(turn(begin, names, 100).files())
        assert files == list(turn(begin, names[::-1], 100).files()), "in whatever order they come"
        seen += [path for _, path in files]
        begin = files[-1][0] + 1
    assert sorted(seen) == sorted(names)
    files = list(turn(begin, names, 1000).files())
    assert len(files) == 500, "a turn may go round the whole circle"
    assert files[0][1] == seen[0]
    assert list(turn(begin + CIRCLE, names, 1000).files()) == files


CHOSEN = """
import sys
sys.path.insert(0, sys.argv[1])
import borg_client
kept = borg_client.Kept(int(sys.argv[2]), 40)
for path in sys.stdin.read().split("\\0"):
    kept.take(path)
for name in kept.names():
    print('{"kept": ' + name + "}")
"""


@pytest.mark.parametrize("begin", [0, 12345 << 48])
def test_borg_names_the_files_whose_turn_it_is(begin: int) -> None:
    names = [f"/data/{number}" for number in range(500)] + ['/data/"}\n', "/data/\u00e9{"]
    guest = Path(capkeep.__file__).parent / "guest"
    said = subprocess.run(
        [sys.executable, "-c", CHOSEN, str(guest), str(begin)], text=True, timeout=60, check=True,
        input="\0".join([*(name.lstrip("/") for name in names), "data/\udcff"]), errors="surrogateescape",
        capture_output=True,
    )  # fmt: skip
    found = Turn(begin)
    for line in said.stdout.splitlines():
        found.take(ENGINES["borg"].kept_file(line.encode()))
        assert ENGINES["borg"].read_backup().feed("stdout", line.encode()) == ()
    assert list(found.files()) == list(turn(begin, names, 40).files())


def test_an_engine_may_name_what_is_no_name() -> None:
    found = Turn(0)
    for name in (b'"/data/one"', b'"\\"', b'"/' + b"x" * 30_000 + b'"', b'"/data/two"'):
        found.take(name)
    assert sorted(path for _, path in found.files()) == ["/data/one", "/data/two"]


@pytest.mark.parametrize(
    "line, name",
    [
        ('{"message_type":"verbose_status","action":"new","item":"/d/f","duration":0.1}', '"/d/f"'),
        (r'{"message_type":"verbose_status","action":"unchanged","item":"/d/q\",\"duration","duration":0}',
         r'"/d/q\",\"duration"'),
        ('{"message_type":"verbose_status","action":"new","item":"/d/","duration":0}', ""),
        ('{"message_type":"verbose_status","action":"scan_finished","item":"","duration":0}', ""),
        ('{"message_type":"verbose_status","action":"new"}', ""),
        ('{"message_type":"summary","item":"/d/f","duration":0}', ""),
        ('{"message_type":"verbose_status","action":"new","item":[[["/d/f","duration":0}', ""),
        ("/d/f", ""),
    ],
)  # fmt: skip
def test_files_that_an_engine_names(line: str, name: str) -> None:
    assert ENGINES["restic"].kept_file(line.encode()) == name.encode()
    assert ENGINES["borg"].kept_file(line.encode()) == b""


def summed(
    folder: Path, names: list[str], monkeypatch: pytest.MonkeyPatch, **less: object
) -> tuple[Message, Summing]:
    """What a reader of that folder tells of these files; others may change what is above it."""
    monkeypatch.setattr(summing, "latest_above", lambda _path, _top: 0)
    for name, value in less.items():
        monkeypatch.setattr(summing, name, value)
    brief = SimpleNamespace(secrets=(("password", "p"),), job=job(str(folder)), source_root="")
    room = cast("EngineRoom", SimpleNamespace(brief=brief, seen=lambda path: path))
    before = max(path.lstat().st_ctime_ns for path in folder.iterdir() if path.name != "late")
    found = Summing(room, turn(0, names, 1000), before)
    assert found.message() is None, "not even a key is known"
    found.work()
    message = found.message()
    assert message is not None
    return message, found


def test_only_files_that_have_not_changed_since_are_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.resolve() / "data"
    folder.mkdir()
    for name in ("one", "two", "late", "odd\ufffd"):
        (folder / name).write_text(name)
    (tmp_path / "foreign").write_text("of no source")
    (folder / "link").symlink_to("one")
    future = 1 << 62
    os.utime(folder / "late", ns=(future, future))
    names = [str(path) for path in folder.iterdir()]
    names += [str(folder / "gone"), str(tmp_path / "foreign"), f"{folder}/../foreign"]
    message, _ = summed(folder, names, monkeypatch)
    manifest = parse(message, job(str(folder)))
    assert sorted(Path(path).name for path in manifest.files) == ["one", "two"]
    key = key_of("p", manifest.nonce, MANIFEST)
    assert manifest.check == text_sum(MANIFEST, key)
    assert manifest.check != text_sum(MANIFEST, key_of("other", manifest.nonce, MANIFEST))
    assert key != key_of("p", manifest.nonce, DRILL)
    with open(folder / "one", "rb") as file:
        right = content_sum(file.fileno(), key, lambda: None)
    one = manifest.files[str(folder / "one")]
    assert one == Read(3, (folder / "one").stat().st_mtime_ns, True, right)
    message, _ = summed(folder, names, monkeypatch, latest_above=lambda *_: 1 << 62)
    moved = parse(message, job(str(folder))).files
    assert [read.stayed for read in moved.values()] == [False, False]
    assert (manifest.begin, manifest.facts()["manifest"]) == (
        0, {"files": 2, "bytes": 6, "part": f"{0:016x}-{manifest.end:016x}"},
    )  # fmt: skip


def test_what_has_no_room_has_its_turn_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.resolve()
    for number in range(20):
        (folder / f"file-{number}").write_text("x" * 10)
    (folder / "large").write_text("x" * 36)
    names = [str(path) for path in folder.iterdir()]
    order = [path for _, path in turn(0, names, 100).files() if not path.endswith("large")]
    message, _ = summed(folder, names, monkeypatch, BYTES_MOST=35)
    manifest = parse(message, job(str(folder)))
    assert list(manifest.files) == order[:3]
    (place,) = [place for place, path in turn(0, names, 100).files() if path == order[3]]
    following = next(turn(manifest.end, names, 1).files())
    assert following[1] in (order[3], str(folder / "large")), (following, place)
    message, _ = summed(folder, names, monkeypatch, BYTES_MOST=1 << 20, FILES_MOST=2)
    assert len(parse(message, job(str(folder))).files) == 2
    message, _ = summed(folder, names, monkeypatch, FILES_MOST=200, TEXT_MOST=600)
    assert 1 <= len(parse(message, job(str(folder))).files) < 7


def test_one_that_is_never_read_to_its_end_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.resolve()
    for name in ("one", "two"):
        (folder / name).write_text(name)

    def slow(_fd: int, _key: bytes, _alive: object) -> str:
        raise summing.Over

    message, _ = summed(folder, [str(folder / "one")], monkeypatch, content_sum=slow)
    assert message["files"] == []
    ((place, _),) = turn(0, [str(folder / "one")], 1).files()
    assert message["end"] == place + 1


GOOD: Message = {
    "event": "manifest", "nonce": "0" * 32, "check": SUM, "begin": 1, "end": 2,
    "files": [["/data/one", 3, 5, True, SUM]],
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": "0" * 31}, {"nonce": None}, {"nonce": "Z" * 32}, {"check": ""}, {"begin": -1}, {"end": CIRCLE},
        {"begin": True}, {"end": "2"}, {"files": None}, {"files": {}}, {"files": [[]]},
        {"files": [["/data/one", 3, 5, True, SUM]] * 201},
        *(
            {"files": [item]}
            for item in (
                ["/data/one", 3, 5, True], ["/etc/shadow", 3, 5, True, SUM], [7, 3, 5, True, SUM],
                ["/data/../etc", 3, 5, True, SUM], ["/data/\0", 3, 5, True, SUM],
                ["/data/" + "x" * 4096, 3, 5, True, SUM], ["/data/one", -1, 5, True, SUM],
                ["/data/one", 1 << 63, 5, True, SUM], ["/data/one", 3.0, 5, True, SUM],
                ["/data/one", 3, 1 << 70, True, SUM], ["/data/one", 3, 5, 1, SUM],
                ["/data/one", 3, 5, True, SUM[1:]], ["/data/one", 3, 5, True, SUM.upper()],
                ["/data/one", 3, 5, True, None], "/data/one", None,
            )
        ),
    ],
)  # fmt: skip
def test_a_reader_is_not_believed_everything(wrong: Message) -> None:
    assert parse(GOOD, job()).files == {"/data/one": Read(3, 5, True, SUM)}
    with pytest.raises(ValueError, match=" "):
        parse({**GOOD, **wrong}, job())


def manifest(*names: str, end: int = 2) -> Manifest:
    return Manifest("0" * 32, SUM, 1, end, {f"/data/{n}": Read(3, 5, True, SUM) for n in names})


def test_the_shelf_keeps_what_is_young_and_for_one_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(str(tmp_path), job(), "repo")
    assert (shelf.begin(), shelf.of(SNAPSHOT)) == (0, None)
    now = 2_000_000_000.0
    shelf.keep(manifest("one", end=7), SNAPSHOT, now - 5)
    assert shelf.of(SNAPSHOT) == shelf.of(SNAPSHOT + "aaaa") == manifest("one", end=7)
    assert shelf.of("") is shelf.of("latest") is shelf.of("ffff0000") is None
    assert shelf.of(SNAPSHOT[:7]) is None, "as short as that it may be another's"
    shelf.keep(manifest("two", end=CIRCLE - 1), "aaaa0000", now)
    assert shelf.begin() == CIRCLE - 1
    shelf.keep(manifest("lie", end=CIRCLE - 1), SNAPSHOT, now)
    assert shelf.of(SNAPSHOT) == manifest("one", end=7), "the first stays"
    for path in tmp_path.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    other = Shelf(str(tmp_path), job("/other"), "repo")
    assert other.of("aaaa0000") is None, "what is the job's no more is not asked for"
    shelf.keep(manifest("one", end=9), "dddd0000", now + 1e9)
    shelf.keep(manifest("one", end=8), "eeee0000", now + 1)
    assert shelf.begin() == 8, "a clock that was ahead stops nothing"
    monkeypatch.setattr(kept, "KEPT", 3)
    for number in range(5):
        shelf.keep(manifest("one"), f"bbbb000{number}", now + number)
    found = [shelf.of(f"bbbb000{number}") is not None for number in range(5)]
    assert found == [False, False, True, True, True]
    far = Shelf(str(tmp_path), job(), "far")
    far.keep(manifest("one"), "cccc0000", now + 9)
    assert all(shelf.of(f"bbbb000{number}") for number in (2, 3, 4))
    far.keep(manifest("one"), "cccc0001", now + kept.YEAR_SECONDS + 4)
    assert [bool(shelf.of(f"bbbb000{number}")) for number in (2, 3, 4)] == [False, False, True]
    monkeypatch.setattr(kept, "KEPT_BYTES", 1)
    shelf.keep(manifest("one"), "bbbb0004", now + kept.YEAR_SECONDS)
    assert len(list(tmp_path.rglob("*bbbb*"))) == 1, "the newest stays"
    (path,) = tmp_path.rglob("*bbbb0004*")
    path.write_text("[" * 100_000)
    assert shelf.of("bbbb0004") is None
    with pytest.raises(ValueError, match="no name"):
        shelf.keep(manifest("one"), "../../etc", now)


FILE: Message = {"kind": "file", "size": 3, "mtime": 5, "read": SUM}


@pytest.mark.parametrize(
    "restored, stayed, kind, words",
    [
        ({}, True, "same", ""),
        ({}, False, "same", ""),
        ({"read": "cd" * 32}, False, "different", "content differs from what was read at backup time"),
        ({"size": 4, "read": "cd" * 32}, False, "changed", ""),
        ({"size": 4, "read": "cd" * 32}, True, "different",
         "size 4, 3 at backup time; content differs from what was read at backup time"),
        ({"mtime": 6}, True, "different", "mtime 6, 5 at backup time"),
    ],
)  # fmt: skip
def test_what_was_restored_is_compared_with_what_was_read(
    restored: Message, stayed: bool, kind: str, words: str
) -> None:
    assert compared({**FILE, **restored}, Read(3, 5, stayed, SUM)) == (kind, words)


def test_a_drill_asks_for_half_of_its_sample() -> None:
    all_of_them = manifest(*(f"{n:03}" for n in range(200)))
    some = asked(all_of_them, "seed", 100, whole=False)
    assert len(set(some)) == 50
    assert some == asked(all_of_them, "seed", 100, whole=False)
    assert some != asked(all_of_them, "other", 100, whole=False)
    assert len(asked(all_of_them, "seed", 100, whole=True)) == 200
    assert asked(all_of_them, "seed", 1, whole=False) == []


def test_what_was_read_is_a_part_of_the_sample() -> None:
    read = ["/data/3", "/data/5", "/data/huge", "/data/gone"]
    told: dict[str, str] = {}
    with open(os.devnull, "w", encoding="ascii") as listing:
        choice = Choice(
            Drill(sample=8, max_bytes=1000), "seed", whole=False, dumps=(), listing=listing,
            moment=0, read=read,
        )  # fmt: skip
        for number in range(100):
            choice.take(Entry(f"/data/{number}", "file", 10, 0o644, 0, 0, "2026-01-01T00:00:00Z"))
        choice.take(Entry("/data/huge", "file", 1001, 0o644, 0, 0, "2026-01-01T00:00:00Z"))
    chosen = [entry.path for entry in choice.chosen(told.__setitem__)]
    assert len(set(chosen)) == 6
    assert {"/data/3", "/data/5"} < set(chosen)
    assert told == {"/data/gone": "was read at backup time, and is not in the snapshot"}


def test_what_was_read_by_another_password_is_not_compared() -> None:
    told: list[Message] = []
    brief = SimpleNamespace(secrets=(("password", "new"),), room=SimpleNamespace(grant=None))
    room = SimpleNamespace(brief=brief, tell=told.append)
    caller = cast("Caller", SimpleNamespace(room=room, scratch=""))
    drilled = cast("Job", SimpleNamespace(drill=Drill(), dumps=()))
    for password, expected in (("new", {"/data/one"}), ("old", set())):
        check = text_sum(MANIFEST, key_of(password, "n" * 32, MANIFEST))
        options: Message = {"read": ["/data/one"], "read_nonce": "n" * 32, "read_check": check}
        assert _Drill(caller, drilled, {"options": options}, "")._read == expected
    assert [message["event"] for message in told] == ["message"], "of the old one alone"
