"""Everything that a whole installation says, writes and shows is searched for every secret.

Places of every kind, every verb, runs that end well and badly; each secret in every form that
programs give it. While all that goes on, a stranger looks at every process.
"""

import base64
import contextlib
import itertools
import json
import os
import secrets
import stat
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.engines import rclone
from tests.rooms.house import STRANGER
from tests.rooms.test_vault_engines import Sshd, running
from tests.rooms.vaultkit import free_port
from tests.system.conftest import Said
from tests.system.test_apply import PREFIX, Host, applied_host

FILE_MOST: Final = 64 << 20
BATCH: Final = 500
ELSEWHERE: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/log")
CONFIG: Final = """
[host]
user-prefix = "{prefix}"
group = "{prefix}"

[engines.restic]
program = "{base}/restic"

[repositories.local]
engine = "restic"
location = "{base}/repo"
password = {{ file = "{base}/etc/secrets/local" }}

[repositories.s3]
engine = "restic"
location = "s3:http://127.0.0.1:{s3_port}/bucket/machine"
password = {{ command = ["/bin/cat", "{base}/printed"] }}
credentials.AWS_ACCESS_KEY_ID = {{ file = "{base}/etc/secrets/s3-id" }}
credentials.AWS_SECRET_ACCESS_KEY = {{ file = "{base}/etc/secrets/s3-key" }}

[repositories.sftp]
engine = "restic"
location = "{sftp}"
password = {{ file = "{base}/etc/secrets/sftp" }}
options.identity = {{ file = "{base}/etc/secrets/identity" }}
options.known-hosts = "{base}/known_hosts"

[repositories.dead]
engine = "restic"
location = "rest:http://127.0.0.1:{dead_port}/dead/"
password = {{ file = "{base}/etc/secrets/dead" }}
credentials.RESTIC_REST_USERNAME = {{ file = "{base}/etc/secrets/dead-user" }}
credentials.RESTIC_REST_PASSWORD = {{ file = "{base}/etc/secrets/dead-login" }}

[jobs.all]
repositories = ["local", "s3", "sftp"]
include = ["{base}/source"]

[jobs.partial]
repositories = ["local"]
include = ["{base}/source", "{base}/missing"]

[jobs.dead]
repositories = ["dead"]
include = ["{base}/source"]
retries = 1
retry-wait = "1s"
"""
# A stranger's eyes: every command line, and every environment that he may read.
LOOK: Final = """
import json, os, select, sys
forms = [(name, bytes.fromhex(x)) for name, x in json.loads(sys.stdin.readline())]
found, seen = set(), 0
print("looking", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        for what in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{what}", "rb") as file:
                    text = file.read()
            except OSError:
                continue
            seen += b"capkeep" in text
            found.update((name, what, text[:200].decode(errors="replace"))
                         for name, form in forms if form in text and pid != str(os.getpid()))
print(json.dumps([seen, sorted(found)]))
"""


class Secrets:
    """Secrets that occur nowhere else, and every form in which they could be seen."""

    def __init__(self) -> None:
        self.forms: dict[str, set[bytes]] = {}

    def make(self, name: str, middle: str = "/+=") -> str:
        """One with characters that programs like to quote in the middle."""
        one, two = secrets.token_hex(12), secrets.token_hex(12)
        text = f"{one}{middle}{two}"
        self.note(name, text.encode())
        return text

    def note(self, name: str, text: bytes) -> None:
        self.forms[name] = {text, text.hex().encode(), urllib.parse.quote(text, safe="").encode()}
        # What quoting leaves alone, and base64 wherever it begins in what is encoded.
        self.forms[name] |= {text[:24], text[-24:]}
        for before in range(3):
            coded = base64.b64encode(b"\0" * before + text)
            self.forms[name].add(coded[4 if before else 0 : len(coded) // 4 * 4 - 4])

    def seen_in(self, data: bytes) -> list[str]:
        return sorted(name for name, forms in self.forms.items() if any(f in data for f in forms))


class Scene:
    def __init__(self, host: Host, known: Secrets) -> None:
        self.host = host
        self.known = known
        self.wrong, self.added = known.make("wrong"), known.make("added")
        self.said: list[tuple[str, Said]] = []

    def __call__(self, *words: str) -> Said:
        """Each in words for people, and for machines."""
        done = self.host(*words)
        self.said.append((" ".join(words), done))
        return done

    def both(self, *words: str) -> Said:
        done = self(*words)
        self("--json", *words)
        return done

    def secret(self, name: str) -> Path:
        return self.host.base / "etc/secrets" / name

    def write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    known = Secrets()
    s3_id, s3_key = known.make("s3-id", ""), known.make("s3-key")
    server = Sshd(tmp_path)
    identity = (tmp_path / "id").read_text()
    for line in identity.splitlines()[2:-2]:  # the first holds what all such keys begin with
        known.note(f"identity {line[:4]}", line.encode())
    (tmp_path / "bucket").mkdir()
    port = free_port()
    s3 = [str(rclone()), "--config=/dev/null", "serve", "s3", f"--addr=127.0.0.1:{port}", str(tmp_path)]  # fmt: skip
    sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", str(tmp_path / "sshd_config")]
    with (
        running(s3, port, {"HOME": str(tmp_path), "RCLONE_AUTH_KEY": f'"{s3_id},{s3_key}"'}),
        running(sshd, server.port),
        applied_host() as host,
    ):
        scene = Scene(host, known)
        folder = tmp_path / "place"
        folder.mkdir()
        (host.base / "known_hosts").write_bytes((tmp_path / "known_hosts").read_bytes())
        scene.write(scene.secret("identity"), identity)
        scene.write(scene.secret("s3-id"), s3_id)
        scene.write(scene.secret("s3-key"), s3_key)
        for name in ("local", "sftp", "dead", "dead-user", "dead-login"):
            scene.write(scene.secret(name), known.make(name) + "\n")
        (host.base / "printed").write_text(known.make("printed"))
        (host.base / "printed").chmod(0o644)
        text = CONFIG.format(
            prefix=PREFIX, base=host.base, s3_port=port, sftp=server.location(folder),
            dead_port=free_port(),
        )  # fmt: skip
        host.config.write_text(text)
        yield scene


@contextlib.contextmanager
def watched(known: Secrets) -> Iterator[None]:
    """A stranger looks at all processes meanwhile; fails if he saw a secret."""
    plain = [(name, form.hex()) for name, forms in known.forms.items() for form in forms]
    with subprocess.Popen(
        [sys.executable, "-I", "-c", LOOK], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        user=STRANGER, group=STRANGER, extra_groups=[], cwd="/", text=True,
    ) as stranger:  # fmt: skip
        try:
            assert stranger.stdin is not None
            assert stranger.stdout is not None
            stranger.stdin.write(json.dumps(plain) + "\n")
            stranger.stdin.flush()
            assert stranger.stdout.readline() == "looking\n"
            yield
            out, _ = stranger.communicate("\n", timeout=30)
        except BaseException:
            stranger.kill()
            raise
    seen, found = json.loads(out)
    assert seen > 20, "he saw processes of ours"
    assert found == []


def files(*tops: str, since: float, but: tuple[Path, ...]) -> Iterator[Path]:
    """Files that were written since, whoever wrote them."""
    for top in tops:
        for folder, below, names in os.walk(top):
            others = ("pytest-of-", "pip-", "ck-") if folder in ELSEWHERE else ()
            below[:] = [n for n in below if Path(folder, n) not in but and not n.startswith(others)]
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(OSError):
                    state = path.lstat()
                    small = stat.S_ISREG(state.st_mode) and state.st_size <= FILE_MOST
                    if small and state.st_mtime >= since and path not in but:
                        yield path


def search(known: Secrets, found: Iterable[Path], patterns: Path) -> list[tuple[str, list[str]]]:
    """Which files hold which secrets. grep looks first: it is fast with many words at a time."""
    patterns.write_bytes(b"\n".join(form for forms in known.forms.values() for form in forms))
    hits = []
    left = iter(found)
    while batch := list(itertools.islice(left, BATCH)):
        argv = ["grep", "-lZaFsf", str(patterns), "--", *map(str, batch)]
        done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
        for name in filter(None, done.stdout.decode(errors="surrogateescape").split("\0")):
            with contextlib.suppress(OSError):
                hits.append((name, known.seen_in(Path(name).read_bytes())))
    return hits


def test_the_search_finds_every_form() -> None:
    known = Secrets()
    text = known.make("x").encode()
    for before in range(5):
        coded = base64.b64encode(b"user:"[:before] + text + b"more")
        assert known.seen_in(b"Authorization: Basic " + coded), before
    assert known.seen_in(urllib.parse.quote(text).encode())
    assert known.seen_in(json.dumps(text.decode()).encode())
    assert known.seen_in(text.hex().encode())
    assert not known.seen_in(b"nothing")


@pytest.mark.heavy
@pytest.mark.timeout(500)
def test_no_secret_is_anywhere_but_where_it_is_meant_to_be(scene: Scene, tmp_path: Path) -> None:
    since, base = time.time() - 1, scene.host.base
    sheet = base / "sheet"
    with watched(scene.known):
        _a_day(scene, sheet)
    assert "password" in sheet.read_text()
    meant = (base / "etc/secrets", base / "printed", sheet, tmp_path)
    spoken = [(w, scene.known.seen_in((d.out + d.err).encode())) for w, d in scene.said]
    assert [(words, names) for words, names in spoken if names] == []
    written = list(files(str(base), *ELSEWHERE, since=since, but=meant))
    assert len(written) > 50, "files of ours are searched"
    patterns = tmp_path / "patterns"
    assert search(scene.known, written, patterns) == []
    # And the search does find what is there: not what was never right, nor what was exchanged.
    hits = search(scene.known, files(str(base), since=0, but=()), patterns)
    assert set(scene.known.forms) - {name for _, names in hits for name in names} == {
        "wrong",
        "sftp",
    }


def _a_day(scene: Scene, sheet: Path) -> None:
    """Everything that can be done with an installation, in order."""
    for words in (("config", "check"), ("config", "show"), ("plan",), ("apply",)):
        assert scene.both(*words).code in (0, 7), scene.said[-2:]
    made = scene("init", "local", "s3", "sftp")
    assert made.code == 0, made.out + made.err
    assert scene.both("run", "all").code == 0, scene.said[-2:]
    assert scene.both("run", "partial").code == 3, scene.said[-2:]
    assert scene.both("run", "dead").code == 15, scene.said[-2:]
    right = scene.secret("local").read_text()
    scene.secret("local").write_text(scene.wrong + "\n")
    assert scene.both("run", "all").code == 12, scene.said[-2:]
    assert scene("key", "list", "local").code == 12
    scene.secret("local").write_text(right)
    right = scene.secret("s3-key").read_text()
    scene.secret("s3-key").write_text("refused")
    assert scene("run", "all").code != 0
    scene.secret("s3-key").write_text(right)
    assert scene("check", "local", "--read-data", "all").code == 0
    assert scene("snapshots").code != 0, "one of them is dead"
    for words in (("status",), ("history",), ("log",), ("log", "--proof"), ("audit",), ("check",)):
        scene.both(*words)
    restored = scene("restore", "--repository", "s3", "latest", "--to", f"{scene.host.base}/back")
    assert restored.code == 0, restored
    assert scene("ls", "--repository", "sftp", "latest").code == 0
    file = scene.secret("added")
    scene.write(file, scene.added)
    assert scene("key", "add", "local", "--password-file", str(file)).code == 0
    assert scene.both("key", "list", "local").code == 0
    assert scene("key", "rotate", "sftp").code == 0
    scene.known.note("rotated", scene.secret("sftp").read_text().strip().encode())
    assert scene("key", "rotate", "s3").code == 4, "its password is printed by a command"
    said = scene("key", "export", "s3", "--with-credentials", "--output", str(sheet))
    assert said.code == 0, said
    assert scene("run", "all").code == 0
