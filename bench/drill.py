"""A drill of 1,000 sampled files, beside restic restoring exactly these by hand; and its memory.

`peak_mib`: the highest VmHWM (proc(5)) of any of capkeep's own processes in a drill, as bench/memory.py
has it: doors, runner, rooms and the client, not the engine. `time_ratio`: median wall time of `capkeep
drill` (list, choose, restore and verify, compare with the snapshot and the live files) over that of
`restic restore --include-file` alone, with the paths of the same files. To see where time goes, each
measured once: `by_hand_verified_ms`, the same with `--verify`, as the drill has it; `list_ms`, `restic ls
--json`, which tells what there is to choose from. Files of 1 to 997 bytes, in folders of 1,000; the newest
restic, a local disk. The time is largely restic's own for telling which of its files match 1,000 paths.

usage: python -m bench.drill [FILES [ROUNDS]]    FILES: such as 20000 for a try
"""

import random
import shutil
import subprocess
import sys
import time
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Final

from bench.host import (
    PASSWORD,
    QUIET,
    SECONDS,
    Installed,
    alternate,
    installed,
    milliseconds,
    result,
    say,
    scratch,
)
from bench.memory import PER_FOLDER, say_peaks, watched
from capkeep.engines.base import Entry
from capkeep.engines.restic import Restic
from capkeep.plan.model import Drill
from capkeep.records.drills import made, proven
from capkeep.records.reader import RecordReader
from capkeep.rooms.choice import Choice
from tests.engines import restic_programs

FILES: Final = 1_000_000
SAMPLE: Final = 1000
ROUNDS: Final = 3
SIZES: Final = 997  # bytes; a prime, so that folders are not alike
SEED: Final = "4711"
TABLES: Final = f"[jobs.bench.drill]\nsample = {SAMPLE}\n"


def make_files(folder: Path, count: int) -> None:
    """Each with content of its own, so that there are as many places in the repository."""
    source = random.Random(SEED)
    for start in range(0, count, PER_FOLDER):
        current = folder / f"{start:07}"
        current.mkdir(parents=True)
        for number in range(start, min(start + PER_FOLDER, count)):
            with open(current / f"file-{number}", "wb", buffering=0) as file:
                file.write(source.randbytes(1 + number % SIZES))


def sample(host: Installed, listing: Path) -> tuple[str, list[Entry]]:
    """The snapshot, and what a drill of it chooses with this seed, by the drill's own rules."""
    with RecordReader(f"{host.place}/state/records") as records:
        (backup,) = made(records, "bench", "bench")
    choice = Choice(
        Drill(sample=SAMPLE), SEED,
        whole=False, dumps=(), listing=StringIO(), moment=int(backup.started),
    )  # fmt: skip
    engine = Restic()
    with open(listing, "rb") as file:
        for line in file:
            if entry := engine.parse_ls_line(line):
                choice.take(entry)
    return backup.snapshot, choice.chosen(lambda *_: None)


def prove_the_same(host: Installed, chosen: list[Entry], restored: Path) -> None:
    """Both sides have restored these files. Raises RuntimeError if not."""
    with RecordReader(f"{host.place}/state/records") as records:
        (last,) = proven(records, time.time())
    expected = (len(chosen), sum(entry.size for entry in chosen))
    drilled = (last.month.files // last.month.drills, last.bytes)
    files = [path for path in restored.rglob("*") if path.is_file()]
    by_hand = (len(files), sum(path.stat().st_size for path in files))
    if not drilled == by_hand == expected:
        raise RuntimeError(f"files, bytes: {drilled}, by hand {by_hand}, expected {expected}")


def measure(host: Installed, place: Path, rounds: int) -> dict[str, float]:
    """Every number but the memory's."""
    beside, restored, paths = place / "by-hand", place / "restored", place / "paths"
    listing = place / "listing"
    host.twin(beside)

    def list_all() -> None:
        cache = host.place / "cache-by-hand"
        with open(listing, "wb") as file:
            subprocess.run(
                [host.restic, "--repo", beside, "--cache-dir", cache, "ls", "--json", "latest"],
                env=QUIET | {"RESTIC_PASSWORD": PASSWORD}, stdout=file, check=True, timeout=SECONDS,
            )  # fmt: skip

    list_all()
    snapshot, chosen = sample(host, listing)
    paths.write_text("".join(f"{entry.path}\n" for entry in chosen))

    def by_hand(*options: str) -> None:
        words = (f"--target={restored}", f"--include-file={paths}", *options)
        host.by_hand("restore", *words, snapshot, repository=beside)

    def drill() -> None:
        host.capkeep("drill", "bench", "--seed", SEED)

    drill()
    verified = milliseconds(partial(by_hand, "--verify"))
    prove_the_same(host, chosen, restored)
    listed = milliseconds(list_all)
    say(f"{len(chosen)} files, {rounds} rounds")
    ours, alone = alternate(
        rounds, drill, by_hand, before=lambda: shutil.rmtree(restored, ignore_errors=True)
    )
    return {
        "time_ratio": ours / alone, "drill_ms": ours, "by_hand_ms": alone,
        "by_hand_verified_ms": verified, "list_ms": listed, "sampled": len(chosen),
        "rounds": rounds,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else FILES
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    restic = list(restic_programs().values())[-1]
    with scratch() as place:
        source = place / "source"
        say(f"{files} files")
        make_files(source, files)
        with installed(place / "capkeep", source, restic, TABLES) as host:
            host.capkeep("init")
            host.capkeep("run", "bench")
            found = watched(host, "drill")
            say_peaks(found)
            numbers = measure(host, place, rounds)
    result(peak_mib=max(found.values()) / 1024, **numbers, files=files)


if __name__ == "__main__":
    main()
