"""A whole machine is kept by the reader's unit and comes back; an independent tool compares.

mtree(8) is NetBSD's, in Debian's mtree-netbsd. What it may find is listed here, with the reason.
"""

import pytest

from tests.lab.machine import Machine
from tests.lab.scenes import configure

WHOLE = """
[jobs.system]
repositories = ["local"]
include = ["/", "/tmp"]
exclude = ["/srv/back"]
"""

# What is there and is not kept, as every report says.
NOT_KEPT = (
    "./srv/back",  # where it is restored to: excluded
    "./srv/repo",  # repositories are hidden from the reader
    "./etc/capkeep/secrets",  # secrets too
    "./var/cache/capkeep", "./var/lib/capkeep/vault",  # caches and vaults' own places
    "./run/*", "./proc/*", "./sys/*", "./dev/*",  # the kernel's, made anew at every start
    "./spec", "./not-kept",  # mtree's own
)  # fmt: skip
# What goes on changing while a machine runs.
LIVE = (
    "./var/log/*", "./var/lib/systemd/*", "./etc/.pwd.lock",
    "./var/lib/capkeep/records", "./var/lib/capkeep/last-complete",
)  # fmt: skip

THINGS = r"""
set -e
mkdir /srv/back; useradd -m alice; install -d -o alice -g alice -m 700 /home/alice/private
echo secret >/home/alice/private/file; chown alice: /home/alice/private/file; chmod 000 /home/alice/private/file
echo acl >/home/alice/acl; setfacl -m u:daemon:r /home/alice/acl; setfacl -d -m g:mail:rx /home/alice/private
cp /bin/true /usr/local/bin/capable; setcap cap_net_raw+ep /usr/local/bin/capable
cp /bin/true /usr/local/bin/setuid; chmod 4755 /usr/local/bin/setuid
setfattr -n user.note -v remembered /home/alice/acl
echo high >/srv/high; chown 100000:200000 /srv/high; chmod 600 /srv/high
echo high >/srv/high-open; chown 3000000000:3000000000 /srv/high-open
ln /srv/high /srv/high-link; ln -s /nowhere /srv/dangling; mkfifo -m 620 /srv/fifo; mknod -m 640 /srv/device b 7 200
truncate -s 8M /srv/sparse; echo end >>/srv/sparse
printf 'odd' >"/srv/$(printf 'n\303\266t \377 utf8\nname')"
mkdir -p /mnt/disk; echo below >/mnt/disk/below; mount -t tmpfs none /mnt/disk; echo above >/mnt/disk/above
echo tmp >/tmp/word; chmod 600 /tmp/word; mkdir -p /var/tmp/kept; echo x >/var/tmp/kept/x
touch -d '2001-02-03 04:05:06.123456789' /srv/high
"""

OTHERWISE = (
    ".",  # the directory that is restored to is its maker's, and stays so
    "tmp",  # kept is the filesystem that is mounted there, which the job names
)
KEYWORDS = "type,mode,uid,gid,size,link,time,sha256,device,nlink"


@pytest.fixture
def whole(machine: Machine) -> Machine:
    configure(machine, job=WHOLE)
    machine.ok("sh", "-c", THINGS)
    return machine


def test_a_whole_machine_comes_back(whole: Machine) -> None:
    machine = whole
    mount_fuse(machine)
    said = machine.ok("capkeep", "apply")
    assert ("PrivateUsers" in said) == (machine.suite != "sid")  # left out, and said
    machine.ok("capkeep", "init")
    done = machine.run("capkeep", "run", seconds=180)
    assert done.code == 0, done
    restored = machine.run("capkeep", "restore", "latest", "--to", "/srv/back", seconds=180)
    assert restored.code == 0, restored

    # The root filesystem alone, with what lies below mount points, as the snapshot has it.
    compare = f"""
set -e
mkdir /run/machine && mount --bind / /run/machine
printf '%s\\n' {" ".join(f"'{p}'" for p in (*NOT_KEPT, *LIVE))} >/run/not-kept
cd /run/machine && mtree -c -X /run/not-kept -k {KEYWORDS} -p . >/run/spec
mtree -f /run/spec -p /srv/back -X /run/not-kept -e || true
"""
    differences = machine.ok("sh", "-c", compare, seconds=180)
    assert unexpected(differences) == [], differences
    for path in ("/home/alice/acl", "/home/alice/private"):
        acls = [machine.ok("getfacl", "-np", place + path) for place in ("", "/srv/back")]
        assert acls[0].replace("/home", "/srv/back/home") == acls[1]
    assert "cap_net_raw=ep" in machine.ok("getcap", "/srv/back/usr/local/bin/capable")
    note = ("getfattr", "--only-values", "-n", "user.note")
    assert machine.ok(*note, "/srv/back/home/alice/acl") == "remembered"
    assert machine.read("/srv/back/mnt/disk/below") == "below\n"
    assert machine.read("/srv/back/tmp/word") == "tmp\n"
    assert machine.run("test", "-e", "/srv/back/mnt/disk/above").code == 1
    assert "/mnt/disk" in done.out  # left out, and said
    blocks = int(machine.ok("stat", "-c", "%b", "/srv/back/srv/sparse"))
    assert blocks < 4096 or machine.suite == "bookworm"  # restic 0.14 writes holes out


def mount_fuse(machine: Machine) -> None:
    """A user's own FUSE mount, which not even root may enter."""
    machine.ok("mkdir", "a", "b", user="alice")
    machine.ok("touch", "a/file", user="alice")
    machine.ok("bindfs", "--no-allow-other", "a", "b", user="alice")
    assert machine.run("ls", "/home/alice/b").code != 0


def unexpected(said: str) -> list[str]:
    """mtree's lines but for those that cannot be otherwise."""
    lines = [line for line in said.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(tuple(f"{n}:" for n in OTHERWISE))]
