"""Write down the host's namespaces, outside of any room, once after each start of the machine.

Only who is in them can tell which they are; each room compares its own with them (rooms/proof.py).
"""

import os
import sys

from capkeep.kernel.facts import host_filters, host_namespaces
from capkeep.plan import codec
from capkeep.plan.model import Outside


def main() -> int:
    """Write the file that the command line names, at once or not at all."""
    path = sys.argv[1]
    draft = f"{path}.new"
    with open(draft, "w", encoding="ascii") as file:
        file.write(codec.dumps(Outside(host_namespaces(), host_filters())))
    os.rename(draft, path)
    return 0
