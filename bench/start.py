"""How fast the command line answers, beside Python importing a few of its own modules.

`version_ratio`: `capkeep --version`; `status_10k_ratio`: `capkeep status` with 10,000 records; each
over `python -c "import argparse, sqlite3, json, subprocess, logging"`, medians of wall time.
"""

import os
import sys
from pathlib import Path

from bench.host import CAPKEEP, Installed, alternate, installed, result, run, say, scratch
from capkeep.errors import EXIT_COMPLETE
from capkeep.records.model import Outcome, Run, new_run_id
from capkeep.records.store import Recorder
from tests.engines import restic_programs

ROUNDS = 25
RECORDS = 10_000
MINUTE = 60.0
NOW = 1_700_000_000.0


def fill_records(host: Installed) -> None:
    """A long history of complete runs, written the way the runner writes it."""
    folder = host.place / "state/records"
    owner = folder.stat()
    with Recorder(str(folder)) as recorder:
        for number in range(RECORDS):
            started = NOW + number * MINUTE
            begun = recorder.begin_run(Run(id=new_run_id(started), job="bench", started=started))
            step = recorder.begin_step(begun, "backup", "bench")
            recorder.end_step(
                step._replace(ended=started + 5, outcome=Outcome.COMPLETE, exit_code=0)
            )
            recorder.end_run(
                begun._replace(ended=started + 5, outcome=Outcome.COMPLETE, exit_code=EXIT_COMPLETE)
            )
    for file in folder.iterdir():
        os.chown(file, owner.st_uid, owner.st_gid)


def main() -> None:
    """Measure and print."""
    modules = "import argparse, sqlite3, json, subprocess, logging"
    with scratch() as place:
        source = place / "source"
        source.mkdir()
        Path(source, "file").touch()
        with installed(place / "capkeep", source, restic_programs()["0.18"]) as host:
            say(f"writing {RECORDS} records")
            fill_records(host)
            host.capkeep("status")
            plain, version, status = alternate(
                ROUNDS,
                lambda: run([sys.executable, "-c", modules]),
                lambda: run([CAPKEEP, "--version"]),
                lambda: host.capkeep("status"),
            )
    result(
        version_ratio=version / plain,
        status_10k_ratio=status / plain,
        plain_ms=plain,
        version_ms=version,
        status_10k_ms=status,
    )


if __name__ == "__main__":
    main()
