"""Two hosts, of which one takes the files of the other: set up by hand, as the reference describes it.

The target is several targets to the server, each with a login key of its own: `web1` and `web2` with
restic for one job, `chunks` with borg.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.lab import trees
from tests.lab.machine import Machine, Result
from tests.lab.network import ADDRESSES, Link

SERVER, TARGET = "trixie", "bookworm"
PASSWORD: Final = "WT9g+UEU20wmvPR4y+9ZH4MVIsAOTIJykCdRaNTUCtg="  # as `openssl rand -base64 32`
LOGIN: Final = "capkeep-answerer"
INCLUDE: Final = ("/etc", "/srv/data")
REPOSITORIES: Final = {
    "restic": "pulled",
    "borg": "chunked",
    "rdiff-backup": "mirrored",
}  # by engine


class Pull(NamedTuple):
    """What is taken: the server's name for the target, by which engine, what, for which job, and how."""

    target: str
    job: str
    engine: str = "restic"
    include: tuple[str, ...] = INCLUDE
    way: str = "engine"

    @property
    def full_job(self) -> str:
        """What the job is called once it is one target's."""
        return f"{self.job}.{self.target}"

    @property
    def repository(self) -> str:
        """What the repository is called once it is one target's."""
        return f"{REPOSITORIES[self.engine]}.{self.target}"


PULLS: Final = (Pull("web1", "hosts"), Pull("web2", "hosts"), Pull("chunks", "other", "borg"))

# What is told apart only by somebody who carries everything over.
DATA: Final = r"""
set -e
mkdir -p /srv/data/tree && cd /srv/data
echo private >private; chmod 600 private
echo high >high; chown 70000:70000 high; chmod 600 high
echo nobody >closed; chown 33:33 closed; chmod 000 closed
ln private second-name; ln -s /nowhere dangling; mkfifo -m 620 fifo
setfacl -m u:daemon:r high; setfattr -n user.note -v remembered private
touch -d '2001-02-03 04:05:06.123456789' private
for n in $(seq 300); do echo "$n" >tree/$n; done
head -c 3000000 /dev/urandom >random
"""
# Everything about a tree that a backup keeps, one line for each path.
LIST_TREE: Final = r"""
cd "$1" && find . -printf '%p %y %m %U %G %s %l\n' | awk '$2 == "d" { $6 = "" } { print }' | sort
find . -type f -printf '%p %T@\n' | sort; find . -type f -exec sha256sum {} + | sort
getfacl -nRp . 2>/dev/null | grep -v '^$'; getfattr -dR -m '^user\.' . 2>/dev/null || true
"""
# Processes of capkeep's users and engines. What systemd and sshd keep of a login is theirs.
BUSY: Final = r"""
ps -eo user:32,pid,args --no-headers | awk '
    ($1 ~ /^capkeep/ || $0 ~ /\/(restic|borg)( |$)/) && $0 !~ /awk|systemd --user|\(sd-pam\)|sshd: / { print }'
"""


class Pair(NamedTuple):
    """The two hosts and the cable between them."""

    server: Machine
    target: Machine
    link: Link

    def pull(self, *jobs: str, seconds: float = 120) -> Result:
        """Ask for backups as an administrator does; what was said, as JSON lines."""
        return self.server.run("capkeep", "--json", "run", *jobs, seconds=seconds)

    def last(self, job: str) -> dict[str, object]:
        """The last run of a job in the server's record."""
        runs = json.loads(self.server.ok("capkeep", "--json", "history", job, "--limit", "1"))
        found: dict[str, object] = runs[0]
        return found

    def snapshots(self, repository: str) -> list[dict[str, object]]:
        """What a repository on the server holds."""
        listed = json.loads(self.server.ok("capkeep", "--json", "snapshots", repository))
        found: list[dict[str, object]] = listed[0]["snapshots"]
        return found

    def busy(self) -> dict[str, str]:
        """What still runs on either side."""
        said = {m.hostname: m.ok("sh", "-c", BUSY) for m in (self.server, self.target)}
        return {name: text for name, text in said.items() if text}

    def await_rest(self, seconds: float = 30) -> None:
        """Wait until nothing of capkeep's runs, nowhere. Raises TimeoutError that says what does."""
        try:
            for machine in (self.server, self.target):
                machine.wait(lambda m=machine: not m.ok("sh", "-c", BUSY), seconds)  # type: ignore[misc]
        except TimeoutError:
            raise TimeoutError(f"still there after {seconds} s: {self.busy()}") from None

    def mounts(self) -> list[list[str]]:
        """What is mounted on either side, but for what systemd mounts for logins."""
        return [sorted(line for line in m.ok("findmnt", "-rno", "TARGET").split()
                       if not line.startswith("/run/user/"))
                for m in (self.server, self.target)]  # fmt: skip


@contextlib.contextmanager
def pair(server: str = SERVER, target: str = TARGET) -> Iterator[Pair]:
    """Two hosts, joined and with keys, and something to keep; capkeep is not set up on either."""
    with (
        Machine(server, hostname="server", packages=trees.PULLING) as one,
        Machine(target, hostname="web", packages=trees.PULLING) as two,
        Link(one, two) as link,
    ):
        two.ok("sh", "-c", DATA)
        yield Pair(one, two, link)


def set_up(hosts: Pair, pulls: tuple[Pull, ...] = PULLS, more: str = "") -> None:
    """Both configurations, `apply` on both, and the repositories; `more` is added to the last job's."""
    hosts.target.write("/etc/capkeep/capkeep.toml", on_target(hosts, pulls))
    hosts.server.write("/etc/capkeep/secrets/pulled", f"{PASSWORD}\n", 0o600)
    hosts.server.write("/etc/capkeep/capkeep.toml", on_server(hosts, pulls) + more)
    hosts.target.ok("capkeep", "apply", seconds=120)
    hosts.server.ok("capkeep", "apply", seconds=120)
    hosts.server.ok("capkeep", "init", seconds=120)


def identity(hosts: Pair, target: str) -> str:
    """Where the server has its private key for a target; made if it is not there."""
    path = f"/etc/capkeep/secrets/pull-{target}"
    if hosts.server.run("test", "-e", path).code:
        hosts.server.ok("install", "-d", "-m", "700", "/etc/capkeep/secrets")
        hosts.server.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path)
    return path


def on_target(hosts: Pair, pulls: tuple[Pull, ...]) -> str:
    """Who may ask for what, there; who comes through sftp-server asks nobody."""
    text = ""
    for pull in (p for p in pulls if p.way == "engine"):
        key = hosts.server.read(f"{identity(hosts, pull.target)}.pub").strip()
        text += f'[repositories.by-{pull.target}]\nengine = "{pull.engine}"\npulled-by = "{key}"\n'
        text += f'[jobs.{pull.target}]\nrepositories = ["by-{pull.target}"]\n'
        text += f"include = {json.dumps(pull.include)}\n\n"
    return text


def on_server(hosts: Pair, pulls: tuple[Pull, ...], address: str = ADDRESSES[1]) -> str:
    """Where the targets are, and what is kept of them. The first one's key is everybody's default."""
    host_key = " ".join(hosts.target.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
    text = f'[pull]\nidentity = {{ file = "{identity(hosts, pulls[0].target)}" }}\n\n'
    for pull in pulls:
        text += f'[targets.{pull.target}]\nhost = "{address}"\nhost-key = "{host_key}"\n'
        text += f'groups = ["{pull.job}"]\nway = "{pull.way}"\n'
        if pull is not pulls[0]:
            text += f'identity = {{ file = "{identity(hosts, pull.target)}" }}\n'
    for engine in dict.fromkeys(pull.engine for pull in pulls):
        name = REPOSITORIES[engine]
        text += f'\n[repositories.{name}]\nengine = "{engine}"\n'
        text += f'location = "/srv/{name}/{{target}}"\n'
        if engine != "rdiff-backup":
            text += 'password = { file = "/etc/capkeep/secrets/pulled" }\n'
    for job, pull in {pull.job: pull for pull in pulls}.items():
        text += f'\n[jobs.{job}]\ntargets = ["@{job}"]\n'
        text += f'repositories = ["{REPOSITORIES[pull.engine]}"]\n'
        text += f"include = {json.dumps(pull.include)}\n"
    return text


def ask(hosts: Pair, target: str, request: dict[str, object], command: str = "x") -> str:
    """What the target answers to somebody who has the server's key and says what he likes."""
    program = Path(__file__).with_name("asking.py").read_text()
    hosts.server.write("/run/asking.py", program)
    return hosts.server.ok(
        "python3", "/run/asking.py", identity(hosts, target), command, json.dumps(request)
    )


def tree(machine: Machine, folder: str) -> str:
    """Everything about a tree, to be compared."""
    return machine.ok("sh", "-c", LIST_TREE, "sh", folder)
