"""What it costs that reader and vault are two rooms: first backups of the same tree.

20,000 small files, and 1 GiB of large ones, each into an empty repository, without a cache from
before; `capkeep run` as a whole against `restic backup` by hand on a local repository.
`small_ratio`, `large_ratio` with the newest restic; `old_small_ratio`, `old_large_ratio` with 0.14.
By hand the repository has a key as restic makes it; `same_key_…`: it has capkeep's quick one too.
"""

import os
import shutil
import sys
from pathlib import Path

from bench.host import Installed, alternate, fill, installed, result, say, scratch
from tests.engines import restic_programs

ROUNDS = 5


def empty(folder: Path) -> None:
    """Remove what is in a folder, and leave the folder as it is."""
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def ratio(host: Installed, source: Path, beside: Path, rounds: int) -> tuple[float, float]:
    """Wall time through the rooms over wall time by hand: with a key of restic's own, and with the same."""
    alike = beside.with_name(f"{beside.name}-same-key")
    caches = [*(host.place / "cache").iterdir(), host.place / "cache-by-hand"]
    records = host.place / "state/records"  # of snapshots that are gone with the repository

    def start_afresh() -> None:
        for folder in (host.repository, records, *caches):
            empty(folder)
        host.capkeep("init")
        host.twin(beside)
        host.twin(alike, same_key=True)

    ours, by_hand, same_key = alternate(
        rounds,
        lambda: host.capkeep("run", "bench"),
        lambda: host.by_hand("backup", "--json", str(source), repository=beside),
        lambda: host.by_hand("backup", "--json", str(source), repository=alike),
        before=start_afresh,
    )
    say(
        f"{host.restic}: {source.name}: {ours:.0f} ms through rooms, {by_hand:.0f} ms by hand,"
        f" {same_key:.0f} ms with the same key"
    )
    shutil.rmtree(alike)
    return ours / by_hand, ours / same_key


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    programs = restic_programs()
    ratios = {}
    with scratch() as place:
        fill(place / "small", 20_000, 4096)
        fill(place / "large", 16, 64 << 20)
        for prefix, restic in (("", list(programs.values())[-1]), ("old_", programs["0.14"])):
            for kind in ("small", "large"):
                name = f"{prefix}{kind}_ratio"
                with installed(place / name, place / kind, restic) as host:
                    both = ratio(host, place / kind, place / f"{name}-by-hand", rounds)
                ratios[name], ratios[f"same_key_{name}"] = both
                shutil.rmtree(place / name)
                shutil.rmtree(place / f"{name}-by-hand")
    result(**ratios, rounds=rounds)


if __name__ == "__main__":
    main()
