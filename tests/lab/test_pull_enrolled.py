"""A target that its server enrols, over an administrator's ssh, once."""

import pytest

from tests.lab import pulled
from tests.lab.pulled import Pull

pytestmark = pytest.mark.timeout(300)
PULLS = (Pull("web1", "hosts"),)


def test_a_target_is_enrolled_and_pulled() -> None:
    with pulled.pair() as hosts:
        server, target, _ = hosts
        server.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
        target.write("/root/.ssh/authorized_keys", server.read("/root/.ssh/id_ed25519.pub"), 0o600)
        config = pulled.on_server(hosts, PULLS)
        server.write("/etc/capkeep/secrets/pulled", f"{pulled.PASSWORD}\n", 0o600)
        server.write("/etc/capkeep/capkeep.toml", config)
        server.ok("capkeep", "apply", seconds=120)
        server.ok("capkeep", "enroll", "web1", seconds=180)
        server.ok("capkeep", "init", seconds=120)
        done = hosts.pull("hosts")
        assert done.code == 0, done
        assert hosts.last("hosts.web1")["outcome"] == "complete"
        audit = target.run("capkeep", "audit", seconds=120)
        assert audit.code == 0, audit
