"""The login that a server's key is let in with, by a real sshd: one program, and nothing else."""

import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import capkeep
from capkeep.cli.places import prefixed
from capkeep.host import answerer, login_audit, sshd
from capkeep.host.finding import Finding, Kind
from capkeep.plan.load import load_plan
from capkeep.plan.model import Plan
from tests.engines import restic_programs
from tests.rooms.test_vault_engines import running
from tests.rooms.vaultkit import free_port
from tests.system.conftest import SECONDS, Said

PREFIX = f"ckans{os.getpid()}"
LOGIN = f"{PREFIX}-answerer"
WORD = f"{LOGIN}@127.0.0.1"
CONFIG = """
[host]
user-prefix = "{prefix}"
group = "{prefix}"
[repositories.server]
engine = "restic"
pulled-by = "{key}"
[engines.restic]
program = "{restic}"
[jobs.job]
repositories = ["server"]
include = ["{base}/source"]
"""
# In the answerer's place: it tells what it was started with.
STAND_IN = """
import json, os, sys
def main():
    said = {"argv": sys.argv[1:], "groups": os.getgroups(), "uid": os.getuid(),
            "terminal": os.isatty(0), "agent": "SSH_AUTH_SOCK" in os.environ,
            "asked": os.environ.get("SSH_ORIGINAL_COMMAND", "")}
    print(json.dumps(said), flush=True)
    return 0
"""


class Target:
    """A host that a server comes to, with its sshd."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = free_port()
        self.places = prefixed(str(base))
        # What a shell, sshd's file and Python could each take for something of their own.
        self.package = base / 'it\'s a "lib" $HOME\\n %u;`id`'
        shutil.copytree(Path(capkeep.__file__).parent, self.package / "capkeep",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        (self.package / "capkeep/rooms/answerer.py").write_text(STAND_IN)
        for name in ("host", "server", "stranger"):
            argv = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{name}",
                    "-f", str(base / name)]  # fmt: skip
            subprocess.run(argv, check=True, timeout=20)
        self.config = base / "sshd_config"
        self.config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {base}/host\nPidFile none\n"
            "UsePAM no\nPermitTTY yes\nAllowTcpForwarding yes\nPermitTunnel yes\n"
            "Subsystem sftp internal-sftp\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        (base / "source").mkdir()
        (base / "etc").mkdir()
        shutil.copy(restic_programs()["0.14"], base / "restic")
        key = (base / "server.pub").read_text().strip()
        (base / "etc/capkeep.toml").write_text(
            CONFIG.format(prefix=PREFIX, base=base, key=key, restic=base / "restic")
        )

    @property
    def plan(self) -> Plan:
        return load_plan(self.places)

    def __call__(self, *words: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "capkeep", "--prefix", str(self.base), *words],
            env={"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": str(self.package),
                 "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/", capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def apply(self) -> list[str]:
        """What was made, but for the canary."""
        done = self("apply", "--json")
        assert done.code == 0, done
        made = json.loads(done.out)["changes"]
        assert isinstance(made, list)
        return made

    def ssh(
        self, *words: str, key: str = "server", stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        argv = [
            "/usr/bin/ssh-agent",
            "/usr/bin/ssh",
            "-F",
            "none",
            "-i",
            f"{self.base}/{key}",
            "-p",
            str(self.port),
        ]
        for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes",
                       "IdentitiesOnly=yes", "LogLevel=INFO", "ExitOnForwardFailure=yes"):  # fmt: skip
            argv += ["-o", option]
        return subprocess.run(
            [*argv, *words], input=stdin, capture_output=True, timeout=60, check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.base)},
        )  # fmt: skip

    def found(self) -> dict[str, Finding]:
        """What an audit finds, by the first file or user that it names."""
        return {f.what: f for f in login_audit.findings(self.plan, str(self.config))}


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    os.chmod(base, 0o755)
    try:
        target = Target(Path(base))
        target.apply()
        try:
            with running(["/usr/sbin/sshd", "-D", "-e", "-f", str(target.config)], target.port):
                yield target
        finally:
            removed = target("remove")
            assert removed.code == 0, removed
            assert not [u.pw_name for u in pwd.getpwall() if u.pw_name.startswith(PREFIX)]
            assert not (Path(base) / "state/answerer").exists()
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize(
    "words, asked",
    [
        ((WORD,), ""),
        ((WORD, "cat /etc/shadow; id"), "cat /etc/shadow; id"),
        (("-s", WORD, "sftp"), "internal-sftp"),
        (("-A", "-X", WORD, "sh"), "sh"),
    ],
)
def test_whatever_is_asked_for_the_answerer_is_started(
    target: Target, words: tuple[str, ...], asked: str
) -> None:
    done = target.ssh(*words)
    said = json.loads(done.stdout.splitlines()[-1])
    entry = pwd.getpwnam(LOGIN)
    assert said == {
        "argv": ["server", f"{target.places.run}/reader-job-server.sock"], "asked": asked,
        "groups": [entry.pw_gid], "uid": entry.pw_uid, "terminal": False,
        "agent": False,
    }, done  # fmt: skip


@pytest.mark.parametrize(
    "words, refusal",
    [
        (("-W", "127.0.0.1:1", WORD), b"administratively prohibited"),
        (("-N", "-R", "127.0.0.1:0:127.0.0.1:1", WORD), b"remote port forwarding failed"),
        (("-N", "-R", "/tmp/ckans.sock:127.0.0.1:1", WORD), b"remote port forwarding failed"),
        (("-tt", WORD, "sh"), b"PTY allocation request failed"),
    ],
)
def test_nothing_is_forwarded(target: Target, words: tuple[str, ...], refusal: bytes) -> None:
    done = target.ssh(*words)
    assert refusal in done.stderr, done
    assert done.returncode == 255, done


def test_another_key_and_a_password_are_not_let_in(target: Target) -> None:
    for words in ((), ("-o", "PreferredAuthentications=password,keyboard-interactive")):
        done = target.ssh(*words, WORD, key="stranger")
        assert done.returncode == 255, done
        assert b"Permission denied" in done.stderr, done


def test_files_at_its_home_start_nothing(target: Target) -> None:
    """Root's own could be put there by mistake."""
    ssh = Path(answerer.home(target.places), ".ssh")
    (ssh / "rc").write_text("echo rc was here\n")
    try:
        done = target.ssh(WORD)
        assert b"rc was here" not in done.stdout + done.stderr
        assert target.found()[f"{ssh}/rc"].mend == f"rm -r {ssh}/rc"
    finally:
        (ssh / "rc").unlink()


def test_a_second_apply_changes_nothing(target: Target) -> None:
    for verb in ("plan", "apply"):
        done = target(verb)
        assert (done.code, done.out) == (0, "nothing to change\n"), done
    assert target.found() == {}


def test_a_login_that_was_changed_is_found_and_made_anew(target: Target) -> None:
    before = target.plan
    for argv in (["--password", "!locked", LOGIN], ["--shell", "/bin/false", LOGIN]):
        subprocess.run(["/usr/sbin/usermod", *argv], check=True, timeout=60)
        assert target.ssh(WORD).returncode != 0
        (made,) = target.apply()
        assert made.startswith(f"login {LOGIN}"), made
        assert target.ssh(WORD).returncode == 0
    assert target.plan == before


def test_what_is_wrong_about_the_login_is_found(target: Target) -> None:
    keys = Path(answerer.keys_path(target.places))
    content = keys.read_text()
    program = target.package / "capkeep/rooms/answerer.py"
    cases = [
        (lambda: program.chmod(0o640), str(program), f"chmod o+r {shlex.quote(str(program))}"),
        (lambda: keys.chmod(0o666), str(keys), f"chmod go-w {keys}"),
        (lambda: os.chown(keys, pwd.getpwnam(LOGIN).pw_uid, 0), str(keys), f"chown -h 0 {keys}"),
        (lambda: Path(f"{keys}2").write_text(content), f"{keys}2", f"rm -r {keys}2"),
        (lambda: subprocess.run(["/usr/sbin/usermod", "-aG", "daemon", LOGIN], check=True), f"user {LOGIN}",
         f"gpasswd -d {LOGIN} daemon"),
    ]  # fmt: skip
    for spoil, what, mend in cases:
        spoil()
        found = target.found()
        assert (found[what].kind, found[what].mend) == (Kind.LOGIN, mend), found
        subprocess.run(["/bin/sh", "-c", mend], check=True, timeout=60, capture_output=True)
        target.apply()
        assert target.found() == {}
    program.chmod(0o600)
    said = target("apply").out
    assert f"{program}: " in said, said
    assert "  mend: chmod o+r" in said, said
    program.chmod(0o644)
    keys.write_text(f"{content}{(target.base / 'stranger.pub').read_text()}")
    shown = target("plan")
    assert f"would make file {keys}" in shown.out, shown
    assert "-ssh-ed25519" in shown.out, shown
    target.apply()
    assert keys.read_text() == content


@pytest.mark.parametrize(
    "setting, word",
    [
        ("AuthorizedKeysFile /etc/ssh/keys/%u", "elsewhere"),
        ("AuthorizedKeysFile none", "elsewhere"),
        ("AllowUsers root admin@10.0.0.0/8", "AllowUsers"),
        ("AllowGroups wheel", "AllowGroups"),
        ("PubkeyAuthentication no", "PubkeyAuthentication"),
        ("ForceCommand internal-sftp", "ForceCommand"),
        ("ChrootDirectory /srv", "ChrootDirectory"),
        ("AuthenticationMethods publickey,password", "AuthenticationMethods"),
        ("PubkeyAcceptedAlgorithms ssh-rsa", "PubkeyAcceptedAlgorithms"),
    ],
)
def test_a_sshd_that_makes_it_useless_is_found_and_mended(
    target: Target, setting: str, word: str
) -> None:
    """The command that mends it is carried out, and sshd asked again."""
    before = target.config.read_text()
    target.config.write_text(before + setting + "\n")
    try:
        found = target.found()
        assert word in found[sshd.CONFIG].text, found
        mend = found[sshd.CONFIG].mend.replace(sshd.CONFIG, str(target.config))
        subprocess.run(["/bin/sh", "-c", mend.partition(" && ")[0]], check=True, timeout=60)
        assert target.found() == {}
    finally:
        target.config.write_text(before)


@pytest.mark.parametrize(
    "setting",
    ["DenyUsers *-answerer", "DenyGroups ck*", "PermitUserEnvironment yes", "AcceptEnv LANG *"],
)
def test_a_sshd_that_keeps_it_out_or_weakens_it_is_found(target: Target, setting: str) -> None:
    before = target.config.read_text()
    target.config.write_text(before + setting + "\n")
    try:
        found = target.found()
        assert setting.partition(" ")[0] in found[sshd.CONFIG].text, found
        assert "grep -rn" in found[sshd.CONFIG].mend
    finally:
        target.config.write_text(before)


def test_an_audit_names_whose_key_is_let_in_and_what_others_have_changed(target: Target) -> None:
    words = ["/usr/bin/ssh-keygen", "-lf", str(target.base / "server.pub")]
    shown = subprocess.run(words, capture_output=True, check=True, timeout=20).stdout.decode()
    subprocess.run(["/usr/sbin/usermod", "--shell", "/bin/bash", LOGIN], check=True, timeout=60)
    said = json.loads(target("audit", "--json").out)
    assert any(shown.split()[1] in text and LOGIN in text for text in said["exceptions"]), said
    found = [f for f in said["findings"] if f["what"].startswith(f"login {LOGIN}")]
    assert [(f["kind"], f["mend"]) for f in found] == [("drift", "capkeep apply")], said


def test_nobody_is_let_in_any_more_when_no_server_is_named(target: Target) -> None:
    """The keys go; the user stays until `remove`, and can log in nowhere."""
    path = target.base / "etc/capkeep.toml"
    before = path.read_text()
    key = (target.base / "server.pub").read_text().strip()
    place = (
        f'location = "{target.base}/repo"\npassword = {{ file = "{target.base}/etc/secrets/repo" }}'
    )
    secret = target.base / "etc/secrets/repo"
    secret.write_text("a password\n")
    secret.chmod(0o600)
    path.write_text(before.replace(f'pulled-by = "{key}"', place))
    assert f"removal of directory {target.places.state}/answerer" in target.apply()
    assert target.ssh(WORD).returncode == 255
    path.write_text(before)
    target.apply()
    assert target.ssh(WORD).returncode == 0
