"""The published way to pull with borg: a chroot on the target's files, which sshfs has mounted as root.

The server has a key of root's on the target that may use sftp alone. It mounts the whole target, binds
borg's repository, configuration and cache into it, becomes root in there (chroot(1)), calls the
target's own borg, and unmounts all of it. One option is not in the recipe: without `no_contain_symlinks`
today's sshfs refuses links that begin with "/", and there is no program to be found in the chroot.
"""

from typing import Final

from tests.lab.machine import Machine
from tests.lab.network import ADDRESSES

PASSWORD: Final = "a generated password is not guessed, this one measures"
KEY: Final = "/root/recipe-key"
PULL: Final = "/root/recipe-pull"
REPOSITORY: Final = "/srv/recipe"
SCRIPT: Final = f"""\
#!/bin/sh
set -eu
root=/mnt/target
leave() {{
    cd /
    for place in borg/cache borg/config borg/repository dev proc sys ""; do
        mountpoint -q "$root/$place" && umount "$root/$place" || true
    done
}}
trap leave EXIT
mkdir -p $root
sshfs root@{ADDRESSES[1]}:/ $root -o allow_other,reconnect,dir_cache=yes,no_contain_symlinks \\
    -o IdentityFile={KEY},UserKnownHostsFile=/root/recipe-hosts
mkdir -p $root/borg/repository $root/borg/config $root/borg/cache
mount --bind {REPOSITORY}/repository $root/borg/repository
mount --bind {REPOSITORY}/config $root/borg/config
mount --bind {REPOSITORY}/cache $root/borg/cache
for place in dev proc sys; do mount --bind /$place $root/$place; done
chroot $root env BORG_PASSPHRASE_FD=0 BORG_BASE_DIR=/borg BORG_CONFIG_DIR=/borg/config \\
    BORG_CACHE_DIR=/borg/cache BORG_RELOCATED_REPO_ACCESS_IS_OK=yes \\
    borg create --files-cache ctime,size "/borg/repository::$(date +%s.%N)" "$1" <{KEY}.password
"""


def prepare(server: Machine, target: Machine) -> None:
    """A key, a login of root's, and the script."""
    server.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY)
    key = server.read(f"{KEY}.pub")
    target.write("/etc/ssh/sshd_config.d/recipe.conf", "PermitRootLogin forced-commands-only\n")
    target.write("/root/.ssh/authorized_keys", f'restrict,command="internal-sftp" {key}', 0o600)
    target.ok("systemctl", "restart", "ssh")
    host = target.read("/etc/ssh/ssh_host_ed25519_key.pub")
    server.write("/root/recipe-hosts", f"{ADDRESSES[1]} {host}")
    server.write(f"{KEY}.password", PASSWORD, 0o600)
    server.write(PULL, SCRIPT, 0o755)


def empty(server: Machine) -> None:
    """A repository and caches as before the first backup."""
    server.ok("rm", "-rf", REPOSITORY)
    server.ok("mkdir", "-p", *(f"{REPOSITORY}/{n}" for n in ("repository", "config", "cache")))
    server.ok(
        "env", f"BORG_PASSPHRASE={PASSWORD}", f"BORG_CONFIG_DIR={REPOSITORY}/config",
        f"BORG_CACHE_DIR={REPOSITORY}/cache", "borg", "init", "-e", "repokey-blake2",
        f"{REPOSITORY}/repository",
    )  # fmt: skip


def pull(server: Machine, folder: str, seconds: float) -> None:
    """One backup of a folder of the target's."""
    server.ok(PULL, folder, seconds=seconds)
