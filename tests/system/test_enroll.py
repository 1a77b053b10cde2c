"""A target is enrolled from its server: by the script, and over a real ssh."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import capkeep
from capkeep.errors import StepError
from capkeep.host import admin_ssh, enroll, far_script, far_seen
from capkeep.host.admin_ssh import Way
from capkeep.host.enroll_script import Enrolment, Ground, script
from capkeep.host.ways_seen import Way as WayToRead
from capkeep.kernel import landlock
from tests.engines import restic_programs
from tests.rooms.test_vault_engines import running
from tests.rooms.vaultkit import free_port
from tests.system.conftest import SECONDS, Said

PREFIX = f"ckenr{os.getpid()}"
LOGIN = f"{PREFIX}-answerer"
SERVER = """
[pull]
identity = {{ file = "{base}/etc/secrets/pull" }}
[targets.web1]
host = "127.0.0.1"
port = {port}
{key}
groups = ["web"]
[repositories.pulled]
engine = "restic"
location = "{base}/repositories/{{target}}"
password = {{ file = "{base}/etc/secrets/pulled" }}
[engines.restic]
program = "{base}/restic"
[jobs.hosts]
targets = ["@web"]
repositories = ["pulled"]
include = ["{base}/source", "/it's a \\" $HOME"]
exclude = ["**/.cache"]
"""
# What a target has of its own, beside what servers let it do.
TARGET = """
[host]
user-prefix = "{prefix}"
group = "{prefix}"
[engines.restic]
program = "{base}/restic"
[repositories.own]
engine = "restic"
location = "{base}/own"
password = {{ file = "{base}/etc/secrets/own" }}
[jobs.own]
repositories = ["own"]
include = ["{base}/source"]
"""


class Host:
    """A server or a target, each below a directory of its own."""

    def __init__(self, base: Path, *secrets: str) -> None:
        self.base = base
        self.more: dict[str, str] = {}  # of the environment
        base.mkdir(mode=0o755)
        (base / "etc/secrets").mkdir(parents=True)
        (base / "etc/secrets").chmod(0o700)
        (base / "source").mkdir()
        for name in secrets:
            (base / "etc/secrets" / name).write_text("a password\n")
            (base / "etc/secrets" / name).chmod(0o600)
        shutil.copy(restic_programs()["0.14"], base / "restic")
        self.package = base / "lib"
        shutil.copytree(Path(capkeep.__file__).parent, self.package / "capkeep",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip

    def configure(self, text: str) -> None:
        (self.base / "etc/capkeep.toml").write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": str(self.package),
                "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(self.base), **self.more}  # fmt: skip

    def __call__(self, *words: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "capkeep", "--prefix", str(self.base), *words],
            env=self.environment, stdin=subprocess.DEVNULL,
            cwd="/", capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


class Target(Host):
    """A target, with a `capkeep` that keeps everything below its directory."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, "own")
        self.ground = Ground(f"{base}/etc", f"{base}/opt", f"{base}/systemd")  # which is not there
        (base / "opt/bin").mkdir(parents=True)
        words = " ".join(f"{k}='{v}'" for k, v in self.environment.items() if k != "PATH")
        program = base / "opt/bin/capkeep"
        program.write_text(
            f'#!/bin/sh\n{words} exec {sys.executable} -P -m capkeep --prefix {base} "$@"\n'
        )
        program.chmod(0o755)
        self.configure(TARGET.format(prefix=PREFIX, base=base))

    def run(
        self, enrolment: Enrolment, start: str = "", before: tuple[str, ...] = (), **kinds: bool
    ) -> Said:
        text = script(enrolment, capkeep.__version__, ground=self.ground, start=start, **kinds)
        done = subprocess.run([*before, "/bin/sh", "-s"], input=text.encode(), capture_output=True,
                              timeout=SECONDS, check=False, cwd="/")  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    @property
    def drop_in(self) -> Path:
        return self.base / "etc/conf.d/pulled-by-backup1.toml"

    @property
    def keys(self) -> Path:
        return self.base / "state/answerer/.ssh/authorized_keys"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    os.chmod(base, 0o755)
    yield Path(base)
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Host]:
    """With a key, and an sshd of its target."""
    host = Host(place / "server", "pulled")
    for path in (host.base / "etc/secrets/pull", place / "host", place / "admin"):
        argv = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(argv, check=True, timeout=20)
    port = free_port()
    host.configure(SERVER.format(base=host.base, port=port, key=""))
    shutil.copy(place / "admin.pub", place / "authorized")
    config = place / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {place}/authorized\nStrictModes no\nSetEnv PATH={place}/bin:/usr/bin:/bin\n"
    )
    (place / "bin").mkdir()
    (place / "bin/sudo").write_text('#!/bin/sh\necho "asked for $*"\nexec "$@"\n')
    (place / "bin/sudo").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    with running(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], port):
        yield host


@pytest.fixture(scope="module")
def target(place: Path) -> Iterator[Target]:
    target = Target(place / "target")
    yield target
    with contextlib.suppress(KeyError):
        pwd.getpwnam(PREFIX)
        removed = target("remove")
        assert removed.code == 0, removed


def key_of(server: Host) -> str:
    return " ".join((server.base / "etc/secrets/pull.pub").read_text().split()[:2])


def enrolment(server: Host, target: Target) -> Enrolment:
    return Enrolment(
        name="backup1", server="backup1.example.org", target="web1", job="backup1-hosts",
        engine="restic", key=f"{key_of(server)} capkeep@backup1", exclude=("**/.cache",),
        include=(str(target.base / "source"),),
    )  # fmt: skip


def test_a_target_is_enrolled_again_and_removed(server: Host, target: Target) -> None:
    made = enrolment(server, target)
    shown = target.run(made, dry_run=True)
    assert (shown.code, target.drop_in.exists()) == (0, False), shown
    assert "+pulled-by = " in shown.out
    for said in ("who starts the rooms stays as it is", "systemd runs this host"):
        done = target.run(made)
        assert (done.code, said in done.out) == (0, True), done
        (target.base / "systemd").mkdir(exist_ok=True)
        assert "backup1.example.org may come" in done.out
        assert key_of(server) in target.keys.read_text()
        assert 'reader-backup1-hosts-backup1.sock" ' in target.keys.read_text()
        assert pwd.getpwnam(LOGIN).pw_dir == str(target.keys.parents[1])
    for step in ({"dry_run": True, "remove": True}, {"remove": True}, {"remove": True}):
        assert target.drop_in.exists() == ("dry_run" in step or target.keys.exists())
        done = target.run(made, **step)
        assert done.code == 0, done
    assert not target.drop_in.exists()
    assert not target.keys.exists()
    assert [p.name for p in target.drop_in.parent.iterdir()] == []
    (target.base / "systemd").rmdir()


def test_a_target_without_systemd_gets_launchers(place: Path) -> None:
    """Where they work and nothing else is there, unless it is asked for something else."""
    target = Target(place / "bare-target")
    own = TARGET.format(prefix=PREFIX, base=target.base).partition("[repositories")[0]
    target.configure(own)
    made = Enrolment(
        name="backup1", server="backup1", target="web1", job="backup1-hosts", engine="restic",
        key=(place / "admin.pub").read_text().strip(), include=(str(target.base / "source"),),
    )  # fmt: skip
    start = target.base / "etc/conf.d/enrolled-start.toml"
    works = bool(landlock.abi())

    def enrolled(said: str, starter: str, asked: str = "") -> None:
        done = target.run(made, asked)
        assert (done.code, said in done.out) == (0, True), done
        assert json.loads((target.base / "state/plan.json").read_text())["starter"] == starter
        place = "/state/launchers/reader-" if starter == "launcher" else "/run/reader-"
        assert place in target.keys.read_text()

    try:
        assert not start.exists()
        bare = 'mount --bind /dev/null /usr/bin/bwrap; exec "$@"'
        lacking = target.run(made, before=("unshare", "--mount", "sh", "-ec", bare, "sh"))
        assert (lacking.code, "install bubblewrap" in lacking.err) == (1, True), lacking
        assert not target.drop_in.exists()
        shown = target.run(made, dry_run=True)
        assert f'would write start = "launcher" to {start}' in shown.out, shown
        if works:
            enrolled(
                f'wrote {start}: start = "launcher" (systemd does not run this host)', "launcher"
            )
        else:
            enrolled("neither systemd nor launchers work here", "doors")
        enrolled('start = "doors" (as asked for)', "doors", "doors")
        enrolled("as it is written here", "doors")
        refused = target.run(made, "systemd")
        assert refused.code == 1, refused
        assert 'start = "doors"' in start.read_text()
        assert target.run(made, remove=True).code == 0
        assert list(start.parent.iterdir()) == []
    finally:
        target.run(made, remove=True)
        target("remove")


def test_what_cannot_be_applied_leaves_what_was_there(server: Host, target: Target) -> None:
    made = enrolment(server, target)
    assert target.run(made).code == 0
    before = target.drop_in.read_text()
    done = target.run(made._replace(include=("/proc/../x",)))
    assert (done.code, target.drop_in.read_text()) == (1, before), done
    target.run(made, remove=True)
    (target.base / "opt").rename(target.base / "opt-away")
    try:
        done = target.run(made)
        assert (done.code, target.drop_in.exists()) == (4, False), done
        assert "--with-capkeep" in done.err
    finally:
        (target.base / "opt-away").rename(target.base / "opt")


def test_a_server_compares_keys_and_writes_the_script(server: Host, place: Path) -> None:
    """As an administrator does it: scan, write the key, look, enrol."""
    text = (server.base / "etc/capkeep.toml").read_text()
    refused = server("enroll", "web1", "--print")
    assert (refused.code, "capkeep target scan web1" in refused.err) == (5, True), refused
    found = server("target", "scan", "web1")
    host_key = " ".join((place / "host.pub").read_text().split()[:2])
    line = next(row.strip() for row in found.out.splitlines() if "host-key = " in row)
    assert (found.code, line) == (0, f'host-key = ["{host_key}"]'), found
    server.configure(text.replace("\n\ngroups", f"\n{line}\ngroups"))
    assert server("target", "scan", "web1").code == 0
    printed = server("enroll", "web1", "--print")
    assert printed.code == 0, printed
    assert key_of(server) in printed.out
    assert "PRIVATE" not in printed.out
    other = key_of(server)
    server.configure(text.replace("\n\ngroups", f'\nhost-key = "{other}"\ngroups'))
    loud = server("target", "scan", "web1", "--json")
    words = {k["word"] for k in json.loads(loud.out)["keys"]["host-key"]}
    assert (loud.code, words) == (16, {"CHANGED"}), loud
    server.configure(text)


@pytest.fixture(scope="module")
def agent(server: Host, place: Path) -> Iterator[Path]:
    """The administrator's, with the key that lets root in."""
    agent = place / "agent"
    started = subprocess.Popen(["/usr/bin/ssh-agent", "-D", "-a", str(agent)],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        while not agent.exists():
            assert started.poll() is None
        subprocess.run(["/usr/bin/ssh-add", "-q", str(place / "admin")], check=True, timeout=20,
                       env={"SSH_AUTH_SOCK": str(agent)})  # fmt: skip
        yield agent
    finally:
        started.kill()
        started.wait(20)


def test_what_a_target_offers_is_asked_over_the_administrators_ssh(
    server: Host, target: Target, place: Path, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without capkeep there, what is said is what its own doctor would say."""
    port = int((place / "sshd_config").read_text().split()[1])
    host_key = " ".join((place / "host.pub").read_text().split()[:2])
    text = (server.base / "etc/capkeep.toml").read_text()
    server.configure(text.replace("\n\ngroups", f'\nhost-key = "{host_key}"\ngroups'))
    server.more = {"SSH_AUTH_SOCK": str(agent)}
    try:
        far, here = server("doctor", "--target", "web1", "--json"), server("doctor", "--json")
        shown = server("doctor", "--target", "web1")
        wrong = server("doctor", "--target", "web2")
    finally:
        server.configure(text)
        server.more = {}
    told, own = json.loads(far.out), json.loads(here.out)
    assert (told["target"], told["kernel"], told["capkeep"]) == ("web1", os.uname().release, False)
    for one in (told, own):
        for way in one["ways"]:
            del way["used"]
    assert told["ways"][:-1] == own["ways"][:-1]
    assert told["ways"][-1]["state"] == own["ways"][-1]["state"]  # of pam_cap, for another user
    assert told["used"] == ("launcher" if landlock.abi() else "doors")
    assert f"web1: Linux {os.uname().release}, no capkeep is there" in shown.out, shown
    assert "(enroll would choose it)" in shown.out
    assert (wrong.code, "there is no target web2" in wrong.err) == (2, True), wrong

    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    there = Way("root@127.0.0.1", port, (host_key,))
    found = far_seen.read(enroll.told_there(there, far_script.script(LOGIN, target.ground)), LOGIN)
    assert found.has_capkeep
    assert [way.way for way in found.ways if way.used] == [WayToRead.DOORS]
    for said in ("echo too; exit 3\n", "head -c 2000000 /dev/zero\n"):
        with pytest.raises(StepError, match="does not tell"):
            enroll.told_there(there, said)


def test_an_administrators_ssh_runs_it_and_believes_the_pinned_key_alone(
    server: Host, place: Path, agent: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    port = int((place / "sshd_config").read_text().split()[1])
    host_key = " ".join((place / "host.pub").read_text().split()[:2])
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    there = Way("root@127.0.0.1", port, (host_key,))
    for way in (there, there._replace(jump=f"root@127.0.0.1:{port}", jump_keys=(host_key,))):
        assert enroll.run_there(way, "id -u; exit 7\n") == 7
        assert capfd.readouterr().out == "0\n"
    with monkeypatch.context() as another:
        another.setattr(Way, "is_root", False)
        assert enroll.run_there(there, "echo by sudo; exit 8\n") == 8
    asked, said = capfd.readouterr().out.splitlines()[:2]
    assert said == "by sudo"
    assert asked.startswith("asked for /bin/sh /"), asked
    assert not os.path.exists(asked.split()[-1])
    for key, jump_key in ((key_of(server), host_key), (host_key, key_of(server))):
        way = there._replace(host_keys=(key,), jump=f"root@127.0.0.1:{port}")
        with pytest.raises(StepError, match="cannot be logged in"):
            enroll.run_there(way._replace(jump_keys=(jump_key,)), "echo hello")
        assert "hello" not in capfd.readouterr().out


def test_a_servers_capkeep_can_be_brought_along(place: Path) -> None:
    """Where the interpreter is of the same kind; what does not fit is not begun."""
    made = Enrolment("s", "s", "t", "j", "restic", "k", ("/etc",))
    carried = enroll.carried()
    ground = Ground(f"{place}/bare/etc", f"{place}/bare/opt")
    (place / "bare").mkdir()
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own = subprocess.run([shutil.which("python3", path=path) or "", "-c", "import sys; print(sys.version_info[:2])"],
                         capture_output=True, check=True, timeout=20).stdout.decode()  # fmt: skip
    fits = own.strip() == str(tuple(sys.version_info[:2]))
    for kind, works in ((carried._replace(machine="m68k"), False),
                        (carried._replace(python="3.5"), False), (carried, fits)):  # fmt: skip
        text = script(made, capkeep.__version__, carried=kind, ground=ground)
        text = text.replace("\nmain write_it\n", "\nmain need_capkeep\n")
        done = subprocess.run(["/bin/sh", "-s"], input=text.encode(), capture_output=True,
                              timeout=SECONDS, check=False, cwd="/")  # fmt: skip
        assert (done.returncode, os.path.isdir(ground.home)) == (0 if works else 4, works), done
    for words in ("--version", "config schema") if fits else ():
        subprocess.run([f"{ground.home}/bin/capkeep", *words.split()], check=True, timeout=60,
                       capture_output=True, env={})  # fmt: skip


def test_what_is_asked_of_ssh_is_the_administrators_own() -> None:
    own = admin_ssh.environment({"SSH_AUTH_SOCK": "/a", "HOME": "/root", "LD_PRELOAD": "/x"})
    assert own == {"PATH": "/usr/bin:/bin", "SSH_AUTH_SOCK": "/a", "HOME": "/root"}
