"""The how-to pages that translate published ways to pull: the way of before, then each page as printed.

`backup1# ` stands in front of what is typed on the server, `web1# ` on the host whose files it takes.
The login of before has its capability from a program of its own; with pam_cap it is in test_pull_pam.py.
"""

import re
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab import pulled
from tests.lab.network import ADDRESSES
from tests.lab.pulled import Pair
from tests.lab.test_howto import blocks, short

pytestmark = pytest.mark.timeout(400)
HOST: Final = "web1.example.org"
PASSPHRASE: Final = "the passphrase of before"
INCLUDE: Final = "--include /etc --include /home --include /root --include /srv --exclude '**'"
# Users' files beside those of `pulled.DATA`, and somebody who may read them all.
ON_TARGET: Final = r"""
set -e
install -d -o 1000 -g 1000 -m 700 /home/ann; touch /srv/data/suid; chmod 6755 /srv/data/suid
useradd --system --create-home --home-dir /var/lib/backup-login --shell /bin/sh backup-login
install -m 750 -g backup-login /usr/bin/setpriv /usr/local/bin/reading
setcap cap_dac_read_search=p /usr/local/bin/reading
"""
READING: Final = (
    "/usr/local/bin/reading --inh-caps +dac_read_search --ambient-caps +dac_read_search"
    " rdiff-backup server"
)
ON_SERVER: Final = f"""
set -e
echo '{ADDRESSES[1]} {HOST}' >>/etc/hosts
install -d -m 700 /root/.ssh /etc/capkeep /etc/capkeep/secrets
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
ssh-keyscan -t ed25519 {HOST} >/root/.ssh/known_hosts
"""
# So many days ago, as if it were that day.
MIRRORED: Final = f"""
rdiff-backup --api-version 201 --current-time $(($(date +%s) - $1 * 86400)) \
    backup {INCLUDE} backup-login@{HOST}::/ /srv/before
"""
# The published way; `$1` is what is said to sshfs besides.
CHROOT: Final = f"""
set -e
mkdir -p /mnt/web1
sshfs -o "allow_other,reconnect,dir_cache=yes$1" root@{HOST}:/ /mnt/web1
trap 'cd / && umount -R /mnt/web1' EXIT
cd /mnt/web1 && mount -t tmpfs tmpfs mnt
mkdir -p mnt/home mnt/repository
mount --bind /srv/borg mnt/repository
export BORG_BASE_DIR=/mnt/home BORG_PASSPHRASE_FD=0 BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
echo '{PASSPHRASE}' | chroot . borg create --files-cache ctime,size \
    /mnt/repository/web1::web1-before /etc /home /root /srv
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Pair]:
    """The two hosts, with the logins of before."""
    with pulled.pair() as made:
        made.target.ok("sh", "-c", ON_TARGET)
        made.server.ok("sh", "-c", ON_SERVER)
        key = made.server.read("/root/.ssh/id_ed25519.pub").strip()
        for home, line in (
            ("/var/lib/backup-login", f'restrict,command="{READING}" {key}\n'),
            ("/root", f'restrict,command="internal-sftp" {key}\n'),
        ):
            made.target.write(f"{home}/.ssh/authorized_keys", line, 0o644)
        made.target.write("/home/ann/letter", "dear all\n")
        yield made


def typed(hosts: Pair, commands: str) -> None:
    """What stands behind the prompts, on the host that each one names."""
    machines = {"backup1": hosts.server, "web1": hosts.target}
    for line in commands.replace("\\\n", "").splitlines():
        name, _, command = line.partition("# ")
        machines[name].ok("sh", "-c", command, seconds=120)


def configured(hosts: Pair, page: str, scan: str) -> None:
    """Both configurations, with the keys that these hosts have."""
    server, target = blocks(page, "toml")
    assert short(server)
    hosts.server.ok("rm", "-f", "/etc/capkeep/secrets/pull")
    hosts.server.write("/etc/capkeep/capkeep.toml", server)
    typed(hosts, scan)
    said = hosts.server.ok("capkeep", "target", "scan", "web1")
    (pin,) = re.findall(r"^ +(host-key = .*)$", said, re.MULTILINE)
    hosts.server.write("/etc/capkeep/capkeep.toml", server.replace("host =", f"{pin}\nhost ="))
    public = hosts.server.read("/etc/capkeep/secrets/pull.pub").strip()
    own = re.sub(r'"ssh-ed25519 .*?"', f'"{public}"', target)
    hosts.target.write("/etc/capkeep/capkeep.toml", own)


def totals(hosts: Pair) -> dict[str, int]:
    """What the last run counted; it was complete."""
    run = hosts.last("hosts.web1")
    assert run["outcome"] == "complete", run
    steps: list[dict[str, dict[str, int]]] = run["steps"]  # type: ignore[assignment]
    return steps[0]["totals"]


def differences(hosts: Pair, place: str, *, fractions: bool = True) -> list[str]:
    """What of the target's data came back otherwise; `fractions`: those of seconds count."""
    back = pulled.tree(hosts.server, f"{place}/srv/data")
    there = pulled.tree(hosts.target, "/srv/data")
    if not fractions:
        back, there = (re.sub(r"\.\d{10}\n", "\n", text) for text in (back, there))
    return sorted(set(back.splitlines()) ^ set(there.splitlines()))


def test_a_mirror_by_rdiff_backup(hosts: Pair) -> None:
    page, server = "rdiff-backup-over-ssh.md", hosts.server
    scan, start, take_over, restore = blocks(page, "console")
    configured(hosts, page, scan)
    typed(hosts, start)
    assert totals(hosts)["files_new"] > 300
    server.ok("capkeep", "run", "hosts")
    assert totals(hosts)["files_new"] == totals(hosts)["files_changed"] == 0
    typed(hosts, restore)
    assert differences(hosts, "/srv/web1", fractions=False) == []
    server.ok("rm", "-r", "/srv/web1", "/srv/mirrors/web1")

    server.ok("sh", "-c", MIRRORED, "sh", "40")
    server.ok("sh", "-c", MIRRORED, "sh", "1")
    assert server.ok("stat", "-c", "%a", "/srv/before/srv/data/suid") == "6755\n"
    hosts.target.write("/home/ann/letter", "dear all, once more\n")
    server.ok("mv", "/srv/before", "/srv/mirrors/web1")
    typed(hosts, take_over)
    counted = totals(hosts)
    assert counted["files_new"] == 0
    assert counted["bytes_stored"] < 100_000
    old, _ = hosts.snapshots("mirror.web1")  # the session of 40 days ago is gone
    server.ok("rdiff-backup", "--api-version", "201", "verify", "/srv/mirrors/web1")
    shown = server.ok("stat", "-c", "%u %a", "/srv/mirrors/web1/srv/data/high",
                      "/srv/mirrors/web1/srv/data/suid", "/srv/mirrors/web1/home/ann")  # fmt: skip
    assert shown == "70000 640\n0 755\n1000 700\n"
    server.ok("capkeep", "restore", str(old["id"]), "/home", "--repository", "mirror.web1",
              "--to", "/srv/then")  # fmt: skip
    assert server.read("/srv/then/home/ann/letter") == "dear all\n"
    assert server.read("/srv/mirrors/web1/home/ann/letter") == "dear all, once more\n"


def test_borg_in_a_chroot(hosts: Pair) -> None:
    page, server = "borg-over-sshfs.md", hosts.server
    scan, start, remove, restore = blocks(page, "console")
    assert "no_contain_symlinks" in server.run("sshfs", "--help").out
    server.ok("install", "-d", "/srv/borg")
    server.ok("env", "BORG_BASE_DIR=/run/before", f"BORG_PASSPHRASE={PASSPHRASE}", "borg", "init",
              "--encryption=repokey-blake2", "/srv/borg/web1")  # fmt: skip
    refused = server.run("sh", "-c", CHROOT, "sh", "")
    assert "Operation not permitted" in refused.out + refused.err, refused
    server.ok("sh", "-c", CHROOT, "sh", ",no_contain_symlinks", seconds=120)
    server.write("/etc/capkeep/secrets/borg-web1", f"{PASSPHRASE}\n", 0o600)
    configured(hosts, page, scan)
    typed(hosts, start)
    assert totals(hosts)["bytes_stored"] < 100_000
    first, second = hosts.snapshots("borg.web1")
    typed(hosts, restore)
    assert differences(hosts, "/srv/web1") == []
    server.ok("capkeep", "restore", str(first["id"]), "/srv/data/random", "--repository",
              "borg.web1", "--to", "/srv/first")  # fmt: skip
    typed(hosts, remove)
    assert [s["id"] for s in hosts.snapshots("borg.web1")] == [second["id"]]
