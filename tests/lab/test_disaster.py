"""A machine is lost; with its kit and the disk with its backups another one brings all of it back.

mtree(8) is NetBSD's, in Debian's mtree-netbsd: it says what was there and whether it is there again.
"""

from pathlib import Path
from typing import Final

import pytest

from tests.lab import trees
from tests.lab.host import run_here
from tests.lab.machine import Machine
from tests.lab.scenes import JOB, configure
from tests.lab.test_fidelity import KEYWORDS, unexpected

# Of each place what is not kept, or is written to all the time. Secrets are in the kit alone.
PLACES: Final = {
    "/etc": ("./capkeep/secrets", "./.pwd.lock"),
    "/home": (),
    "/root": (),
    "/srv/data": (),
}
LIFE = """
set -e
useradd -m -u 4711 alice; echo hers >/home/alice/file; chown alice: /home/alice/file; chmod 600 /home/alice/file
setfacl -m u:daemon:r /home/alice/file; setfattr -n user.note -v remembered /home/alice/file
cp /bin/true /srv/data/capable; setcap cap_net_raw+ep /srv/data/capable; ln /srv/data/word /srv/data/link
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("suite", trees.SUITES[-1:])
def test_a_lost_machine_comes_back_with_its_kit_alone(suite: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with Machine(suite, hostname="lost") as machine:
        configure(machine, job=JOB.replace(', "/var/lib"', ""))
        machine.ok("sh", "-c", LIFE)
        machine.ok("capkeep", "apply")
        machine.ok("capkeep", "init")
        machine.ok("capkeep", "run")
        machine.ok("capkeep", "kit", "--output", "/run/kit")
        kit = machine.read("/run/kit")
        for place, apart in PLACES.items():
            machine.write("/run/apart", "\n".join(apart) + "\n")
            command = f"mtree -c -X /run/apart -k {KEYWORDS} -p {place}"
            (tmp_path / place.replace("/", "-")).write_text(machine.ok("sh", "-c", command))
        run_here("cp", "-a", machine.tree / "srv/repo", disk)

    with Machine(suite, hostname="new") as machine:
        run_here("cp", "-a", disk, machine.tree / "srv/repo")
        machine.write("/run/kit", kit, 0o600)
        for name in ("hers", "his"):  # so that rooms' users have other numbers than they had
            machine.ok("useradd", "--system", name)
        assert "repository /srv/repo belongs to capkeep-vault" in machine.ok("sh", "/run/kit")
        assert machine.run("sh", "/run/kit").code == 1, "a machine in use is left alone"
        machine.ok("capkeep", "restore", "latest", "--to", "/mnt", seconds=120)
        for place, apart in PLACES.items():
            machine.write("/run/spec", (tmp_path / place.replace("/", "-")).read_text())
            machine.write("/run/apart", "\n".join(apart) + "\n")
            compare = f"mtree -f /run/spec -X /run/apart -p /mnt{place} -e || true"
            assert unexpected(machine.ok("sh", "-c", compare)) == []
        file = "/mnt/home/alice/file"
        assert "cap_net_raw=ep" in machine.ok("getcap", "/mnt/srv/data/capable")
        assert "user:1:r--" in machine.ok("getfacl", "-np", file)
        note = ("getfattr", "--only-values", "-n", "user.note")
        assert machine.ok(*note, file) == "remembered"
