"""What a hostile engine can do to a repository through its vault: add, and nothing else."""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from capkeep.plan.model import Access
from capkeep.rooms.rest.frames import Kind
from tests.rooms.h2 import HELLO, data, hand_over, headers, pseudo, request, split, status_of
from tests.rooms.vaultkit import Vault, start_bare, tree

NAME = hashlib.sha256(b"an object").hexdigest()
KINDS = ("data", "index", "keys", "locks", "snapshots")


def make_repository(root: Path) -> None:
    """restic's layout with one object of every kind; the policy never looks inside."""
    for kind in KINDS:
        folder = root / kind / (NAME[:2] if kind == "data" else "")
        folder.mkdir(parents=True)
        (folder / NAME).write_bytes(b"an object")
    (root / "config").write_bytes(b"the config")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    make_repository(root)
    return root


@pytest.fixture
def vault(repository: Path, tmp_path: Path) -> Iterator[Vault]:
    with Vault(str(repository), tmp_path / "state") as running:
        yield running


Fields = tuple[str, str]


def post(target: str, body: str = "", *more: Fields, length: str | None = None) -> bytes:
    size = ("content-length", str(len(body)) if length is None else length)
    fields = [*pseudo("POST", target), size, *more]
    return headers(1, fields, end=not body) + (data(1, body.encode()) if body else b"")


def get(target: str, *more: Fields, method: str = "GET") -> bytes:
    return headers(1, [*pseudo(method, target), *more])


def bare(*fields: Fields, end: bool = True) -> bytes:
    return headers(1, fields, end=end)


WRONG = "0" * 64
POISON = f"/data/{WRONG}"
DELETE_ALL = request("DELETE", f"/snapshots/{NAME}", stream=3)
AUTHORITY, SCHEME, PATH = (":authority", "x"), (":scheme", "http"), (":path", "/config")
ATTACKS: dict[str, bytes] = {
    "PUT replaces": request("PUT", "/config", b"x"),
    "PATCH changes": request("PATCH", "/config", b"x"),
    "MOVE renames": get(
        f"/snapshots/{NAME}", ("destination", f"/snapshots/{WRONG}"), method="MOVE"
    ),
    "COPY": get(f"/snapshots/{NAME}", ("destination", "/config"), method="COPY"),
    "OPTIONS": get("*", method="OPTIONS"),
    "TRACE": get("/config", method="TRACE"),
    "CONNECT": bare((":method", "CONNECT"), (":authority", "example.org:443")),
    "CONNECT and more": bare(
        (":method", "CONNECT"), (":protocol", "websocket"), SCHEME, PATH, AUTHORITY
    ),
    "small letters": get("/config", method="delete"),
    "absolute target": get("http://169.254.169.254/config"),
    "another scheme": bare(
        (":method", "GET"), (":scheme", "file"), (":path", "/etc/passwd"), AUTHORITY
    ),
    "up and away": get("/../../../../etc/passwd"),
    "up and away, escaped": get("/%2e%2e/%2e%2e/etc/passwd"),
    "up from a kind": get("/data/../config"),
    "two slashes": get("//config"),
    "slash at the end": get("/config/"),
    "a shard of its own": get(f"/data/{NAME[:2]}/{NAME}"),
    "a short name": get(f"/data/{NAME[:63]}"),
    "a long name": get(f"/data/{NAME}0"),
    "capital letters": get(f"/data/{NAME.upper()}"),
    "a name with a null byte": get("/config\0"),
    "a name with a line feed": get("/config\n"),
    "a name with a query": get("/config?x=1"),
    "a name with a fragment": get("/config#x"),
    "other digits": get("/data/" + "\u00b2" * 64),
    "another kind": get(f"/tmp/{NAME}"),
    "the root": get("/"),
    "the root removed": get("/", method="DELETE"),
    "a repository removed": get("/?create=true", method="DELETE"),
    "create, but not": post("/?create=false"),
    "create and more": post("/?create=true&delete=true"),
    "create with a body": post("/?create=true", "x"),
    "a kind removed": get("/snapshots/", method="DELETE"),
    "a kind written": post("/snapshots/", "x"),
    "the config removed": get("/config", method="DELETE"),
    "the config replaced": post("/config", "mine"),
    "a snapshot removed": get(f"/snapshots/{NAME}", method="DELETE"),
    "a key removed": get(f"/keys/{NAME}", method="DELETE"),
    "an index removed": get(f"/index/{NAME}", method="DELETE"),
    "a pack removed": get(f"/data/{NAME}", method="DELETE"),
    "another's lock removed": get(f"/locks/{NAME}", method="DELETE"),
    "a snapshot stored again": post(f"/snapshots/{NAME}", "an object"),
    "a pack stored again": post(f"/data/{NAME}", "an object"),
    "another's lock stored again": post(f"/locks/{NAME}", "an object"),
    "a snapshot with wrong content": post(f"/snapshots/{WRONG}", "poison"),
    "a key with wrong content": post(f"/keys/{WRONG}", "poison"),
    # Engines try the keys that are there in some order, and give up after so many that are none.
    "a key more": post(f"/keys/{hashlib.sha256(b'poison').hexdigest()}", "poison"),
    "a repository made again": post("/?create=true", ""),
    "a lock with wrong content": post(f"/locks/{WRONG}", "poison"),
    "an index with wrong content": post(f"/index/{WRONG}", "poison"),
    "an empty pack": post(POISON, ""),
    "an expectation": post(POISON, "poison", ("expect", "100-continue")),
    "a body that ends early": post(f"/data/{NAME[::-1]}", "short", length="5000"),
    "a body that goes on": post(f"/index/{NAME}", "an object and more", length="9"),
    "a body of unknown length": bare(*pseudo("POST", POISON), end=False) + data(1, b"x"),
    "two lengths": post(POISON, "poison", ("content-length", "0")),
    "length and chunks": post("/?create=true", "", ("transfer-encoding", "chunked")),
    "chunks": bare(*pseudo("POST", POISON), ("transfer-encoding", "chunked"), end=False)
    + data(1, b"6\r\npoison\r\n0\r\n\r\n"),
    "a negative length": post(POISON, "x", length="-1"),
    "a signed length": post(POISON, "x", length="+1"),
    "a hexadecimal length": post(POISON, "x", length="0x1"),
    "a list of lengths": post(POISON, "x", length="1, 1"),
    "a length beyond all": post(POISON, "x", length="9" * 15),
    "a length beyond numbers": post(POISON, "x", length="9" * 400),
    "a pack beyond the limit": post(POISON, "x", length=str((256 << 20) + 1)),
    "a lock beyond the limit": post(f"/locks/{WRONG}", "x", length=str(2 << 20)),
    "a length without a body": get("/config", ("content-length", "5")),
    "a body where none belongs": headers(1, pseudo("GET", "/config"), end=False) + data(1, b"x"),
    "trailers": headers(1, [*pseudo("POST", POISON), ("content-length", "6")], end=False)
    + data(1, b"poi", end=False)
    + headers(1, [("x", "y")]),
    "a capital field": get("/config", ("X-Field", "a")),
    "a field with a line feed": get("/config", ("x", "a\r\nhost: y")),
    "a field with a colon": get("/config", ("x:y", "z")),
    "a field without a name": get("/config", ("", "x")),
    "a space at the end": get("/config", ("x", "y ")),
    "a late pseudo-field": bare((":method", "GET"), ("x", "y"), SCHEME, PATH, AUTHORITY),
    "a pseudo-field twice": get("/config", (":path", f"/snapshots/{NAME}")),
    "an answer's field": bare((":status", "200"), *pseudo("GET", "/config")),
    "a connection's field": get("/config", ("connection", "close")),
    "an upgrade": get("/config", ("upgrade", "h2c")),
    "too many fields": get("/config", *((f"x{n}", "y") for n in range(40))),
    "too long a field": get("/config", ("x", "y" * 2000)),
    "too long a header": get("/config", *((f"x{n}", "y" * 900) for n in range(20))),
    "too long a target": get("/" + "x" * 5000),
    "no path": bare((":method", "GET"), SCHEME, AUTHORITY),
    "no method": bare(SCHEME, PATH, AUTHORITY),
    "no authority": bare((":method", "GET"), SCHEME, PATH),
    "HTTP/1.1": b"GET /config HTTP/1.1\r\nHost: vault\r\n\r\n",
    "noise": bytes(range(256)) * 64,
    "a range that ends first": get("/config", ("range", "bytes=5-1")),
    "many ranges": get("/config", ("range", "bytes=0-1,2-3")),
    "a range from the end": get("/config", ("range", "bytes=-5")),
    "a range beyond": get("/config", ("range", "bytes=1000-")),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_and_changes_nothing(
    repository: Path, tmp_path: Path, attack: str
) -> None:
    before = tree(repository)
    with Vault(str(repository), tmp_path / "state") as vault:
        answer = split(vault.say(HELLO + ATTACKS[attack] + DELETE_ALL))
        statuses = [status_of(c) for h, c in answer if h.kind == Kind.HEADERS]
        assert not [s for s in statuses if s < 400], answer
        assert b"root:" not in b"".join(c for _, c in answer)
        assert tree(repository) == before
        assert vault.ask("HEAD", "/config")[0] == 200


def test_adding_reading_and_listing_work(vault: Vault, repository: Path) -> None:
    content = os.urandom(700_000)
    status, name = vault.add("data", content)
    assert status == 200
    stored = repository / "data" / name[:2] / name
    assert stored.read_bytes() == content
    assert stored.stat().st_mode & 0o777 == 0o400
    assert vault.ask("GET", f"/data/{name}") == (200, content)
    assert vault.ask("GET", f"/data/{name}", range="bytes=10-19") == (206, content[10:20])
    tail = vault.ask("GET", f"/data/{name}", range="bytes=699990-")
    assert tail == (206, content[-10:])
    status, body = vault.ask("GET", "/data/", accept="application/vnd.x.restic.rest.v2")
    assert status == 200
    assert {i["name"]: i["size"] for i in json.loads(body)} == {name: 700_000, NAME: 9}
    assert sorted(json.loads(vault.ask("GET", "/data/")[1])) == sorted([name, NAME])
    events = vault.finish()
    assert events[0]["event"] == "proof"
    assert events[-1] == {"event": "stored", "bytes": 700_000, "snapshots": []}


@pytest.mark.parametrize("size", [1, 100, 8_000, 65_537, 3_000_000])
def test_a_pack_arrives_whole(vault: Vault, repository: Path, size: int) -> None:
    """Whether it comes together with its head, or is moved by the kernel in many pieces."""
    content = os.urandom(size)
    status, name = vault.add("data", content)
    assert status == 200
    assert (repository / "data" / name[:2] / name).read_bytes() == content
    assert vault.ask("POST", f"/data/{name}", b"x" * size)[0] == 403
    assert (repository / "data" / name[:2] / name).read_bytes() == content
    assert vault.ask("HEAD", "/config")[0] == 200, "nothing is left of it in the connection"


def test_a_wrong_pack_takes_its_own_name_and_no_other(vault: Vault, repository: Path) -> None:
    before = tree(repository)
    assert vault.ask("POST", POISON, b"poison")[0] == 200
    after = tree(repository)
    assert after.keys() - before.keys() == {f"data/{WRONG[:2]}/{WRONG}"}
    assert {p: after[p] for p in before} == before


def test_a_listing_shows_no_other_files(vault: Vault, repository: Path) -> None:
    (repository / "data" / NAME[:2] / f"{NAME}-tmp-123").write_bytes(b"x")
    (repository / "snapshots" / ".hidden").write_bytes(b"x")
    (repository / "snapshots" / ("1" * 64)).mkdir()
    (repository / "snapshots" / ("a" * 64)).symlink_to("/etc/passwd")
    assert json.loads(vault.ask("GET", "/data/")[1]) == [NAME]
    assert json.loads(vault.ask("GET", "/snapshots/")[1]) == [NAME]
    assert vault.ask("GET", f"/snapshots/{'a' * 64}")[0] >= 400


def test_many_writers_of_one_name_store_it_once(vault: Vault, repository: Path) -> None:
    content = os.urandom(300_000)
    name = hashlib.sha256(content).hexdigest()
    statuses: list[int] = []
    gate = threading.Barrier(8)

    def write() -> None:
        gate.wait(10)
        statuses.append(vault.ask("POST", f"/snapshots/{name}", content)[0])

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [200] + [403] * 7
    assert (repository / "snapshots" / name).read_bytes() == content


def test_two_configs_at_a_time_leave_the_first(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    state, admin = tmp_path / "state", Access.ADMIN
    with Vault(str(root), state, admin) as one, Vault(str(root), state, admin) as two:
        assert one.ask("POST", "/?create=true")[0] == 200
        assert two.ask("POST", "/?create=true")[0] == 200
        assert one.ask("POST", "/config", b"one")[0] == 200
        assert two.ask("POST", "/config", b"two")[0] == 403
    assert (root / "config").read_bytes() == b"one"


def test_an_upload_is_invisible_until_it_is_whole(vault: Vault, repository: Path) -> None:
    content = os.urandom(600_000)
    name = hashlib.sha256(content).hexdigest()
    before = tree(repository)
    with vault.connect() as client:
        stream = client.begin("POST", f"/data/{name}", len(content))
        client.upload(stream, content[:500_000], end=False)
        time.sleep(0.3)
        assert tree(repository) == before
        assert vault.ask("HEAD", f"/data/{name}")[0] == 404
        client.upload(stream, content[500_000:])
        assert client.answer(stream)[0] == 200
    assert (repository / "data" / name[:2] / name).read_bytes() == content


def test_nothing_is_left_of_uploads_that_end_early(vault: Vault, repository: Path) -> None:
    before = tree(repository)
    with vault.connect() as client:
        client.upload(client.begin("POST", POISON, 600_000), bytes(500_000), end=False)
    time.sleep(0.3)
    vault.finish()
    assert tree(repository) == before


def test_admin_removes_objects_and_never_replaces(repository: Path, tmp_path: Path) -> None:
    with Vault(str(repository), tmp_path / "state", Access.ADMIN) as vault:
        assert vault.ask("POST", f"/snapshots/{NAME}", b"an object")[0] == 403
        for kind in KINDS:
            assert vault.ask("DELETE", f"/{kind}/{NAME}")[0] == 200
            assert vault.ask("DELETE", f"/{kind}/{NAME}")[0] == 404
        assert vault.ask("DELETE", "/config")[0] == 403
        assert vault.ask("DELETE", "/")[0] == 404
        assert vault.ask("DELETE", "/?create=true")[0] == 405
    assert tree(repository) == {"config": hashlib.sha256(b"the config").hexdigest()}


def test_own_locks_may_be_removed_and_others_not(vault: Vault, repository: Path) -> None:
    status, name = vault.add("locks", b"my lock")
    assert status == 200
    assert vault.ask("DELETE", f"/locks/{name}")[0] == 200
    assert vault.ask("DELETE", f"/locks/{name}")[0] == 403
    assert vault.ask("DELETE", f"/locks/{NAME}")[0] == 403
    assert (repository / "locks" / NAME).exists()


def test_storing_anothers_lock_again_does_not_make_it_ones_own(
    vault: Vault, repository: Path
) -> None:
    assert vault.add("locks", b"an object")[0] == 403
    assert vault.ask("DELETE", f"/locks/{NAME}")[0] == 403
    vault.finish()
    assert (repository / "locks" / NAME).exists()


def test_no_repository_is_made_by_a_backup(tmp_path: Path) -> None:
    root = tmp_path / "unmounted"
    root.mkdir()
    with Vault(str(root), tmp_path / "state") as vault:
        assert vault.ask("HEAD", "/config")[0] == 404
        for kind in KINDS:
            assert vault.add(kind, b"x")[0] == 404
        assert vault.ask("POST", "/config", b"x")[0] == 404
        assert list(root.iterdir()) == []


def test_pairs_are_bounded_and_the_first_ones_are_served(vault: Vault) -> None:
    first = vault.connect()
    crowd = [hand_over(vault.handover) for _ in range(60)]
    try:
        time.sleep(0.3)
        tasks = len(list(Path(f"/proc/{vault.child.pid}/task").iterdir()))
        assert tasks <= 20
        with first:
            assert first.ask("HEAD", "/config")[0] == 200
    finally:
        for fd in (fd for pair in crowd for fd in pair):
            os.close(fd)


def test_memory_stays_small_under_large_uploads(vault: Vault) -> None:
    content = os.urandom(40 << 20)
    name = hashlib.sha256(content).hexdigest()
    threads = [
        threading.Thread(target=vault.ask, args=("POST", f"/data/{name}", content))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    status = Path(f"/proc/{vault.child.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 60 << 10, peak


@pytest.mark.parametrize(
    "message",
    [b"", b"{}\n", b'{"handover":false}\n', b"x" * 70000 + b"\n", b'{"handover":true}\n'],
)
def test_a_wire_without_a_proper_handover_ends_the_vault(tmp_path: Path, message: bytes) -> None:
    """The room is not trusted with more than one handover either."""
    with start_bare(tmp_path) as (near, child):
        if message:
            with suppress(OSError):
                near.sendall(message)
        near.shutdown(socket.SHUT_WR)
        assert child.wait(20) == 1


def test_a_handover_that_others_reach_is_refused(tmp_path: Path) -> None:
    with start_bare(tmp_path) as (near, child), socket.create_server(("0.0.0.0", 0)) as wide:
        socket.send_fds(near, [b'{"handover":true}\n'], [wide.fileno()])
        assert child.wait(20) == 1


def test_a_wire_that_only_reads_adds_nothing_but_locks_of_its_own(
    repository: Path, tmp_path: Path
) -> None:
    before = tree(repository)
    empty = tmp_path / "empty"
    empty.mkdir()
    with Vault(str(repository), tmp_path / "state", Access.READ) as vault:
        assert vault.ask("GET", f"/snapshots/{NAME}") == (200, b"an object")
        for kind in ("data", "index", "keys", "snapshots"):
            assert vault.add(kind, b"something new")[0] == 403
            assert vault.ask("DELETE", f"/{kind}/{NAME}")[0] == 403
        assert vault.ask("DELETE", f"/locks/{NAME}")[0] == 403
        status, lock = vault.add("locks", b"a lock of its own")
        assert status == 200
        assert (repository / "locks" / lock).exists()
    assert tree(repository) == before, "its lock has gone with it"
    with Vault(str(empty), tmp_path / "state", Access.READ) as vault:
        assert vault.ask("POST", "/?create=true")[0] == 403
    assert list(empty.iterdir()) == []
