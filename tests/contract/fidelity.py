"""How faithfully each kind of metadata comes back, restored as root and looked at by a drill.

What a restore gives back is what the contract declares of each engine. What a drill notices is declared
here; tests/system/test_fidelity.py spoils one thing of each kind, and asserts that the drill notices
just that. `python -m tests.contract.fidelity` writes both into the reference.
"""

import sys
from typing import Final, NamedTuple

from tests.contract.contract import CONTRACT
from tests.contract.declared import YES
from tests.contract.page import Page
from tests.contract.spoil import Spoil
from tests.contract.table import FAMILIES, cell
from tests.contract.tree import reads

PAGE: Final = Page("fidelity.md", "tests.contract.fidelity")


class Drilled(NamedTuple):
    """What a drill of everything makes of one kind of metadata.

    Whether it notices what was restored otherwise than it is kept, and what was kept otherwise than it
    is live (None: directories above have a say); as what it is counted apart, and how many of the tree.
    """

    restored: bool = False
    kept: bool | None = False
    apart: tuple[str, int] | None = None

    def words(self) -> str:
        """For people; the page says what they mean."""
        found = {
            (True, True): "compared with both", (True, None): "compared with both*",
            (True, False): "compared with the snapshot", (False, False): "not compared",
            (False, True): "compared with the live file",
        }[self.restored, self.kept]  # fmt: skip
        return f"{found}; counted as `{self.apart[0]}`" if self.apart else found


BOTH: Final = Drilled(restored=True, kept=True)
TIME: Final = Drilled(restored=True, kept=None)
SNAPSHOT: Final = Drilled(restored=True)
NOT: Final = Drilled()


class Row(NamedTuple):
    """One kind of metadata: which behaviours of the contract say what comes back, and what drills do.

    One of the tree is spoilt, unless no drill restores any. Behaviours that are as promised are told
    of in the words of `yes`.
    """

    title: str
    behaviours: tuple[str, ...]
    drilled: Drilled
    spoil: Spoil | None
    yes: str = YES


ACL: Final = "system.posix_acl_access"
DEFAULT_ACL: Final = "system.posix_acl_default"
BOTTOM: Final = "/".join(("deep", *(f"level-{n}" for n in range(60)), "bottom"))
EXACT: Final = "to the nanosecond"

ROWS: Final = (
    Row("content", ("contents",), BOTH, Spoil("mode-0600", "write", b"060")),
    Row("owner and group", ("owners",), BOTH, Spoil("mode-0644", "own", 1)),
    Row("owner and group above 65535, of a file", ("owners",),
        Drilled(kept=True, apart=("owners", 1)), Spoil("far", "own", 1)),
    Row("owner and group above 65535, of a directory", ("owners",),
        Drilled(apart=("owners", 5)), Spoil("dir-0755", "own", 1)),
    Row("mode", ("modes",), BOTH, Spoil("mode-2755", "mode", 0o2750)),
    Row("setuid, setgid and sticky bits", ("modes",), BOTH, Spoil("mode-4755", "mode", 0o755)),
    Row("a file's time", ("file_times",), TIME, Spoil("mode-0000", "time", 1), EXACT),
    Row("a directory's time", ("directory_times",), SNAPSHOT, Spoil("dir-0700", "time", 1), EXACT),
    Row("a symbolic link's target", ("links",), BOTH, Spoil("link", "lead", b"other")),
    Row("a symbolic link's owner", ("links",), BOTH, Spoil("owned", "own", 1)),
    Row("a symbolic link's time", ("link_times",), TIME, Spoil("dangling", "time", 1), EXACT),
    Row("`user.` attributes of a file", ("attributes",), BOTH,
        Spoil("attributes", "attribute", b"other", "user.note")),
    Row("`user.` attributes of a directory", ("attributes",), NOT,
        Spoil("sub", "attribute", b"other", "user.note")),
    Row("access list (POSIX ACL)", ("access_lists",), BOTH,
        Spoil("acl", "attribute", reads(1), ACL)),
    Row("access list that names ids above 65535", ("access_lists",),
        Drilled(apart=("attributes", 1)), None),
    Row("a directory's default access list", ("access_lists",), NOT,
        Spoil("acl-dir", "attribute", reads(1), DEFAULT_ACL)),
    Row("file capabilities", ("capabilities",), BOTH,
        Spoil("ping", "attribute", b"", "security.capability")),
    Row("other `security.` attributes (SELinux's, IMA's)", ("security_attributes",),
        NOT, None, "named, where they cannot be set"),
    Row("`trusted.` attributes", ("trusted_attributes",), NOT, None, "not kept"),
    Row("hard links", ("hard_links",), NOT, Spoil("second", "part"), "as one file"),
    Row("holes of sparse files", ("holes",), NOT, Spoil("sparse", "fill"), "as holes"),
    Row("named pipes", ("pipes", "owners"), SNAPSHOT, Spoil("fifo", "mode", 0o600)),
    Row("a named pipe's time", ("pipe_times",), SNAPSHOT, Spoil("pipe", "time", 1), EXACT),
    Row("devices", ("devices", "owners"), Drilled(apart=("devices", 2)), None),
    Row("a device's time", ("device_times",), NOT, None, EXACT),
    Row("sockets", ("sockets",), NOT, None, "not kept"),
    Row("empty files", ("contents",), TIME, Spoil("empty", "write", b"x")),
    Row("names of 255 bytes", ("long_names",), BOTH, Spoil("n" * 255, "mode", 0o600)),
    Row("names that are not UTF-8", ("odd_names",), Drilled(apart=("names", 1)), None),
    Row("names with newlines", ("control_names",), BOTH, Spoil("new\nline", "mode", 0o600)),
    Row("sixty directories inside each other", ("deep_trees",), BOTH,
        Spoil(BOTTOM, "mode", 0o600)),
)  # fmt: skip


def _root(row: Row, engines: tuple[str, ...]) -> str:
    """What comes back, by the contract alone."""
    found = dict.fromkeys(cell(CONTRACT[name], engines) for name in row.behaviours)
    told = [words for words in found if words != YES] or [YES]
    return "; ".join(told).replace(YES, row.yes)


def text() -> str:
    """The table, without the marks around."""
    lines = [
        f"| | {', as root | '.join(FAMILIES)}, as root | by drill |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        cells = (_root(row, engines) for engines in FAMILIES.values())
        lines.append(f"| {row.title} | {' | '.join(cells)} | {row.drilled.words()} |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write(text())
    sys.exit(0)
