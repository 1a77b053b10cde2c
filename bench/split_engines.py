"""What it costs borg and rdiff-backup that reader and vault are two rooms: as bench/split.py, for them.

First backups of the same two trees, each into an empty repository, without a cache from before:
`capkeep run` as a whole against the engine by hand, as root, on a local repository. One ratio for each
engine and tree: `borg_small_ratio`, `borg_large_ratio`, `rdiff_backup_small_ratio`,
`rdiff_backup_large_ratio`. The engines are those that are installed here.

usage: python -m bench.split_engines [ROUNDS [PART]]    PART: of the trees' files, such as 0.01 for a try
"""

import shutil
import sys
from pathlib import Path

from bench.host import PASSWORD, Installed, alternate, fill, installed, result, run, say, scratch
from bench.split import ROUNDS, empty

PROGRAMS = {"borg": Path("/usr/bin/borg"), "rdiff-backup": Path("/usr/bin/rdiff-backup")}


def by_hand(host: Installed, source: Path, beside: Path) -> None:
    """One backup, told as much as capkeep is told."""
    if host.engine == "rdiff-backup":
        run([host.restic, "--api-version", "201", "backup", source, beside])
        return
    options = ["--log-json", "--json", "--progress", "--list"]
    run(
        [host.restic, "create", *options, f"{beside}::by-hand", source],
        BORG_BASE_DIR=str(host.place / "cache-by-hand"), BORG_PASSPHRASE=PASSWORD,
        BORG_RELOCATED_REPO_ACCESS_IS_OK="yes",
    )  # fmt: skip


def ratio(host: Installed, source: Path, beside: Path, rounds: int) -> float:
    """Wall time through the rooms over wall time by hand."""
    caches = [*(host.place / "cache").iterdir(), host.place / "cache-by-hand"]
    vaults = list((host.place / "state/vault").iterdir())  # what they know of repositories before
    records = host.place / "state/records"  # of snapshots that are gone with the repository

    def start_afresh() -> None:
        for folder in (host.repository, records, *caches, *vaults):
            empty(folder)
        host.capkeep("init")
        if host.engine == "borg":
            host.twin(beside)
        else:
            shutil.rmtree(beside, ignore_errors=True)

    ours, alone = alternate(
        rounds,
        lambda: host.capkeep("run", "bench"),
        lambda: by_hand(host, source, beside),
        before=start_afresh,
    )
    say(f"{host.engine}: {source.name}: {ours:.0f} ms through rooms, {alone:.0f} ms by hand")
    return ours / alone


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    part = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    ratios = {}
    with scratch() as place:
        fill(place / "small", round(20_000 * part), 4096)
        fill(place / "large", 16, round((64 << 20) * part))
        for engine, program in PROGRAMS.items():
            for kind in ("small", "large"):
                name = f"{engine.replace('-', '_')}_{kind}_ratio"
                with installed(place / name, place / kind, program, engine=engine) as host:
                    ratios[name] = ratio(host, place / kind, place / f"{name}-by-hand", rounds)
                shutil.rmtree(place / name)
                shutil.rmtree(place / f"{name}-by-hand", ignore_errors=True)
    result(**ratios, rounds=rounds)


if __name__ == "__main__":
    main()
