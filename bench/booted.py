"""The same small unchanged job on a machine whose systemd starts the rooms (Debian 13)."""

import json

from tests.lab.machine import Machine
from tests.lab.scenes import applied

SUITE = "trixie"
FILES, SIZE = 1000, 10_000  # as the job that is started directly

JOB = """
[jobs.system]
repositories = ["local"]
include = ["/srv/data"]
"""

# Runs in the machine, so that getting into it is no part of what is measured.
ALTERNATE = """
import json, os, shutil, statistics, subprocess, sys, time
rounds, moment = int(sys.argv[1]), float(sys.argv[2])
shutil.copytree("/srv/repo", "/srv/by-hand")
env = {"PATH": "/usr/bin:/bin", "RESTIC_REPOSITORY": "/srv/by-hand",
       "RESTIC_PASSWORD_FILE": "/etc/capkeep/secrets/local", "RESTIC_CACHE_DIR": "/root/cache"}
own = "--new-password-file=" + env["RESTIC_PASSWORD_FILE"]  # by hand there is a key of restic's own making
subprocess.run(["restic", "key", "passwd", own], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
calls = {"capkeep": (["capkeep", "run"], None),
         "restic": (["restic", "backup", "--json", "/srv/data"], env)}
taken = {name: [] for name in calls}
for number in range(rounds + 1):
    for name, (argv, env) in calls.items():
        time.sleep(moment)
        start = time.monotonic()
        subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
        if number:
            taken[name].append((time.monotonic() - start) * 1000)
print(json.dumps({name: statistics.median(ms) for name, ms in taken.items()}))
"""


def run_ms(rounds: int, moment: float) -> tuple[float, float]:
    """Medians, in milliseconds, of `capkeep run` and of the engine's own command."""
    with Machine(SUITE) as machine:
        fill = f"mkdir -p /srv/data; head -c {FILES * SIZE} /dev/urandom | split -a 3 -b {SIZE} - /srv/data/f"
        machine.ok("sh", "-c", fill)
        applied(machine, job=JOB)
        seconds = (rounds + 2) * (2 * moment + 6)
        said = machine.ok("python3", "-c", ALTERNATE, str(rounds), str(moment), seconds=seconds)
    medians = json.loads(said)
    return medians["capkeep"], medians["restic"]
