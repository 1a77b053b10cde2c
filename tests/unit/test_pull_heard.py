"""What goes on from a target, and what may be asked of one: fixed words, types and lengths."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.kernel.facts import read_facts
from capkeep.plan import codec
from capkeep.plan.model import Brief, Job, Resources
from capkeep.rooms.protocol import MAX_LINE, Message, ProtocolError, decode, encode
from capkeep.rooms.pull.asked import ACTIONS, request_of
from capkeep.rooms.pull.given import brief_of
from capkeep.rooms.pull.heard import TEXT_MOST, Rebuilder, differing
from capkeep.rooms.pull.lines import Lines

JOB = Job("job", ("repo",), ("/etc", "/home"), exclude=("*.tmp",), canary="/etc/capkeep/canary")
REBUILDER = Rebuilder(JOB)
SUM = "ab" * 32
FACTS = codec.to_plain(read_facts(None, ()))
HONEST: list[Message] = [
    {"event": "progress", "files": 1, "total_files": 2, "bytes": 3, "total_bytes": 4,
     "current": ["/etc/passwd"], "seconds_left": 5},
    {"event": "message", "text": "well"},
    {"event": "warning", "text": "not so well"},
    {"event": "source", "path": "/etc", "exists": True, "kind": "dir", "empty": False,
     "mount_point": False},
    {"event": "unreadable", "path": "/etc/\udcff", "cause": "denied", "detail": "no"},
    {"event": "left-out", "path": "/etc/secrets", "detail": "hidden"},
    {"event": "live", "files": [
        {"path": "/etc/a", "kind": "file", "mode": 0o644, "uid": 0, "gid": 0, "size": 1, "mtime": 2,
         "ctime": 3, "content": SUM, "attributes": {"user.x": SUM}, "foreign": [], "above": 4},
        {"path": "/etc/b", "missing": "gone"},
    ]},
    {"event": "manifest", "nonce": "cd" * 16, "check": SUM, "begin": 0, "end": (1 << 64) - 1,
     "files": [["/home/a", 1, -2, True, SUM]]},
]  # fmt: skip
RESULT: Message = {
    "event": "result", "exit_code": 0, "failure": None, "text": "", "engine": "restic 0.18.0",
    "engine_words": "", "canary_seen": True, "snapshot": "0123abcd",
    "summary": {"snapshot": "0123abcd", "files_new": 3, "seconds": 0.5, "dry_run": False},
    "stored": 5, "snapshots_stored": ["another"], "parts": ["of something else"],
}  # fmt: skip

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.text(st.characters(categories=["Cs"]), max_size=3)
    | st.sampled_from(["/etc/x", "/root/x", "dir", "denied", SUM, "x" * (TEXT_MOST + 5)]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
EVENTS = sorted({str(m["event"]) for m in HONEST} | {"proof", "result", "kept"})


@pytest.mark.parametrize("said", HONEST, ids=lambda m: str(m["event"]))
def test_what_an_honest_reader_says_goes_on_as_it_is(said: Message) -> None:
    heard = decode(encode(said))
    assert REBUILDER.event(heard) == said


def test_a_result_keeps_what_is_the_target_s_to_say() -> None:
    made = REBUILDER.result(RESULT)
    assert made["snapshot"] == "0123abcd"
    assert made["summary"] == RESULT["summary"]
    assert made.keys().isdisjoint({"stored", "snapshots_stored", "parts", "event"})
    assert REBUILDER.result({**RESULT, "failure": "made up"})["failure"] == "engine"


def test_proofs_are_told_as_the_target_s() -> None:
    proof: Message = {"event": "proof", "facts": FACTS, "weaker": [], "accepted": ["a sentence"]}
    told = {
        p: REBUILDER.event({**proof, "process": p}) for p in ("room", "engine", "vault", "runner")
    }
    assert [made and made["process"] for made in told.values()] == [
        "target", "target engine", None, None,
    ]  # fmt: skip
    assert told["room"] is not None
    assert told["room"]["facts"] == FACTS
    with pytest.raises(ProtocolError):
        REBUILDER.event({**proof, "process": "room", "facts": {"uids": "all"}})


@pytest.mark.parametrize("event", ["ready", "restored", "decision", "changes", "snapshot", "x", 5])
def test_what_no_reader_is_asked_for_goes_no_further(event: object) -> None:
    assert REBUILDER.event({"event": event, "path": "/", "files": [1]}) is None


@pytest.mark.parametrize("path", ["/root/x", "/etc/../root/x", "etc/x", "/etc//x", "", 5])
def test_a_path_that_is_not_the_job_s_is_none(path: object) -> None:
    with pytest.raises(ProtocolError):
        REBUILDER.event({"event": "live", "files": [{"path": path, "missing": "gone"}]})
    manifest = {**HONEST[-1], "files": [[path, 1, 2, True, SUM]]}
    with pytest.raises(ProtocolError):
        REBUILDER.event(manifest)


def _bounded(value: object) -> None:
    if isinstance(value, str):
        assert len(value) <= 4 * TEXT_MOST
        value.encode("utf-8", "surrogateescape")
    elif isinstance(value, dict):
        for name, one in value.items():
            _bounded(name)
            _bounded(one)
    elif isinstance(value, list):
        for one in value:
            _bounded(one)
    elif isinstance(value, float):
        assert math.isfinite(value)


@given(st.sampled_from(EVENTS), st.dictionaries(st.sampled_from([
    "process", "facts", "weaker", "files", "text", "path", "cause", "detail", "exists", "kind",
    "current", "bytes", "nonce", "check", "begin", "end", "exit_code", "failure", "summary",
    "snapshot", "canary_seen", "hint",
]), PLAIN))  # fmt: skip
def test_a_liar_is_refused_or_says_what_anybody_could(event: str, fields: Message) -> None:
    for make in (REBUILDER.event, REBUILDER.result):
        try:
            made = make({**fields, "event": event})
        except ProtocolError:
            continue
        if made is not None:
            _bounded(made)
            json.loads(encode(made), parse_constant=pytest.fail)
            assert made.get("event", event) == event


KEPT: Message = {"event": "kept", "include": ["/home", "/etc"], "exclude": ["*.tmp"],
                 "one_file_system": False, "canary": True}  # fmt: skip


@pytest.mark.parametrize(
    "changed,words",
    [
        ({}, ""),
        ({"include": ["/etc"]}, "/home"),
        ({"include": ["/etc", "/home", "/root"]}, "/root"),
        ({"exclude": []}, r"\*.tmp"),
        ({"one_file_system": True}, "one-file-system"),
        ({"canary": False}, "canary"),
    ],
)
def test_a_target_that_keeps_something_else_is_told_from_one_that_does_not(
    changed: Message, words: str
) -> None:
    found = differing(JOB, {**KEPT, **changed})
    assert bool(found) == bool(words)
    assert words.replace("\\", "") in found


# -- what may be asked


def test_a_request_is_made_anew_from_what_it_may_have() -> None:
    asked: Message = {
        "action": "backup", "options": {"dry_run": True, "turn": 1 << 63, "seconds": 5},
        "password": "a password", "host": "web1", "tags": ["capkeep:hosts.web1", "of mine"],
        "rates": {"upload": 0, "download": 7},
    }  # fmt: skip
    assert request_of(asked) == asked


@pytest.mark.parametrize(
    "more",
    [
        {"action": "stream"},
        {"action": ["backup"]},
        {"options": {"dump": "x"}},
        {"options": {"dry_run": 1}},
        {"options": []},
        {"command": "id"},
        {"host": "-x"},
        {"host": "a/b"},
        {"host": "{hostname}"},
        {"tags": ["a,b"]},
        {"tags": ["x"] * 65},
        {"rates": {"upload": -1}},
        {"rates": {"other": 1}},
        {"password": ""},
        {"password": ["x"]},
    ],
)
def test_nothing_else_can_be_asked(more: Message) -> None:
    with pytest.raises(ProtocolError):
        request_of({"action": "backup", "options": {}, **more})


@given(
    st.dictionaries(
        st.sampled_from(["action", "options", "password", "host", "tags", "rates"]), PLAIN
    )
)
def test_a_request_is_refused_or_one_of_three(said: Message) -> None:
    try:
        made = request_of(said)
    except ProtocolError:
        return
    assert made["action"] in ACTIONS


def test_the_slower_pace_counts_and_the_target_s_own_password() -> None:
    job = JOB._replace(resources=Resources(upload_bytes=5))
    empty = Brief(*[None] * 9, walls=None)._replace(job=job, secrets=())  # type: ignore[arg-type]
    asked: Message = {
        "action": "backup", "options": {}, "password": "theirs", "host": "web1", "tags": ["t"],
        "rates": {"upload": 9, "download": 3},
    }  # fmt: skip
    made = brief_of(empty, asked)
    assert made.secrets == (("password", "theirs"),)
    assert made.job is not None
    assert (made.job.host, made.job.tags) == ("web1", ("t",))
    assert made.job.resources[:2] == (5, 3)
    assert made.job.include == JOB.include
    own = brief_of(empty._replace(secrets=(("password", "ours"),)), asked)
    assert own.secrets == (("password", "ours"),)


# -- lines


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b""))), st.integers(1, 40))
def test_lines_are_lines_however_they_are_cut(lines: list[bytes], cut: int) -> None:
    said = b"".join(line + b"\n" for line in lines)
    heard, taker = [], Lines()
    for at in range(0, len(said), cut):
        heard += taker.feed(said[at : at + cut])
    assert heard == lines


def test_a_line_without_an_end_is_not_kept() -> None:
    taker = Lines()
    for _ in range(MAX_LINE // 1024):
        taker.feed(b"x" * 1024)
    with pytest.raises(ProtocolError):
        taker.feed(b"x")
