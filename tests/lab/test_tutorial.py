"""The tutorial's commands, in the tutorial's order, as a newcomer types them."""

import re
from pathlib import Path

from tests.lab.machine import Machine

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"```(console|toml)\n(.*?)```", re.DOTALL)
# The machine is not on a network: its packages are there already, and the installation too.
INSTALLED = ("apt-get ", "python3 -m venv ", "/opt/capkeep/bin/pip ", "ln -s ")


def test_the_tutorial_works(machine: Machine) -> None:
    machine.write("/etc/fstab", "# nothing is mounted\n")
    machine.ok("useradd", "-m", "newcomer")
    ran = []
    for kind, text in BLOCK.findall(TUTORIAL.read_text()):
        if kind == "toml":
            machine.write("/etc/capkeep/capkeep.toml", text)
            continue
        for line in text.splitlines():
            assert line.startswith("# "), line
            command = line.removeprefix("# ")
            if not command.startswith(INSTALLED):
                ran.append(command)
                done = machine.run("env", "SUDO_USER=newcomer", "sh", "-c", command, seconds=120)
                assert done.code == 0, (command, done)
                if command == "capkeep run":
                    assert "complete" in done.out
    assert len(ran) > 10
    assert "capkeep" not in machine.read("/etc/passwd")
    assert machine.run("test", "-e", "/srv/backup/config").code == 0
