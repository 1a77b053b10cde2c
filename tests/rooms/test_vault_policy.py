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
from tests.rooms.vaultkit import Vault, start_bare, tree

H = "Host: vault\r\n"
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


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vault, Path]]:
    base = tmp_path_factory.mktemp("hostile")
    root = base / "repository"
    root.mkdir()
    make_repository(root)
    with Vault(str(root), base / "state") as running:
        yield running, root


def post(target: str, body: str = "", more: str = "", length: str | None = None) -> bytes:
    size = str(len(body)) if length is None else length
    return f"POST {target} HTTP/1.1\r\n{H}Content-Length: {size}\r\n{more}\r\n{body}".encode()


def get(target: str, more: str = "", method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\n{H}{more}\r\n".encode()


WRONG = "0" * 64
POISON = f"/data/{WRONG}"
DELETE_ALL = f"DELETE /snapshots/{NAME} HTTP/1.1\r\n{H}\r\n"
ATTACKS: dict[str, bytes] = {
    "PUT replaces": f"PUT /config HTTP/1.1\r\n{H}Content-Length: 1\r\n\r\nx".encode(),
    "PATCH changes": f"PATCH /config HTTP/1.1\r\n{H}Content-Length: 1\r\n\r\nx".encode(),
    "MOVE renames": get(f"/snapshots/{NAME}", f"Destination: /snapshots/{WRONG}\r\n", "MOVE"),
    "COPY": get(f"/snapshots/{NAME}", "Destination: /config\r\n", "COPY"),
    "OPTIONS": get("*", method="OPTIONS"),
    "TRACE": get("/config", method="TRACE"),
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "small letters": get("/config", method="delete"),
    "absolute target": get("http://169.254.169.254/config"),
    "another scheme": get("file:///etc/passwd"),
    "up and away": get("/../../../../etc/passwd"),
    "up and away, escaped": get("/%2e%2e/%2e%2e/etc/passwd"),
    "up from a kind": get("/data/../config"),
    "two slashes": get("//config"),
    "slash at the end": get("/config/"),
    "a shard of its own": get(f"/data/{NAME[:2]}/{NAME}"),
    "a short name": get(f"/data/{NAME[:63]}"),
    "a long name": get(f"/data/{NAME}0"),
    "capital letters": get(f"/data/{NAME.upper()}"),
    "a name with a null byte": b"GET /config\0 HTTP/1.1\r\nHost: vault\r\n\r\n",
    "a name with a query": get("/config?x=1"),
    "a name with a fragment": get("/config#x"),
    "other digits": get("/data/" + "\u0660" * 64),
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
    "a pack with wrong content": post(POISON, "poison"),
    "a snapshot with wrong content": post(f"/snapshots/{WRONG}", "poison"),
    "a key with wrong content": post(f"/keys/{WRONG}", "poison"),
    "a lock with wrong content": post(f"/locks/{WRONG}", "poison"),
    "an index with wrong content": post(f"/index/{WRONG}", "poison"),
    "an empty pack": post(POISON, ""),
    "wrong content after a promise": post(POISON, "poison", "Expect: 100-continue\r\n"),
    "another expectation": post(POISON, "poison", "Expect: the-unexpected\r\n"),
    "a body that ends early": post(f"/data/{NAME[::-1]}", "short", length="5000"),
    "two lengths": post(POISON, DELETE_ALL, f"Content-Length: {len(DELETE_ALL)}\r\n"),
    "two different lengths": post(POISON, DELETE_ALL, "Content-Length: 0\r\n"),
    "length and chunks": post(
        "/?create=true", "0\r\n\r\n" + DELETE_ALL, "Transfer-Encoding: chunked\r\n"
    ),
    "chunks": f"POST {POISON} HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n"
    f"6\r\npoison\r\n0\r\n\r\n{DELETE_ALL}".encode(),
    "chunks with an extension": f"POST /?create=true HTTP/1.1\r\n{H}"
    f"Transfer-Encoding: chunked\r\n\r\n0;x=y\r\n\r\n{DELETE_ALL}".encode(),
    "another coding": post(POISON, "x", "Transfer-Encoding: gzip, chunked\r\n"),
    "a coding in disguise": f"POST {POISON} HTTP/1.1\r\n{H}Transfer-Encoding: \x0bchunked\r\n"
    f"\r\n0\r\n\r\n{DELETE_ALL}".encode(),
    "a negative length": post(POISON, "x", length="-1"),
    "a signed length": post(POISON, "x", length="+1"),
    "a hexadecimal length": post(POISON, "x", length="0x1"),
    "a list of lengths": post(POISON, "x", length="1, 1"),
    "a length beyond all": post(POISON, "x", length="9" * 15),
    "a length beyond numbers": post(POISON, "x", length="9" * 400),
    "a pack beyond the limit": post(POISON, "x", length=str((256 << 20) + 1)),
    "a lock beyond the limit": post(f"/locks/{WRONG}", "x", length=str(2 << 20)),
    "a body where none belongs": get("/config", "Content-Length: 5\r\n") + b"hello",
    "a folded field": get("/config", "X: a\r\n b\r\n"),
    "a space before the colon": get("/config", "Content-Length : 0\r\n"),
    "a field without a name": get("/config", ": x\r\n"),
    "bare line feeds": b"GET /config HTTP/1.1\nHost: vault\n\n",
    "a bare carriage return": get("/config", "X: a\rb\r\n"),
    "too many fields": get("/config", "".join(f"X{n}: y\r\n" for n in range(40))),
    "too long a field": get("/config", f"X: {'y' * 2000}\r\n"),
    "too long a header": get("/config", "".join(f"X{n}: {'y' * 900}\r\n" for n in range(20))),
    "too long a target": get("/" + "x" * 5000),
    "no host": b"GET /config HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET /config\r\n\r\n",
    "HTTP/1.0": b"GET /config HTTP/1.0\r\nHost: vault\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(512),
    "noise": bytes(range(256)) * 64,
    "a range that ends first": get("/config", "Range: bytes=5-1\r\n"),
    "many ranges": get("/config", "Range: bytes=0-1,2-3\r\n"),
    "a range from the end": get("/config", "Range: bytes=-5\r\n"),
    "a range beyond": get("/config", "Range: bytes=1000-\r\n"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_and_changes_nothing(hostile: tuple[Vault, Path], attack: str) -> None:
    vault, repository = hostile
    before = tree(repository)
    answer = vault.say(ATTACKS[attack])
    statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    final = [s for s in statuses if s != b"100"]
    assert len(final) <= 1, "what came after a broken request was answered too"
    assert not final or final[0][:1] in b"45", answer
    assert b"root:" not in answer
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
    assert vault.ask("GET", f"/data/{name}", more="Range: bytes=10-19\r\n") == (206, content[10:20])
    tail = vault.ask("GET", f"/data/{name}", more="Range: bytes=699990-\r\n")
    assert tail == (206, content[-10:])
    status, body = vault.ask("GET", "/data/", more="Accept: application/vnd.x.restic.rest.v2\r\n")
    assert status == 200
    assert {i["name"]: i["size"] for i in json.loads(body)} == {name: 700_000, NAME: 9}
    assert sorted(json.loads(vault.ask("GET", "/data/")[1])) == sorted([name, NAME])
    events = vault.finish()
    assert events[0]["event"] == "proof"
    assert events[-1] == {"event": "stored", "bytes": 700_000}


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
    with Vault(str(root), tmp_path / "state") as one, Vault(str(root), tmp_path / "state") as two:
        assert one.ask("POST", "/?create=true")[0] == 200
        assert two.ask("POST", "/?create=true")[0] == 200
        assert one.ask("POST", "/config", b"one")[0] == 200
        assert two.ask("POST", "/config", b"two")[0] == 403
    assert (root / "config").read_bytes() == b"one"


def test_an_upload_is_invisible_until_it_is_whole(vault: Vault, repository: Path) -> None:
    content = os.urandom(600_000)
    name = hashlib.sha256(content).hexdigest()
    before = tree(repository)
    with vault.connect() as sock:
        sock.sendall(post(f"/data/{name}", length=str(len(content))) + content[:500_000])
        time.sleep(0.3)
        assert tree(repository) == before
        assert vault.ask("HEAD", f"/data/{name}")[0] == 404
        sock.sendall(content[500_000:])
        assert b" 200 " in sock.recv(4096)
    assert (repository / "data" / name[:2] / name).read_bytes() == content


def test_nothing_is_left_of_uploads_that_end_early(vault: Vault, repository: Path) -> None:
    before = tree(repository)
    with vault.connect() as sock:
        sock.sendall(post(POISON, length="600000") + bytes(500_000))
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


def test_connections_are_bounded(vault: Vault) -> None:
    crowd = [vault.connect() for _ in range(60)]
    try:
        time.sleep(0.3)
        tasks = len(list(Path(f"/proc/{vault.child.pid}/task").iterdir()))
        assert tasks <= 40
    finally:
        for sock in crowd:
            sock.close()
    deadline = time.monotonic() + 10
    while vault.ask("HEAD", "/config")[0] != 200:
        assert time.monotonic() < deadline


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
    [b"", b"{}\n", b'{"listen":false}\n', b"x" * 70000 + b"\n", b'{"listen":true}\n'],
)
def test_a_wire_without_a_proper_listener_ends_the_vault(tmp_path: Path, message: bytes) -> None:
    """The room is not trusted with more than one listener either."""
    with start_bare(tmp_path) as (near, child):
        if message:
            with suppress(OSError):
                near.sendall(message)
        near.shutdown(socket.SHUT_WR)
        assert child.wait(20) == 1


def test_a_listener_that_others_reach_is_refused(tmp_path: Path) -> None:
    with start_bare(tmp_path) as (near, child), socket.create_server(("0.0.0.0", 0)) as wide:
        socket.send_fds(near, [b'{"listen":true}\n'], [wide.fileno()])
        assert child.wait(20) == 1
