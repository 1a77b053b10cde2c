"""Every restic, end to end, through a vault in front of every kind of place."""

import base64
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from capkeep.kernel.process import spawn
from capkeep.plan.model import Access
from tests.engines import rclone, rest_server, restic_programs
from tests.rooms.vaultkit import (
    PASSWORD,
    Pairs,
    Vault,
    failures,
    free_port,
    initialised,
    restic,
    start_restic,
    wait_for_port,
)

PROGRAMS = restic_programs()
NEWEST = list(PROGRAMS)[-1]
S3_KEY, S3_SECRET = "AKIDEXAMPLE", "an-s3-secret"

Opener = Callable[[Path, Access], AbstractContextManager[Vault]]


@contextmanager
def running(argv: list[str], port: int, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server that listens on a port, ended at the end."""
    child = spawn(argv, env={"PATH": "/usr/bin:/bin", **(env or {})})
    try:
        wait_for_port(port)
        yield
    finally:
        child.kill(3)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server that checks signatures, with one bucket."""
    base = tmp_path_factory.mktemp("s3")
    (base / "bucket").mkdir()
    port = free_port()
    argv = [
        str(rclone()), "--config=/dev/null", "serve", "s3", f"--auth-key={S3_KEY},{S3_SECRET}",
        f"--addr=127.0.0.1:{port}", str(base),
    ]  # fmt: skip
    with running(argv, port, {"HOME": str(base)}):
        yield f"s3:http://127.0.0.1:{port}/bucket/machine"


class Sshd:
    """A real sshd with keys of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = free_port()
        for name in ("host", "id", "stranger"):
            argv = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name)]
            subprocess.run(argv, check=True, timeout=20)
        shutil.copy(base / "id.pub", base / "authorized")
        host_key = " ".join((base / "host.pub").read_text().split()[:2])
        (base / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}\n")
        (base / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {base}/host\n"
            f"AuthorizedKeysFile {base}/authorized\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "Subsystem sftp internal-sftp\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)

    def location(self, path: Path | str) -> str:
        return f"sftp://root@127.0.0.1:{self.port}/{path}"

    def key(self, name: str = "id") -> Pairs:
        return [("identity", (self.base / name).read_text())]

    @property
    def hosts(self) -> Pairs:
        return [("known-hosts", str(self.base / "known_hosts"))]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(server.base / "sshd_config")]
    with running(argv, server.port):
        yield server


class RestServer:
    """Debian's rest-server with a password and a certificate of our own authority."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = free_port()
        self.ca = base / "ca.pem"
        subprocess.run(
            [
                "/usr/bin/openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(base / "key.pem"),
                "-out", str(self.ca),
            ],
            check=True, capture_output=True, timeout=30,
        )  # fmt: skip
        # rest-server takes {SHA} and bcrypt (htpasswd.go): SHA needs no other program.
        digest = base64.b64encode(hashlib.sha1(b"secret").digest()).decode()
        (base / "htpasswd").write_text(f"user:{{SHA}}{digest}\n")

    @property
    def argv(self) -> list[str]:
        return [
            str(rest_server()), "--path", str(self.base / "data"), "--listen",
            f"127.0.0.1:{self.port}", "--htpasswd-file", str(self.base / "htpasswd"),
            "--tls", "--tls-cert", str(self.ca), "--tls-key", str(self.base / "key.pem"),
        ]  # fmt: skip

    def location(self, path: str = "") -> str:
        return f"rest:https://127.0.0.1:{self.port}/{path}"

    @property
    def trust(self) -> Pairs:
        return [("ca-file", str(self.ca))]


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestServer]:
    server = RestServer(tmp_path_factory.mktemp("rest"))
    with running(server.argv, server.port):
        yield server


def login(user: str, password: str) -> Pairs:
    return [("RESTIC_REST_USERNAME", user), ("RESTIC_REST_PASSWORD", password)]


def s3_login(secret: str = S3_SECRET) -> Pairs:
    return [("AWS_ACCESS_KEY_ID", S3_KEY), ("AWS_SECRET_ACCESS_KEY", secret)]


RCLONE: Pairs = [("rclone", str(rclone()))]


@pytest.fixture(params=["local", "sftp", "rest", "s3", "rclone"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens vaults in front of one and the same new place."""
    state = tmp_path / "state"
    folder = tmp_path / "place"
    folder.mkdir()
    kind = request.param
    if kind == "s3":
        s3 = request.getfixturevalue("s3") + f"-{time.monotonic_ns()}"
        return lambda _, access: Vault(s3, state, access, secrets=s3_login(), options=RCLONE)
    if kind == "rest":
        rest = request.getfixturevalue("rest")
        location = rest.location(f"r{time.monotonic_ns()}/")
        return lambda _, access: Vault(
            location, state, access, secrets=login("user", "secret"), options=rest.trust
        )
    if kind == "sftp":
        sshd = request.getfixturevalue("sshd")
        return lambda _, access: Vault(
            sshd.location(folder), state, access, secrets=sshd.key(), options=sshd.hosts
        )
    if kind == "rclone":
        remote: Pairs = [("RCLONE_CONFIG_DISK_TYPE", "local")]
        return lambda _, access: Vault(
            f"rclone:disk:{folder}", state, access, environment=remote, options=RCLONE
        )
    return lambda _, access: Vault(str(folder), state, access)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Something to save: more than one pack, and it does not compress."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(40):
        (folder / f"small{number}").write_bytes(os.urandom(3000))
    (folder / "large").write_bytes(os.urandom(9 << 20))
    return folder


def snapshots(program: Path, url: Vault | str, cache: Path) -> int:
    done = restic(program, url, "snapshots", "--json", cache=cache)
    assert done.returncode == 0, done.stderr
    return done.stdout.count('"short_id"')


def refused_forget(
    program: Path, url: Vault | str, cache: Path
) -> subprocess.CompletedProcess[str]:
    """restic tries a refused removal for long: what matters is that it does not succeed."""
    with start_restic(program, url, "forget", "latest", "--no-cache", cache=cache) as child:
        try:
            said = child.communicate(timeout=4)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            try:
                said = child.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                said = child.communicate()
    return subprocess.CompletedProcess(child.args, child.returncode, "".join(said), "")


def whole_life(program: Path, place: Opener, source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with place(tmp_path, Access.APPEND) as vault:
        done = restic(program, vault, "cat", "config", cache=cache)
        assert done.returncode != 0, "there is no repository yet"
    initialised(program, place(tmp_path, Access.ADMIN), cache)
    with place(tmp_path, Access.APPEND) as vault:
        done = restic(program, vault, "backup", str(source), cache=cache)
        assert done.returncode == 0, done.stderr
        done = restic(program, vault, "check", "--read-data", cache=cache)
        assert done.returncode == 0, done.stdout + done.stderr
        stored = vault.finish()[-1]
        assert stored["event"] == "stored"
        assert int(str(stored["bytes"])) > 9 << 20
    with place(tmp_path, Access.APPEND) as vault:
        (source / "large").write_bytes(os.urandom(1 << 20))
        done = restic(program, vault, "backup", str(source), cache=cache)
        assert done.returncode == 0, done.stderr
        said = refused_forget(program, vault, cache)
        assert "403" in said.stdout, said.stdout
        assert snapshots(program, vault, cache) == 2
        assert failures(vault.finish()) == []
    with place(tmp_path, Access.ADMIN) as vault:
        args = ("forget", "--keep-last", "1", "--prune")
        done = restic(program, vault, *args, cache=cache)
        assert done.returncode == 0, done.stdout + done.stderr
        assert snapshots(program, vault, cache) == 1
        back = tmp_path / "back"
        args = ("restore", "latest", "--target", str(back))
        done = restic(program, vault, *args, cache=cache)
        assert done.returncode == 0, done.stderr
        for file in source.iterdir():
            assert (back / str(file).lstrip("/")).read_bytes() == file.read_bytes()
        assert failures(vault.finish()) == []


def test_newest_restic_with_every_place(place: Opener, source: Path, tmp_path: Path) -> None:
    whole_life(PROGRAMS[NEWEST], place, source, tmp_path)


@pytest.mark.parametrize("version", [v for v in PROGRAMS if v != NEWEST])
def test_older_restics_with_a_directory(version: str, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    whole_life(
        PROGRAMS[version],
        lambda _, access: Vault(str(folder), tmp_path / "state", access),
        source,
        tmp_path,
    )


def test_objects_lie_where_restic_itself_puts_and_finds_them(
    s3: str, sshd: Sshd, source: Path, tmp_path: Path
) -> None:
    """Repositories that exist go on, and can be read without capkeep: no layout of our own."""
    program = PROGRAMS[NEWEST]
    cache = tmp_path / "cache"
    folder = tmp_path / "sftp"
    folder.mkdir()
    direct = str(folder)

    def vault_of(access: Access) -> Vault:
        return Vault(sshd.location(folder), tmp_path / "state", access, secrets=sshd.key(),
                     options=sshd.hosts)  # fmt: skip

    initialised(program, vault_of(Access.ADMIN), cache)
    with vault_of(Access.APPEND) as vault:
        assert restic(program, vault, "backup", str(source), cache=cache).returncode == 0
    assert restic(program, direct, "check", "--read-data", cache=cache).returncode == 0
    here = s3 + "-direct"
    env = {
        "PATH": "/usr/bin", "HOME": str(cache), "RESTIC_PASSWORD": PASSWORD,
        "RESTIC_REPOSITORY": here, **dict(s3_login()),
    }  # fmt: skip
    for args in (["init"], ["backup", str(source)]):
        subprocess.run([str(program), *args], env=env, check=True, timeout=60, capture_output=True)
    with Vault(here, tmp_path / "state", secrets=s3_login(), options=RCLONE) as vault:
        done = restic(program, vault, "check", "--read-data", cache=cache)
        assert done.returncode == 0, done.stderr
        assert restic(program, vault, "backup", str(source), cache=cache).returncode == 0
    done = subprocess.run(
        [str(program), "check", "--read-data"],
        env=env,
        timeout=60,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- what goes wrong with a remote, and how early it is said


def test_wrong_credentials_are_denied(
    s3: str, sshd: Sshd, rest: RestServer, tmp_path: Path
) -> None:
    bad = [
        Vault(s3, tmp_path / "1", secrets=s3_login("wrong"), options=RCLONE),
        Vault(rest.location(), tmp_path / "2", secrets=login("user", "no"), options=rest.trust),
        Vault(
            sshd.location("/tmp"), tmp_path / "3",
            secrets=sshd.key("stranger"), options=sshd.hosts,
        ),
        Vault(
            sshd.location("/tmp"), tmp_path / "4",
            secrets=[("identity", "no key at all")], options=sshd.hosts,
        ),
    ]  # fmt: skip
    for vault in bad:
        with vault:
            events = vault.events()
            assert failures(events) == ["denied"], events
            assert "secret" not in str(events)


def test_a_server_that_is_not_the_known_one_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "other hosts % file"
    stranger = " ".join((sshd.base / "stranger.pub").read_text().split()[:2])
    other.write_text(f"[127.0.0.1]:{sshd.port} {stranger}\n")
    with Vault(
        sshd.location("/tmp"), tmp_path / "state",
        secrets=sshd.key(), options=[("known-hosts", str(other))],
    ) as vault:  # fmt: skip
        assert failures(vault.events()) == ["denied"]


def test_an_untrusted_certificate_is_refused(rest: RestServer, tmp_path: Path) -> None:
    with Vault(rest.location(), tmp_path / "s", secrets=login("user", "secret")) as vault:
        events = vault.events()
    assert failures(events) == ["unreachable"]
    assert "certificate" in str(events[-1]["text"])


SCHEMES = ["rest:http://{}/", "s3:http://{}/bucket/x", "sftp://user@{}//srv"]


def at(scheme: str, address: str, state: Path, sshd: Sshd) -> Vault:
    location = scheme.format(address)
    if scheme.startswith("s3"):
        return Vault(location, state, secrets=s3_login(), options=RCLONE)
    if scheme.startswith("sftp"):
        return Vault(location, state, secrets=sshd.key(), options=sshd.hosts)
    return Vault(location, state)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_refused_port_is_unreachable_at_once(scheme: str, sshd: Sshd, tmp_path: Path) -> None:
    begun = time.monotonic()
    with at(scheme, f"127.0.0.1:{free_port()}", tmp_path, sshd) as vault:
        assert failures(vault.events()) == ["unreachable"]
    assert time.monotonic() - begun < 8


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_silent_endpoint_is_unreachable_within_15_seconds(
    scheme: str, sshd: Sshd, tmp_path: Path
) -> None:
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with at(scheme, address, tmp_path, sshd) as vault:
            vault.near.settimeout(16)
            said = b""
            while b'"failure"' not in said:
                said += vault.near.recv(65536)
            assert b"unreachable" in said
            assert time.monotonic() - begun < 15.5


@pytest.mark.heavy
def test_a_black_hole_is_unreachable_within_15_seconds(sshd: Sshd, tmp_path: Path) -> None:
    """A full backlog on loopback drops what comes, as a firewall does."""
    begun = time.monotonic()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            crowd.append(sock)
        time.sleep(0.2)
        address = f"127.0.0.1:{full.getsockname()[1]}"
        with at(SCHEMES[0], address, tmp_path, sshd) as vault:
            assert failures(vault.events()) == ["unreachable"]
        for sock in crowd:
            sock.close()
    assert time.monotonic() - begun < 15.5


def test_nothing_of_a_remote_vault_outlives_it(s3: str, sshd: Sshd, tmp_path: Path) -> None:
    """rclone, ssh and ssh-agent end with their vault, also when it is killed."""
    folder = tmp_path / "place"
    folder.mkdir()
    made = [
        Vault(s3, tmp_path / "1", secrets=s3_login(), options=RCLONE),
        Vault(sshd.location(folder), tmp_path / "2", secrets=sshd.key(), options=sshd.hosts),
    ]
    for vault in made:
        with vault:
            assert vault.ask("HEAD", "/config")[0] == 404
            children = Path(f"/proc/{vault.child.pid}/task/{vault.child.pid}/children")
            pids = children.read_text().split()
            assert pids
            vault.child.kill()
            deadline = time.monotonic() + 5
            while any(alive(pid) for pid in pids):
                assert time.monotonic() < deadline
                time.sleep(0.02)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_secret_is_left_on_the_disk(sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    with Vault(
        sshd.location(folder), tmp_path / "state", secrets=sshd.key(), options=sshd.hosts
    ) as vault:
        assert vault.ask("HEAD", "/config")[0] == 404
        vault.child.kill()
        for file in (tmp_path / "state").rglob("*"):
            assert not (file.is_file() and b"PRIVATE KEY" in file.read_bytes())
