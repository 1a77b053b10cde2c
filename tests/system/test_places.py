"""The main job into every kind of place: who holds the credentials, and what is said without it."""

import json
import os
import signal
import socket
import subprocess
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
