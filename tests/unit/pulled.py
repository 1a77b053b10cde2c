"""Configurations of a server and of a target, for tests."""

from pathlib import Path

from capkeep.config.load import load
from capkeep.config.mistakes import Mistake, MistakesError
from capkeep.config.model import Config
from capkeep.config.sources import Owner

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUu+lVRxuM5N190YfYm7E1kv27Bhh0p/aapXxNRNF7j"
ECDSA = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBL5MySln96SlaCmvcwgfnFGOssu62OVxVd+dq6y3BV05u73XtV0KAF4Y+zb+KrISYiDcYyVLtJ+IiUpBQeiLG5U="

SERVER = f"""\
[engines.restic]
program = "@/restic"
[pull]
identity = {{ file = "@/secret" }}
parallel = 3
[targets.web1]
host = "web1.example.org"
host-key = "{ED25519} root@web1"
groups = ["web"]
options = {{ Compression = "yes", ConnectTimeout = "20" }}
[targets.web2]
host-key = ["{ED25519}", "{ECDSA}"]
groups = ["web", "far"]
host-name = "two.example.org"
user = "other"
port = 2222
jump = "admin@gate.example.org"
jump-host-key = "{ECDSA}"
identity = {{ file = "@/key-web2" }}
[targets.db]
host-key = "{ED25519}"
[repositories.pulled]
engine = "restic"
location = "/srv/backups/{{target}}"
password = {{ file = "@/of-{{target}}" }}
[repositories.away]
engine = "restic"
location = "sftp:u@h:/{{target}}"
password = {{ file = "@/secret" }}
options.identity = {{ file = "@/secret" }}
options.known-hosts = "@/known"
[repositories.local]
engine = "restic"
location = "/srv/local"
password = {{ file = "@/secret" }}
[jobs.hosts]
targets = ["@web"]
repositories = ["pulled"]
include = ["/etc", "/srv/backups"]
schedule = ["03:00"]
copies = {{ into = ["away"] }}
[jobs.hosts.check]
after-backup = true
[jobs.hosts.retention]
keep-daily = 3
[jobs.hosts.drill]
[jobs.bases]
targets = ["db"]
repositories = ["pulled"]
include = ["/var/lib/db"]
canary = false
[jobs.own]
repositories = ["local"]
include = ["/etc", "/srv"]
[notify.mail]
to = "a@example.org"
jobs = ["hosts"]
"""

# The same, with targets that keep their passwords.
KEPT = SERVER.replace(
    'password = { file = "@/of-{target}" }', 'password-kept-by = "target"'
).replace('copies = { into = ["away"] }\n[jobs.hosts.check]\nafter-backup = true\n'
          '[jobs.hosts.retention]\nkeep-daily = 3\n[jobs.hosts.drill]\n', "")  # fmt: skip

TARGET = f"""\
[engines.restic]
program = "@/restic"
[defaults]
max-age = "36h"
schedule = ["03:00"]
exclude = ["*.tmp"]
check = {{ after-backup = true }}
[repositories.backup1]
engine = "restic"
pulled-by = "{ED25519} capkeep@backup1"
[repositories.backup2]
engine = "restic"
pulled-by = "{ECDSA}"
password = {{ file = "@/secret" }}
[repositories.local]
engine = "restic"
location = "/srv/local"
password = {{ file = "@/secret" }}
[jobs.sent]
repositories = ["backup1"]
include = ["/etc", "/home"]
[jobs.sealed]
repositories = ["backup2"]
include = ["/root"]
[jobs.own]
repositories = ["local"]
include = ["/etc"]
"""


class RootsOwn(Owner):
    """The caller's files, taken for root's: what only the system's capkeep may have can be tried."""

    def __init__(self, *, user_mode: bool) -> None:
        super().__init__(user_mode=True)
        self.user_mode = user_mode


class Host:
    """A configuration directory, and what its files name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.chmod(0o755)
        for name in ("secret", "key-web2", "of-web1", "of-web2", "of-db"):
            self.file(name, "a secret\n", 0o600)
        self.file("known", "h key\n")
        self.file("restic", "#!/bin/sh\n", 0o755)

    def file(self, name: str, text: str, mode: int = 0o644) -> None:
        (self.root / name).write_text(text)
        (self.root / name).chmod(mode)

    def load(self, text: str, *, user_mode: bool = False) -> Config:
        """What that configuration means. Raises MistakesError."""
        self.file("capkeep.toml", text.replace('"@/', f'"{self.root}/'))
        return load(str(self.root), user_mode=user_mode)

    def mistakes(self, text: str, *, user_mode: bool = False) -> tuple[Mistake, ...]:
        """What is wrong with it."""
        try:
            self.load(text, user_mode=user_mode)
        except MistakesError as error:
            return error.mistakes
        return ()
