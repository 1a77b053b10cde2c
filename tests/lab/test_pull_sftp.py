"""A target without capkeep: enrolled, and read by the server through its sftp-server."""

import json

import pytest

from tests.lab import pulled
from tests.lab.network import ADDRESSES
from tests.lab.pulled import Pull

pytestmark = pytest.mark.timeout(300)
# What somebody with the server's key might try: to see more than the job names, and to write, even where
# everybody may.
ASKS = r"""
printf -- '-%s\n' 'get /root/.ssh/authorized_keys /run/got' 'put /etc/hostname /srv/data/new' \
    'put /etc/hostname /dev/shm/new' | sftp -q -b - -i "$1" \
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "capkeep-sftp@$2" 2>&1
"""
PULLS = (Pull("web1", "hosts", way="sftp"),)


def test_a_target_without_capkeep_is_enrolled_and_pulled() -> None:
    with pulled.pair() as hosts:
        server, target, _ = hosts
        server.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
        target.write("/root/.ssh/authorized_keys", server.read("/root/.ssh/id_ed25519.pub"), 0o600)
        target.ok("sh", "-c", "useradd -u 80000 faraway; chown faraway /srv/data/random")
        server.write("/etc/capkeep/secrets/pulled", f"{pulled.PASSWORD}\n", 0o600)
        server.write("/etc/capkeep/capkeep.toml", pulled.on_server(hosts, PULLS))
        server.ok("capkeep", "apply", seconds=120)
        server.ok("capkeep", "enroll", "web1", seconds=180)
        server.ok("capkeep", "init", seconds=120)
        before = hosts.mounts()
        done = hosts.pull("hosts")
        assert done.code == 0, (
            done.out[-2500:],
            server.run("journalctl", "-n60", "-o", "cat").out,
            target.run("journalctl", "-n40", "-o", "cat").out,
        )
        assert hosts.last("hosts.web1")["outcome"] == "complete"
        hosts.await_rest()
        assert hosts.mounts() == before
        listed = server.ok(
            "capkeep", "--json", "ls", "latest", "/srv/data", "--repository", "pulled.web1"
        )
        found = {one["path"]: one for one in map(json.loads, listed.splitlines())}
        owner = found["/srv/data/high"]
        assert (owner["uid"], owner["gid"], found["/srv/data/closed"]["mode"]) == (70000, 70000, 0)
        check = server.run("capkeep", "target", "check", seconds=120)
        assert check.code == 0, check
        audit = server.run("capkeep", "audit", seconds=120)
        assert audit.code == 0, audit
        said = server.ok("sh", "-c", ASKS, "sh", pulled.identity(hosts, "web1"), ADDRESSES[1])
        assert said.count("not found") + said.count("ermission denied") == 3, said
        assert target.run("test", "-e", "/dev/shm/new").code == 1
