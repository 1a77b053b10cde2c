"""What people do today so that restic need not run as root, and how it ends without a word.

The recipe: `setcap cap_dac_read_search=+ep` on the engine, a user of its own, a unit with `User=` and
`ProtectSystem=full`, a timer. A file capability belongs to one file: a new version of the package is
another file. From then on the nightly backup goes on, with what everybody may read.
"""

from collections.abc import Iterator

import pytest

from tests.lab import trees
from tests.lab.machine import Machine

SERVICE = """
[Unit]
Description=Nightly backup, as the recipe has it
[Service]
Type=oneshot
User=backup-recipe
ProtectSystem=full
Environment=RESTIC_REPOSITORY=/srv/repository RESTIC_PASSWORD=recipe RESTIC_CACHE_DIR=/srv/cache
ExecStart=/usr/bin/restic backup --json /srv/data
"""
TIMER = """
[Timer]
OnCalendar=*-*-* 02:30:00
[Install]
WantedBy=timers.target
"""
NOW = "[Timer]\nOnCalendar=\nOnActiveSec=200ms\nAccuracySec=100ms\nRemainAfterElapse=no\n"
LEDGER = "/srv/data/ledger"


@pytest.fixture(params=trees.SUITES)
def recipe(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine on which somebody has followed the recipe, to the letter."""
    with Machine(request.param) as machine:
        machine.ok("useradd", "--system", "backup-recipe")
        machine.write(LEDGER, "a line\n", 0o600)
        machine.ok(
            "install", "-d", "-o", "backup-recipe", "-m", "700", "/srv/repository", "/srv/cache"
        )
        machine.ok("chgrp", "backup-recipe", "/usr/bin/restic")
        machine.ok("chmod", "750", "/usr/bin/restic")
        machine.ok("setcap", "cap_dac_read_search=+ep", "/usr/bin/restic")
        restic(machine, "init")
        machine.write("/etc/systemd/system/nightly.service", SERVICE)
        machine.write("/etc/systemd/system/nightly.timer", TIMER)
        machine.ok("systemctl", "daemon-reload")
        machine.ok("systemctl", "enable", "--now", "nightly.timer")
        yield machine


def restic(machine: Machine, *words: str) -> str:
    """The administrator looks at the repository, as root."""
    way = ("env", "RESTIC_REPOSITORY=/srv/repository", "RESTIC_PASSWORD=recipe")
    said = machine.ok(*way, "restic", "--no-cache", *words)
    machine.ok("chown", "-R", "backup-recipe:", "/srv/repository")
    return said


def night(machine: Machine) -> tuple[int, str]:
    """The timer fires; the engine's exit code, and systemd's word on the unit."""
    before = shown(machine).get("InvocationID")
    machine.write("/run/systemd/system/nightly.timer.d/now.conf", NOW)
    machine.ok("systemctl", "daemon-reload")
    machine.ok("systemctl", "restart", "nightly.timer")

    def over() -> bool:
        now = shown(machine)
        return now.get("InvocationID") != before and now["ActiveState"] in {"inactive", "failed"}

    machine.wait(over, 60)
    last = shown(machine)
    return int(last["ExecMainStatus"]), last["Result"]


def shown(machine: Machine) -> dict[str, str]:
    """What systemd says of the service."""
    lines = machine.ok("systemctl", "show", "nightly.service").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def is_kept(machine: Machine) -> bool:
    """Whether the newest snapshot has the file that nobody but root may read."""
    return LEDGER in restic(machine, "ls", "latest").splitlines()


def upgrade(machine: Machine) -> str:
    """The package comes once more, as any security update installs it; what that says."""
    return machine.ok("sh", "-c", f"dpkg -i {trees.PACKAGED}/restic_*.deb 2>&1")


def test_an_upgrade_takes_the_capability_and_with_it_the_files(recipe: Machine) -> None:
    """The first nights are a success: an unchanged file is taken from the snapshot before."""
    assert night(recipe) == (0, "success")
    assert "cap" not in upgrade(recipe)
    assert recipe.ok("getcap", "/usr/bin/restic") == ""
    assert night(recipe) == (0, "success")  # by an engine that cannot read it any more
    assert is_kept(recipe)
    recipe.write(LEDGER, "one more line\n", 0o600)
    assert night(recipe) == (3, "exit-code")  # and yet made a snapshot, which is now the newest
    assert not is_kept(recipe)


def test_where_something_is_never_readable_nothing_tells_the_two_apart(recipe: Machine) -> None:
    """A user's FUSE mount is closed to everybody else, root too: exit code 3, every night."""
    recipe.ok("useradd", "-m", "alice")
    recipe.ok("install", "-d", "-o", "alice", "/srv/data/alice", "/srv/data/mounted")
    recipe.ok("bindfs", "--no-allow-other", "/srv/data/alice", "/srv/data/mounted", user="alice")
    before = night(recipe)
    assert is_kept(recipe)
    upgrade(recipe)
    recipe.write(LEDGER, "one more line\n", 0o600)
    assert night(recipe) == before == (3, "exit-code")
    assert not is_kept(recipe)
