"""What a program sees that a room's unit starts in place of the room's own."""

from collections.abc import Iterator

import pytest

from tests.lab import trees
from tests.lab.machine import Machine
from tests.lab.scenes import applied

UNITS = ("capkeep-runner", "capkeep-reader-system-local", "capkeep-vault-local-append")
MOST_MOUNTS = 34  # each costs every start; under 252 the journal's sockets are among them
# A unit of the same walls with another program, and without the caller's socket.
TWIN = (
    r"sed -E '/^(StandardInput|StandardOutput|OpenFile|CollectMode)=/d;"
    r" s#^ExecStart=.*#Type=oneshot\nExecStart=/bin/sh /run/look#;"
    r" s#^\[Service\]#[Service]\nBindReadOnlyPaths=/run/look#'"
    ' "/etc/systemd/system/$1@.service" >"/run/systemd/system/look-$1@.service"'
    ' && systemctl daemon-reload && systemctl start "look-$1@1"'
)
LOOK = """\
wc -l </proc/self/mountinfo
for place in /sys /dev/shm /dev/mqueue /dev/hugepages /dev/pts /tmp /var/tmp
do
    ls -A "$place" 2>/dev/null
    (: >"$place/new") 2>/dev/null && echo "$place can be written"
done
ls -A /run/systemd/journal 2>/dev/null
exit 0
"""


@pytest.fixture(scope="module", params=trees.SUITES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param) as machine:
        applied(machine)
        machine.write("/run/look", LOOK, 0o755)
        machine.ok("touch", "/dev/shm/somebodys", "/tmp/somebodys")
        yield machine


@pytest.mark.parametrize("unit", UNITS)
def test_a_room_has_few_mounts_and_nothing_in_shared_places(machine: Machine, unit: str) -> None:
    machine.ok("sh", "-c", TWIN, "sh", unit)
    machine.ok("journalctl", "--sync")
    said = machine.ok(
        "journalctl", "-o", "cat", f"_SYSTEMD_UNIT=look-{unit}@1.service"
    ).splitlines()
    assert 0 < int(said[0]) <= MOST_MOUNTS
    sockets = {"dev-log", "socket", "stdout"} if machine.suite == "bookworm" else set()
    assert set(said[1:]) <= sockets
