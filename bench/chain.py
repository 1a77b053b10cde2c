"""A whole job, backup → check 10 % → comparison → forget and prune, beside a script of the same calls.

`small_ratio`, `mid_ratio`: median wall time of `capkeep run` divided by that of a shell script which
calls the engine for each of these, and for the list of snapshots, as people write it. Small: 1,000
files, 10 MB, 10 of them changed before each round; mid: 100,000 files, 1 GB, 1,000 changed. Both sides
keep the last two snapshots, so each round removes one and prunes. The newest restic; a local disk.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Final, NamedTuple

from bench.host import (
    PASSWORD,
    Installed,
    fill,
    installed,
    milliseconds,
    result,
    run,
    say,
    scratch,
)
from tests.engines import restic_programs

MOMENT: Final = 2.0  # seconds for the doors between two runs, as between any two of a timer's
FILE_SIZE: Final = 10_000
TABLES: Final = """
[jobs.bench.check]
read-data = "10%"
[jobs.bench.retention]
keep-last = 2
trust-clock = true
"""
SCRIPT: Final = """\
#!/bin/bash
set -euo pipefail
restic backup "$SOURCE"
restic check --read-data-subset=10%
ids=$(restic snapshots --json | grep -o '"short_id":"[0-9a-f]*"' | tail -n 2 | cut -d '"' -f 4)
restic diff $ids
restic forget --prune --keep-last 2
restic snapshots
"""


class Size(NamedTuple):
    """A repository, and how often to measure."""

    name: str
    files: int
    changed: int
    rounds: int


SIZES: Final = (Size("small", 1_000, 10, 9), Size("mid", 100_000, 1_000, 3))


def main() -> None:
    """Measure and print."""
    numbers: dict[str, float] = {}
    for size in SIZES:
        ours, script = _measure(size)
        numbers |= {
            f"{size.name}_ratio": ours / script, f"{size.name}_capkeep_ms": ours,
            f"{size.name}_script_ms": script,
        }  # fmt: skip
    result(**numbers)


def _measure(size: Size) -> tuple[float, float]:
    restic = list(restic_programs().values())[-1]
    chance = random.Random(size.name)
    with scratch() as place:
        source = place / "source"
        fill(source, size.files, FILE_SIZE)
        files = sorted(source.glob("*/*"))
        with installed(place / "capkeep", source, restic, TABLES) as host:
            host.capkeep("init")
            host.capkeep("run", "bench")
            host.twin(place / "by-hand")
            script = _script(place, restic)

            def ours() -> None:
                host.capkeep("run", "bench")

            def by_hand() -> None:
                _by_hand(place, script, source, host)

            taken: tuple[list[float], list[float]] = ([], [])
            for number in range(-2, size.rounds):  # two of them until there is one to be removed
                for path in chance.sample(files, size.changed):
                    path.write_bytes(chance.randbytes(FILE_SIZE))
                sides = [(ours, taken[0]), (by_hand, taken[1])]
                for action, times in sides if number % 2 else reversed(sides):
                    time.sleep(MOMENT)
                    milli = milliseconds(action)
                    if number >= 0:
                        times.append(milli)
                say(f"{size.name} {number}: {[round(t[-1]) for t in taken if t]} ms")
            return statistics.median(taken[0]), statistics.median(taken[1])


def _script(place: Path, restic: Path) -> Path:
    programs = place / "bin"
    programs.mkdir()
    (programs / "restic").symlink_to(restic)
    script = place / "backup.sh"
    script.write_text(SCRIPT)
    return script


def _by_hand(place: Path, script: Path, source: Path, host: Installed) -> None:
    run(
        ["/bin/bash", script],
        PATH=f"{place}/bin:/usr/bin:/bin", RESTIC_PASSWORD=PASSWORD, SOURCE=str(source),
        RESTIC_REPOSITORY=str(place / "by-hand"), RESTIC_CACHE_DIR=str(host.place / "cache-by-hand"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
