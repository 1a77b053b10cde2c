"""Peak memory of capkeep's own processes, with a job of 1,000 and one of 1,000,000 files.

`peak_mib`: the highest VmHWM (proc(5)) of any of them with the large job: doors, runner, rooms and
the client. The engine and rclone are not capkeep's. `small_peak_mib`: the same with the small job.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.host import CAPKEEP, QUIET, Installed, installed, result, say, scratch
from tests.engines import restic_programs

SMALL, LARGE = 1000, 1_000_000
PER_FOLDER = 1000
LOOK_SECONDS = 0.05


def make_files(folder: Path, count: int) -> None:
    """Empty files: their number is what counts."""
    for number in range(0, count, PER_FOLDER):
        current = folder / f"{number:07}"
        current.mkdir(parents=True)
        for index in range(min(PER_FOLDER, count - number)):
            os.close(os.open(current / f"file-{index}", os.O_WRONLY | os.O_CREAT, 0o644))


def family(roots: set[int]) -> set[int]:
    """These processes and all that descend from them."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def peak_kib(pid: int) -> tuple[str, int]:
    """A process of ours by name, and its peak; the name is empty if it is not ours or gone."""
    try:
        program = os.readlink(f"/proc/{pid}/exe")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return "", 0
    if "python" not in os.path.basename(program):
        return "", 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    code = next((w for w in words if "import main" in w), "")
    name = code.partition("; from ")[2].partition(" import")[0] or words[-1] or words[-2]
    return name, int(lines[0].split()[1]) if lines else 0


def watched(host: Installed, verb: str) -> dict[str, int]:
    """Have this done once for the job, and watch: KiB by name. Raises RuntimeError where it fails."""
    assert host.doors is not None, "the doors are open"
    found: dict[str, int] = {}
    argv = [CAPKEEP, "--prefix", host.place, verb, "bench"]
    with subprocess.Popen(argv, env=QUIET, stdout=subprocess.DEVNULL) as client:
        while client.poll() is None:
            for pid in family({host.doors.pid, client.pid}):
                name, kib = peak_kib(pid)
                if name:
                    found[name] = max(found.get(name, 0), kib)
            time.sleep(LOOK_SECONDS)
        if client.returncode != 0:
            raise RuntimeError(f"the {verb} ended with {client.returncode}")
    return found


def say_peaks(found: dict[str, int]) -> None:
    """For people, the largest first."""
    for name, kib in sorted(found.items(), key=lambda item: -item[1]):
        say(f"{kib / 1024:8.1f} MiB  {name}")


def peaks(host: Installed, count: int) -> dict[str, int]:
    """Back up once and watch: KiB by name."""
    found = watched(host, "run")
    said = subprocess.run(
        [CAPKEEP, "--prefix", host.place, "status", "--json"],
        env=QUIET,
        capture_output=True,
        check=True,
    ).stdout
    found_files = json.loads(said)["jobs"][0]["totals"]["total_files"]
    if found_files < count:
        raise RuntimeError(f"the run saw {found_files} of {count} files")
    return found


def main() -> None:
    """Measure and print."""
    large = int(sys.argv[1]) if len(sys.argv) > 1 else LARGE
    restic = list(restic_programs().values())[-1]
    found = {}
    with scratch() as place:
        for count in (SMALL, large):
            source = place / f"source-{count}"
            say(f"{count} files")
            make_files(source, count)
            with installed(place / f"capkeep-{count}", source, restic) as host:
                host.capkeep("init")
                found[count] = peaks(host, count)
            say_peaks(found[count])
    result(
        peak_mib=max(found[large].values()) / 1024,
        small_peak_mib=max(found[SMALL].values()) / 1024,
        files=large,
    )


if __name__ == "__main__":
    main()
