"""What borg tells of single files, as a giver takes it."""

import json
from base64 import b64encode

import pytest

from capkeep.engines import ENGINES, gives
from capkeep.engines.base import Above, Call
from capkeep.engines.borg_listing import COMMENT, above_of
from capkeep.plan.model import Job
from capkeep.rooms import rights

BORG, GIVES = ENGINES["borg"], gives("borg")
CALL = Call(
    program="/usr/bin/borg", repository="/srv/repo", relay=(), cache_dir="/c", tmp_dir="/c/t",
    password="p", unlocked=True,
)  # fmt: skip
SRV = Above("/srv", 0o755, 0, 0)
SHUT = Above("/srv/shut", 0o700, 7, 8, (("system.posix_acl_access", "AAAA"),))


def _line(path: str, kind: str = "d", mode: str = "drwxr-xr-x", **more: object) -> bytes:
    said = {"type": kind, "mode": mode, "uid": 5, "gid": 6, "size": 1, "path": path, "source": "",
            "isomtime": "2026-01-01T00:00:00.000000", **more}  # fmt: skip
    return json.dumps(said).encode()


def _top(*above: Above) -> str:
    job = Job("job", ("repo",), ("/srv/shut/www",), tags=("capkeep:job",), host="here")
    command = BORG.backup(CALL, job, above=above)
    (comment,) = (w.removeprefix("--comment=") for w in command.argv if w.startswith("--comment="))
    listed = {"archives": [{"id": "aa", "name": "one", "comment": comment}]}
    return GIVES.tops(json.dumps(listed).encode())["aa"]


def test_an_archive_tells_what_is_above_its_sources() -> None:
    found = GIVES.above(_top(SRV, SHUT))
    assert {path: (n.mode, n.uid, n.gid, n.attributes) for path, n in found.items()} == {
        "/srv": (0o755, 0, 0, ()), "/srv/shut": (0o700, 7, 8, SHUT.attributes),
    }  # fmt: skip
    assert GIVES.above(_top()) == {}


@pytest.mark.parametrize(
    "said",
    [
        {"above": 1}, {"above": [1, "x", {}, []]}, {"above": [["/x", "0", 0, 0, []]]},
        {"above": [["/x", 0, 0, 0]]}, [],
    ],
)  # fmt: skip
def test_a_comment_that_tells_it_otherwise_tells_nothing(said: object) -> None:
    assert above_of(COMMENT + b64encode(json.dumps(said).encode()).decode()) == ()


def test_a_list_of_lists_that_is_none_is_one_nobody_knows() -> None:
    said = {"above": [["/x", 0o755, 0, 0, ["?"]]]}
    (one,) = above_of(COMMENT + b64encode(json.dumps(said).encode()).decode())
    assert one.attributes == (("system.", ""),)
    assert rights.from_attributes((name, b"") for name, _ in one.attributes) == rights.UNKNOWN


def test_a_path_is_found_with_all_that_is_above_it() -> None:
    top, names = _top(SRV, SHUT), ("srv", "shut", "www", "a\udcff")
    command = GIVES.look(CALL, top, "", names)
    assert "--bypass-lock" in command.argv
    patterns = [w for w in command.argv if w.startswith("--pattern=")]
    assert patterns == [
        "--pattern=+pf:srv", "--pattern=+pf:srv/shut", "--pattern=+pf:srv/shut/www",
        "--pattern=+pf:srv/shut/www/a\udcff", "--pattern=-re:.",
    ]  # fmt: skip
    printed = b"\n".join((
        _line("srv/shut/www", lists={rights.TEXT: "user::rwx\nuser:9:---\ngroup::r-x\nmask::r-x\nother::r-x"}),
        _line("srv/shut/www/a\ufffd", "-", "-rw-------", attributes={"user.x": "eA=="}),
    ))  # fmt: skip
    found = GIVES.seen(printed, top, "", names)
    assert [(n.kind, n.mode, n.uid) for n in found] == [
        ("dir", 0o755, 0), ("dir", 0o700, 7), ("dir", 0o755, 5), ("file", 0o600, 5)
    ]  # fmt: skip
    assert found[3].attributes == (("user.x", "eA=="),)
    # From a directory above the sources on, it is still known what those are.
    assert GIVES.seen(b"", found[0].below, "/srv", ("shut",)) == [found[1]]
    assert GIVES.seen(printed, found[2].below, "/srv/shut/www", names[3:]) == [found[3]]


def test_what_is_not_there_or_there_twice_is_not_found() -> None:
    top = _top(SRV)
    twice = b"\n".join((_line("srv/x"), _line("srv/x", uid=0)))
    assert len(GIVES.seen(twice, top, "", ("srv", "x", "y"))) == 1
    assert len(GIVES.seen(b"", top, "", ("srv", "x"))) == 1
    assert GIVES.seen(b"", top, "", ("home",)) == []
    with pytest.raises(ValueError, match="archives"):
        GIVES.tops(b"[]")


def test_a_comment_that_is_too_long_tells_less() -> None:
    job = Job("job", ("repo",), ("/srv/x",), tags=("capkeep:job",), host="here")
    many = tuple(Above(f"/srv/{n:0100}", 0o755, 0, 0) for n in range(1000))
    (comment,) = (
        w.removeprefix("--comment=")
        for w in BORG.backup(CALL, job, above=many).argv if w.startswith("--comment=")
    )  # fmt: skip
    assert len(comment) < 60_000
    assert above_of(comment) == ()
