"""What finds which damage: every kind of file of a repository is changed, cut and taken away.

`python -m tests.contract.corruption` measures it again and writes it into the reference.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from capkeep.plan.model import RoomKind
from tests.contract.declared import BORG, RDIFF, RESTIC
from tests.contract.page import Page
from tests.contract.stand import Stand, stand
from tests.lab.host import run_here

PAGE: Final = Page("corruption.md", "tests.contract.corruption")
ENGINES: Final = (RESTIC[-2], BORG[-1], RDIFF[-1])
SCENE: Final = "damage"
MIB: Final = 1 << 20

NOTHING: Final = "nothing"  # finds it, and everything comes back all the same
NEVER: Final = "NOT FOUND"


class Kind(NamedTuple):
    """A kind of file in a repository, and how one of them is found."""

    name: str
    pattern: str
    choose: Callable[[list[Path]], Path]


def largest(paths: list[Path]) -> Path:
    return max(paths, key=lambda p: p.stat().st_size)


def smallest(paths: list[Path]) -> Path:
    return min(paths, key=lambda p: p.stat().st_size)


def newest(paths: list[Path]) -> Path:
    """By name: engines number them, or call them by the time."""
    return max(paths, key=lambda p: (len(p.name), p.name))


def oldest(paths: list[Path]) -> Path:
    return min(paths, key=lambda p: (len(p.name), p.name))


KINDS: Final = {
    "restic": (
        Kind("config", "config", largest),
        Kind("key", "keys/*", largest),
        Kind("snapshot", "snapshots/*", largest),
        Kind("index", "index/*", largest),
        Kind("pack of directories", "data/*/*", smallest),
        Kind("pack of contents", "data/*/*", largest),
    ),
    "borg": (
        Kind("config", "config", largest),
        Kind("segment of contents", "data/*/*", largest),
        Kind("segment of the newest manifest", "data/*/*", newest),
        Kind("index", "index.*", largest),
        Kind("hints", "hints.*", largest),
        Kind("integrity", "integrity.*", largest),
    ),
    "rdiff-backup": (
        Kind("file of the mirror", "**/large", largest),
        Kind("increment", "rdiff-backup-data/increments/**/large.*", largest),
        Kind("newest metadata", "rdiff-backup-data/mirror_metadata.*.snapshot.gz", newest),
        Kind("older metadata", "rdiff-backup-data/mirror_metadata.*.diff.gz", oldest),
        Kind("mark of the newest session", "rdiff-backup-data/current_mirror.*", newest),
    ),
}  # fmt: skip


def flip(path: Path) -> None:
    """One byte in its middle is another."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x5A]))


def cut(path: Path) -> None:
    """Its second half is gone."""
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: Final = {"a byte changed": flip, "cut to half": cut, "gone": Path.unlink}


def measure(name: str, *only: str) -> dict[tuple[str, str], str]:
    """What finds each damage, by kind of file (all, or `only` these) and damage."""
    with stand(name) as here:
        ids = _fill(here)
        repository = here.repository(SCENE)
        # What an engine, and the keeper, remember of a repository goes with it.
        places = (repository, Path(here.plan.places.cache))
        copies = [here.base / f"whole-{place.name}" for place in places]
        for place, copy in zip(places, copies, strict=True):
            run_here("cp", "-a", place, copy)
        found = {}
        for kind in (k for k in KINDS[here.who.engine] if not only or k.name in only):
            for damage, do in DAMAGES.items():
                path = kind.choose([p for p in repository.glob(kind.pattern) if p.is_file()])
                path.chmod(0o600)
                do(path)
                found[kind.name, damage] = _finder(here, ids)
                for place, copy in zip(places, copies, strict=True):
                    run_here("rsync", "-a", "--delete", f"{copy}/", place)
    return found


def _fill(here: Stand) -> list[str]:
    """Two snapshots, which the keeper has seen: what is in the first alone is found no less."""
    source = here.source(SCENE)
    (source / "folder").mkdir()
    (source / "folder/small").write_text("small\n")
    for _ in range(2):
        (source / "large").write_bytes(os.urandom(2 * MIB))
        assert here.back_up(SCENE).ok
    ids = [str(s["id"]) for s in here.snapshots(SCENE)]
    assert _checked(here, ids) == ""
    return ids


def _checked(here: Stand, ids: list[str], read_data: str = "") -> str:
    """How a check fails that follows a backup; "" if it finds nothing."""
    asked = {"job": SCENE, "parts": ["check"], "recorded": ids, "read_data": read_data}
    said = here.ask(RoomKind.KEEPER, SCENE, "upkeep", **asked)
    return said.failure or "".join(str(p["failure"] or "") for p in said.all("part"))


def _finder(here: Stand, ids: list[str]) -> str:
    """The cheapest thing that does not say that all is well."""
    if _checked(here, ids):
        return "check"
    if _checked(here, ids, "all"):
        return "check of all data"
    return NOTHING if _comes_back(here) else NEVER


def _comes_back(here: Stand) -> bool:
    """Whether each snapshot is restored as it was, in spite of all."""
    snapshots = here.snapshots(SCENE)
    if len(snapshots) != 2:
        return False
    for one in snapshots:
        said, place = here.restore(SCENE, snapshot=str(one["id"]))
        if not said.ok or not (place / "folder/small").exists():
            return False
    return (place / "large").read_bytes() == (here.source(SCENE) / "large").read_bytes()


# -- the page


def text(found: dict[str, dict[tuple[str, str], str]]) -> str:
    """All tables."""
    return "\n".join(line for name, one in found.items() for line in _table(name, one))


def _table(name: str, found: dict[tuple[str, str], str]) -> Iterator[str]:
    yield from (
        "",
        f"## {name}",
        "",
        f"| | {' | '.join(DAMAGES)} |",
        f"|---|{'---|' * len(DAMAGES)}",
    )
    for kind in KINDS[name.rpartition(" ")[0]]:
        yield f"| {kind.name} | {' | '.join(found[kind.name, d] for d in DAMAGES)} |"


def told() -> dict[tuple[str, str, str], str]:
    """What the page says, by engine, kind of file and damage."""
    found, name = {}, ""
    for line in PAGE.split()[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            name = line.removeprefix("## ")
        elif line.startswith("| ") and cells[0]:
            found |= {(name, cells[0], d): c for d, c in zip(DAMAGES, cells[1:], strict=True)}
    return found


def main() -> int:
    """Write it into the page."""
    PAGE.write(text({name: measure(name) for name in ENGINES}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
