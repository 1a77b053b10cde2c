"""Files that have changed since their backup are compared with what the reader read beside the engine."""

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path

from tests.system.conftest import Product
from tests.system.test_drill import drilled, part
from tests.system.test_upkeep import restic, told

MOMENT = 1_700_000_000 * 10**9


def shelved(product: Product) -> list[Path]:
    """What is kept of all that was read; the oldest first."""
    return sorted(Path(product.home.base, "state/records/manifests/job/repo").glob("*.json"))


def records(product: Product) -> Path:
    (path,) = Path(product.home.base, "state/records").glob("*.db")
    return path


def settle_at_once(product: Product) -> None:
    """Let this installation's readers sum what was changed a moment before a backup, too."""
    path = Path(product.home.package, "capkeep/rooms/manifest.py")
    text, line = path.read_text(), "SETTLED_SECONDS: Final = 600\n"
    assert line in text
    path.write_text(text.replace(line, "SETTLED_SECONDS: Final = 0\n"))


def write(source: Path, names: tuple[str, ...], text: str) -> None:
    for name in names:
        (source / name).write_text(text)
        os.utime(source / name, ns=(MOMENT, MOMENT))


def test_what_was_stored_wrong_is_found_though_the_files_have_changed(product: Product) -> None:
    settle_at_once(product)
    drilled(product, "old-snapshots = 2\n")
    source, names = product.source, ("one", "two", "late")
    write(source, names, "wrong\n")
    canary = product.home.compiled().job("job").canary
    restic(product, "backup", "--tag=capkeep:job", str(source), canary)
    (wrong,) = [s["id"] for s in json.loads(restic(product, "snapshots", "--json"))]
    write(source, names, "right\n")
    time.sleep(0.2)  # the files have not changed since the backup begins
    done = product("run", "--json")
    assert done.code == 0, done
    # What names files is neither shown nor in the log or the record, and is the runner's user's alone.
    assert not told(done, "manifest")
    for path in (*Path(product.home.base, "log").iterdir(), *records(product).parent.glob("*.db*")):
        assert b'"nonce"' not in path.read_bytes(), path
    (place,) = shelved(product)
    for path in (place, *place.parents[:3]):
        assert not path.stat().st_mode & 0o077, path
    for path in source.iterdir():
        path.write_text("changed since\n")
    drill = product("drill", "--json")
    assert drill.code == 0, drill
    facts = part(drill)
    live = facts["live"]
    assert isinstance(live, dict)
    assert live["changed"] == 4, facts
    assert (facts["manifest"], facts["manifest_differing"]) == (5, 0), "with the canary"
    assert "5 are as read at backup time" in told(drill, "end")[0]["text"], drill  # type: ignore[operator]
    # A second backup, so that the next drill takes an older snapshot: the one that is stored wrong.
    time.sleep(0.2)
    assert product("run").code == 0
    assert len(shelved(product)) == 2
    snapshot = place.name.split("-")[1]
    place.rename(place.with_name(place.name.replace(snapshot, wrong)))
    with contextlib.closing(sqlite3.connect(records(product))) as record, record:
        said = "UPDATE step SET snapshot = ? WHERE snapshot = ?"
        assert record.execute(said, (wrong, snapshot)).rowcount == 1
    drill = product("drill", "--json")
    assert drill.code == 13, drill
    facts = part(drill)
    assert (facts["old"], facts["snapshot"], facts["live_differing"]) == (True, wrong, 0)
    assert facts["manifest_differing"] == 3
    found = dict(facts["differences"])  # type: ignore[call-overload]
    text = "content differs from what was read at backup time"
    assert {path: words for path, words in found.items() if words == text} == {
        str(source / name): text for name in names
    }
    # Without it nobody would know.
    for path in shelved(product):
        path.unlink()
    drill = product("drill", "--json", "--seed", f"{facts['seed']}@{wrong[:16]}")
    assert drill.code == 0, drill
    assert part(drill)["manifest"] == 0
