"""Of borg's hard links only those are given that are of the file that borg has kept for them."""

import json
import subprocess
from pathlib import Path

import pytest

import capkeep
from capkeep.rooms.scripts import interpreter_of
from tests.engines import borg_programs

# Argument: how the link's owner, group, mode or list differs from the file's.
LINK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import borg_giving
from borg.item import ChunkListEntry, Item
first = dict(path="a", mode=0o100644, uid=5, gid=6, mtime=0, hardlink_master=True,
             acl_access=b"user::rw-\\nuser:ann:r--:7\\ngroup::r--\\nmask::r--\\nother::r--")
link = {**first, "path": "b", "source": "a", **eval(sys.argv[2])}
del link["hardlink_master"]
first = Item(**first)
first.chunks = [ChunkListEntry(bytes(32), 3, 2)]
told, chunks = borg_giving._member(Item(**link), {"a": first})
print(json.dumps([told.isreg(), told.size, len(chunks), told.pax_headers]))
"""


@pytest.mark.parametrize("version", ["1.2", "1.4"])
@pytest.mark.parametrize(
    "other",
    [{}, {"uid": 7}, {"gid": 7}, {"mode": 0o100600}, {"acl_access": b"user::rw-"}, {"source": "x"}],
)
def test_a_link_is_given_as_its_file(version: str, other: dict[str, object]) -> None:
    guest = Path(capkeep.__file__).parent / "guest"
    python = interpreter_of(borg_programs()[version])
    done = subprocess.run(
        [*python, "-c", LINK, str(guest), repr(other)], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    is_file, size, chunks, headers = json.loads(done.stdout)
    assert (is_file, size, chunks) == ((False, 0, 0) if other else (True, 3, 1))
    if not other:
        assert headers == {
            "SCHILY.acl.access": "user::rw-\nuser:7:r--\ngroup::r--\nmask::r--\nother::r--"
        }
