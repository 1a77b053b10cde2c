"""borg on another machine, the whole way: a key that may only add, and the keeper's own."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.rooms.test_vault_engines import Sshd, running
from tests.system.test_apply import Host, applied_host
from tests.system.test_borg import OMIT

BORG = "/usr/bin/borg"
CONFIG = """
[repositories.far]
engine = "borg"
location = "ssh://root@127.0.0.1:{port}{path}"
password = {{ file = "{secrets}/far" }}
options.identity = {{ file = "{secrets}/id" }}
options.known-hosts = "{known}"
keeper-credentials.identity = {{ file = "{secrets}/keeper" }}

[jobs.far]
repositories = ["far"]
include = ["{source}"]
check = {{}}
retention = {{ keep-last = 2, trust-clock = true }}
"""


def configured(host: Host, server: Sshd, place: Path) -> None:
    """The server's own borg lets the first key only add, the second one do all."""
    secrets = host.base / "etc/secrets"
    subprocess.run(
        ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(server.base / "keeper")],
        check=True, timeout=20,
    )  # fmt: skip
    lines = []
    for name, more in (("id", " --append-only"), ("keeper", "")):
        key = (server.base / f"{name}.pub").read_text()
        lines.append(f'restrict,command="{BORG} serve --restrict-to-path {place}{more}" {key}')
        (secrets / name).write_bytes((server.base / name).read_bytes())
    (server.base / "authorized").write_text("".join(lines))
    (secrets / "far").write_text("a password")
    for path in secrets.iterdir():
        path.chmod(0o600)
    known, source = host.base / "known_hosts", host.base / "far"
    known.write_bytes((server.base / "known_hosts").read_bytes())
    source.mkdir()
    text = CONFIG.format(port=server.port, path=place, secrets=secrets, known=known, source=source)
    host.config.write_text(host.config.read_text() + text)


@pytest.mark.timeout(300)
def test_the_whole_way_over_ssh(tmp_path: Path) -> None:
    server = Sshd(tmp_path)
    place = tmp_path / "place"
    argv = [
        "/usr/sbin/sshd",
        "-D",
        "-E",
        str(tmp_path / "log"),
        "-f",
        str(tmp_path / "sshd_config"),
    ]
    with applied_host() as host, running(argv, server.port):
        configured(host, server, place)
        for words in (("apply",), ("init", "far")):
            done = host(*words)
            assert done.code == 0, done
        for number in range(2):
            (host.base / "far/number").write_text(f"{number}")
            done = host("run", "far")
            assert done.code == 0, done
        restored = host("restore", "latest", str(host.base / "far"), "--repository", "far",
                        "--to", str(tmp_path / "back"))  # fmt: skip
        assert restored.code == 0, restored
        assert Path(f"{tmp_path}/back{host.base}/far/number").read_text() == "1"
        exported = host("key", "export", "far", "--output", str(tmp_path / "sheet"))
        assert exported.code == 0, exported
        sheet = (tmp_path / "sheet").read_text()
        assert "BORG_KEY " in sheet
        assert "BORG_RSH" in sheet
        _is_brought_back(host, place, listed(host))
        removed = host("retention", "far")
        assert removed.code == 0, removed
        assert len(listed(host)) == 2
        audit = host("audit")
        assert audit.code == 0, audit
        # Which key did what is the server's own word.
        log = (tmp_path / "log").read_text()
        for name in ("id", "keeper"):
            print_of = subprocess.run(
                ["/usr/bin/ssh-keygen", "-l", "-f", str(server.base / f"{name}.pub")],
                check=True, timeout=20, capture_output=True, text=True,
            ).stdout.split()[1]  # fmt: skip
            assert print_of in log


def _is_brought_back(host: Host, place: Path, ids: set[str]) -> None:
    """A list that omits archives is mended there as it is here."""
    env = {"BORG_BASE_DIR": str(place.parent / "outside"), "BORG_PASSPHRASE": "a password",
           "PATH": "/usr/bin:/bin"}  # fmt: skip
    (place.parent / "outside").mkdir()
    subprocess.run(["/usr/bin/python3", "-c", OMIT, str(place)], env=env, timeout=60, check=True)
    done = host("run", "far")
    assert done.code == 13, done
    assert "brought back" in done.out
    assert ids < listed(host)


def listed(host: Host) -> set[str]:
    said = host("snapshots", "far", "--json")
    assert said.code == 0, said
    return {one["id"] for one in json.loads(said.out)[0]["snapshots"]}
