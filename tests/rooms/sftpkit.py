"""A server, and a target with nothing but sshd and sftp-server, on one machine."""

import contextlib
import os
import pwd
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from capkeep.config.load import load
from capkeep.host import lent
from capkeep.plan.compile import HostFacts, compile_plan
from capkeep.plan.model import Mode, Plan, Room, RoomKind
from tests.rooms.house import GROUP, INTERPRETER, SUBORDINATE, UIDS, House, house
from tests.rooms.test_vault_engines import Sshd, running

LINK = pwd.getpwnam("uucp")  # ssh wants its user to have a name; no other test has this one
LIAR = Path(__file__).with_name("lying_sftp.py")
SERVER = "/usr/lib/openssh/sftp-server"
OWNER, GROUP_THERE = 70_000, 4_294_967_000
NAMES = {
    "passwd": f"root:x:0:0::/root:/bin/sh\nfaraway:x:{OWNER}:{GROUP_THERE}::/:/bin/sh\n",
    "group": f"root:x:0:\nfarfolk:x:{GROUP_THERE}:\n",
}
CONFIG = """
[repositories.repo]
engine = "restic"
location = "{base}/repositories/{{target}}"
password = {{ file = "{base}/etc/secrets/repo" }}

[repositories.borgs]
engine = "borg"
location = "{base}/repositories/borg-{{target}}"
password = {{ file = "{base}/etc/secrets/repo" }}

[engines.restic]
program = "{restic}"

[targets.far]
way = "sftp"
host = "127.0.0.1"
host-key = "{key}"
port = {port}
user = "root"
identity = {{ file = "{base}/etc/secrets/identity" }}

[jobs.job]
targets = ["far"]
repositories = ["{repository}"]
include = ["{tree}"]
"""


class Afar(NamedTuple):
    """The server, the target's sshd, and the tree there."""

    server: House
    sshd: Sshd
    tree: Path

    @property
    def base(self) -> str:
        return self.server.base

    @property
    def reader(self) -> Room:
        """The room that reads the target's files."""
        return next(r for r in self.server.plan.rooms if r.kind is RoomKind.MOUNTER)

    @contextlib.contextmanager
    def having(self, module: str, **values: object) -> Iterator[None]:
        """Other constants in the package under test."""
        path = Path(self.server.package, f"capkeep/{module}.py")
        before = text = path.read_text()
        for name, value in values.items():
            text, count = re.subn(rf"(?m)^({name}: Final) = [^#\n]+", rf"\1 = {value!r}  ", text)
            assert count == 1, name
        path.write_text(text)
        try:
            yield
        finally:
            path.write_text(before)

    def lie(self, how: str) -> None:
        """Serve as `lying_sftp.py` says."""
        words = [sys.executable, str(LIAR), how, SERVER, "-R", "-e", "-d", "/"]
        self.serve(f"exec {shlex.join(words)}")

    def serve(self, server: str = f"{SERVER} -R -e -d /") -> None:
        """What the server's key may have on the target, with an /etc of its own: sftp-server."""
        etc = shlex.quote(f"{self.sshd.base}/etc")
        script = f"mount --bind {etc} /etc; {server}"
        command = f"exec unshare --mount /bin/sh -c {shlex.quote(script)}"
        quoted = command.replace('"', '\\"')
        key = (self.sshd.base / "id.pub").read_text()
        (self.sshd.base / "authorized").write_text(f'restrict,command="{quoted}" {key}')


def compiled(home: House) -> Plan:
    """The plan of a host whose rooms with ssh run as somebody with a name."""
    config = lent.resolved(load(home.places.config), Mode.SYSTEM)
    users = {"capkeep": UIDS[RoomKind.RUNNER]}
    users |= {f"capkeep-{kind}": uid for kind, uid in UIDS.items()}
    users |= {f"capkeep-{RoomKind.PULLER}": LINK.pw_uid}
    facts = HostFacts(
        mode=Mode.SYSTEM, places=home.places, group=GROUP, interpreter=INTERPRETER,
        package=home.package, hostname="house", users={n: (u, u) for n, u in users.items()},
        rclone="", subordinate=(SUBORDINATE, 1 << 16),
    )  # fmt: skip
    return compile_plan(config, facts)


@contextlib.contextmanager
def afar(repository: str = "repo") -> Iterator[Afar]:
    """The server with its doors open, its repository made."""
    with house() as server:
        base, tree = Path(server.base, "sshd"), Path(server.base, "far")
        base.mkdir()
        sshd = Sshd(base)
        (base / "etc/capkeep").mkdir(parents=True)
        for name, text in {**NAMES, "capkeep/canary": "seen\n"}.items():
            (base / "etc" / name).write_text(text)
        (base / "etc/capkeep/canary").chmod(0)
        identity = Path(server.base, "etc/secrets/identity")
        identity.write_bytes((base / "id").read_bytes())
        identity.chmod(0o600)
        config = Path(server.base, "etc/capkeep.toml")
        program = next(line for line in config.read_text().splitlines() if "program" in line)
        config.write_text(CONFIG.format(
            base=server.base, tree=tree, port=sshd.port, restic=program.split('"')[1],
            key=" ".join((base / "host.pub").read_text().split()[:2]), repository=repository,
        ))  # fmt: skip
        plant(tree)
        server.plan = compiled(server)
        server.apply(server.plan)
        made = Afar(server, sshd, tree)
        made.serve()
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(base / "sshd_config")]
        with running(argv, sshd.port), server.doors():
            said = server.ask({"action": "init"})
            assert said[-1]["exit_code"] == 0, said
            yield made


def plant(tree: Path) -> None:
    """Files that only the target's root can read, of owners that no user namespace here would know."""
    tree.mkdir()
    secret = tree / "secret"
    secret.write_text("kept\n")
    os.chown(secret, OWNER, GROUP_THERE)
    secret.chmod(0)
    (tree / "absolute").symlink_to("/etc/shadow")
    (tree / "above").symlink_to("../../..")
    (tree / "large").write_bytes(os.urandom(8 << 20))
    (tree / "large").chmod(0o600)
