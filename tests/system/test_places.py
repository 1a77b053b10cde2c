"""The main job into every kind of place: who holds the credentials, and what is said without it."""

import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capkeep.plan.model import RoomKind
from tests.engines import rclone
from tests.rooms.house import UIDS, House, house, wait_for
from tests.rooms.test_vault_engines import S3_KEY, S3_SECRET, RestServer, Sshd, running
from tests.rooms.vaultkit import free_port
from tests.system.conftest import Product, Said
from tests.system.test_apply import applied_host
from tests.system.test_trouble import engines, slow_run

LOCAL = 'location = "{base}/repositories/repo"'


@pytest.fixture
def home() -> Iterator[House]:
    with house() as home, home.doors():
        yield home


def into(home: House, location: str, *more: str, secrets: dict[str, str] | None = None) -> Product:
    """The installation with its repository in another place."""
    credentials = []
    for name, value in (secrets or {}).items():
        path = Path(home.base, "etc/secrets", name)
        path.write_text(value)
        path.chmod(0o600)
        credentials.append(f'credentials.{name} = {{ file = "{path}" }}')
    product = Product(home)
    lines = [f'location = "{location}"', *more, *credentials]
    product.configure(LOCAL.format(base=home.base), "\n".join(lines))
    return product


def steps(said: Said) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in said.out.splitlines()]
    return [m for m in lines if m["event"] == "step-end"]


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[RestServer]:
    server = RestServer(tmp_path)
    with running(server.argv, server.port):
        yield server


def rest_place(home: House, rest: RestServer, password: str) -> Product:
    ca = Path(home.base, "ca.pem")
    ca.write_bytes(rest.ca.read_bytes())
    login = {"RESTIC_REST_USERNAME": "user", "RESTIC_REST_PASSWORD": password}
    return into(home, rest.location("machine/"), f'options.ca-file = "{ca}"', secrets=login)


def test_a_rest_server(home: House, rest: RestServer) -> None:
    product = rest_place(home, rest, "secret")
    _makes_a_backup(product)


def test_wrong_credentials_have_a_code_of_their_own(home: House, rest: RestServer) -> None:
    done = rest_place(home, rest, "guessed")("run")
    assert done.code == 16, done


def test_an_s3_server(home: House, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    port = free_port()
    argv = [
        str(rclone()), "--config=/dev/null", "serve", "s3", f"--auth-key={S3_KEY},{S3_SECRET}",
        f"--addr=127.0.0.1:{port}", str(tmp_path),
    ]  # fmt: skip
    with running(argv, port, {"HOME": str(tmp_path)}):
        login = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
        location = f"s3:http://127.0.0.1:{port}/bucket/machine"
        _makes_a_backup(into(home, location, secrets=login))


class Policy(http.server.ThreadingHTTPServer):
    """In front of an S3 server: the writer's key may remove nothing but locks."""

    def __init__(self, port: int) -> None:
        self.behind = port
        super().__init__(("127.0.0.1", free_port()), Allowed)


class Allowed(http.server.BaseHTTPRequestHandler):
    """One request, passed on as it came or refused."""

    protocol_version = "HTTP/1.1"
    server: Policy

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        writers = f"Credential={S3_KEY}/" in self.headers["Authorization"]
        if self.command == "DELETE" and writers and "/locks/" not in self.path:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=20)
        with contextlib.closing(behind):
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                behind.putheader(name, value)
            behind.endheaders(body)
            answer = behind.getresponse()
            said = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            head = self.command == "HEAD"
            length = answer.getheader("Content-Length", "0") if head else str(len(said))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(said)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815 (http.server's)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_where_the_usual_credentials_may_only_add_the_keeper_has_its_own(
    home: House, tmp_path: Path
) -> None:
    (tmp_path / "bucket").mkdir()
    port = free_port()
    argv = [
        str(rclone()), "--config=/dev/null", "serve", "s3", f"--auth-key={S3_KEY},{S3_SECRET}",
        "--auth-key=keepers,keepers-secret", f"--addr=127.0.0.1:{port}", str(tmp_path),
    ]  # fmt: skip
    with running(argv, port, {"HOME": str(tmp_path)}), Policy(port) as policy:
        threading.Thread(target=policy.serve_forever, daemon=True).start()
        try:
            login = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
            location = f"s3:http://127.0.0.1:{policy.server_port}/bucket/machine"
            product = into(home, location, secrets=login)
            retention = """[jobs.job.retention]
keep-last = 1
after-backup = false
schedule = ["daily"]
trust-clock = true
"""
            product.configure("[jobs.job]", f"{retention}[jobs.job]")
            _makes_a_backup(product)
            assert product("run").code == 0
            snapshots = tmp_path / "bucket" / "machine" / "snapshots"
            kept = sorted(snapshots.iterdir())
            assert len(kept) == 2
            refused = product("retention", "job")
            assert refused.code != 0, refused
            assert "keeper-credentials" in refused.out, refused
            assert sorted(snapshots.iterdir()) == kept
            lines = []
            keys = {"AWS_ACCESS_KEY_ID": "keepers", "AWS_SECRET_ACCESS_KEY": "keepers-secret"}
            for name, value in keys.items():
                path = Path(home.base, "etc/secrets", f"keepers-{name}")
                path.write_text(value)
                path.chmod(0o600)
                lines.append(f'keeper-credentials.{name} = {{ file = "{path}" }}')
            product.configure(
                "credentials.AWS_ACCESS", "\n".join([*lines, "credentials.AWS_ACCESS"])
            )
            done = product("retention", "job")
            assert done.code == 0, done
            assert len(list(snapshots.iterdir())) == 1
            assert product("run").code == 0
        finally:
            policy.shutdown()


def test_an_sftp_server(tmp_path: Path) -> None:
    """With users that have names: ssh wants to know who it is (getpwuid(3))."""
    server = Sshd(tmp_path)
    folder = tmp_path / "place"
    folder.mkdir()
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(tmp_path / "sshd_config")]
    with applied_host() as host, running(argv, server.port):
        identity, known = host.base / "etc/secrets/identity", host.base / "known_hosts"
        identity.write_bytes((tmp_path / "id").read_bytes())
        identity.chmod(0o600)
        known.write_bytes((tmp_path / "known_hosts").read_bytes())
        text = host.config.read_text()
        there = f'location = "{server.location(folder)}"'
        options = f'options.identity = {{ file = "{identity}" }}\noptions.known-hosts = "{known}"'
        host.config.write_text(
            text.replace(f'location = "{host.base}/repo"', f"{there}\n{options}")
        )
        for verb in ("apply", "init", "run"):
            done = host(verb)
            assert done.code == 0, done
        assert (folder / "config").exists()


def _makes_a_backup(product: Product) -> None:
    for verb in ("init", "run"):
        done = product(verb)
        assert done.code == 0, done
    assert str(product.source) in json.dumps(product.newest())


def test_credentials_are_in_no_process_of_the_reader(home: House, rest: RestServer) -> None:
    product = rest_place(home, rest, "secret")
    assert product("init").code == 0
    run = slow_run(product)
    try:
        seen = [_environment(pid) for pid in engines(product)]
        assert seen
        assert not any(b"RESTIC_REST" in e or b"user:secret" in e for e in seen)
        assert any(b"RESTIC_PASSWORD" in e for e in seen), "the right processes are looked at"
    finally:
        for pid in engines(product):
            os.kill(pid, signal.SIGCONT)
        run.communicate(timeout=60)
    assert run.returncode == 0


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()


def test_an_engine_with_the_network_is_said_so_everywhere(home: House, rest: RestServer) -> None:
    argv = [
        str(rest.argv[0]), "--path", str(rest.base / "plain"), "--no-auth",
        "--listen", f"127.0.0.1:{(port := free_port())}",
    ]  # fmt: skip
    with running(argv, port):
        product = into(home, f"rest:http://127.0.0.1:{port}/machine/", "engine-network = true")
        assert product("init").code == 0
        done = product("run", "--json")
        assert done.code == 0, done
        assert [s["engine_network"] for s in steps(done)] == [True]
        assert '"engine_network": true' in product("log", "--json").out.replace('":true', '": true')


def test_a_place_that_does_not_answer(home: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        places: list[Callable[[], int]] = [free_port, lambda: silent.getsockname()[1]]
        product, before = Product(home), LOCAL.format(base=home.base)
        for port in (place() for place in places):
            location = f'location = "rest:http://127.0.0.1:{port}/machine/"'
            product.configure(before, location)
            before, began = location, time.monotonic()
            done = product("run")
            assert done.code == 15, done
            assert time.monotonic() - began < 30


def test_a_full_disk_is_said_and_heals(home: House) -> None:
    product = Product(home)
    size = "size=300m"
    uid = UIDS[RoomKind.VAULT]
    mount = ["/usr/bin/mount", "-t", "tmpfs", "-o", f"{size},mode=0700,uid={uid},gid={uid}"]
    subprocess.run([*mount, "small", product.repository], check=True, timeout=20)
    try:
        assert product("init").code == 0
        with open(product.source / "big", "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(120))
        done = product("run")
        assert done.code == 14, done
        (product.source / "big").unlink()
        subprocess.run(["/usr/bin/mount", "-o", "remount,size=900m", product.repository],
                       check=True, timeout=20)  # fmt: skip
        done = product("run")
        assert done.code == 0, done
    finally:
        wait_for(lambda: not engines(product))
        subprocess.run(["/usr/bin/umount", "-l", product.repository], check=True, timeout=20)


def test_an_append_only_server_refuses_retention_clearly(home: House, tmp_path: Path) -> None:
    server = RestServer(tmp_path)
    with running([*server.argv, "--append-only"], server.port):
        product = rest_place(home, server, "secret")
        line = f'include = ["{product.source}"]\n'
        rules = "[jobs.job.retention]\nkeep-last = 1\ntrust-clock = true\n"
        product.configure(line, line + rules)
        assert product("init").code == 0
        assert product("run").code == 0
        done = product("run")
        assert done.code == 16, done
        assert "refuses to remove anything" in done.out
        assert "append-only" in done.out
        assert len(json.loads(product("snapshots", "--json").out)[0]["snapshots"]) == 2
