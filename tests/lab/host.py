"""What a machine takes of the host: control groups, mounts, a folder; and how it is given back."""

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.lab import trees

MACHINES: Final = trees.ROOT / "machines"
PREFIX: Final = "capkeep-lab-"  # of the control groups
STOP_SECONDS: Final = 30


def control_groups() -> Path:
    """Where the host's control groups (version 2) are mounted. Raises LookupError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    raise LookupError("no writable control groups (version 2) are mounted")


def end_group(group: Path) -> None:
    """End every process of a control group and remove it."""
    limit = time.monotonic() + STOP_SECONDS
    while group.exists():
        with contextlib.suppress(OSError):
            (group / "cgroup.kill").write_text("1")
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if time.monotonic() > limit:
            raise TimeoutError(f"{group} does not end")
        time.sleep(0.02)


def remove(folder: Path) -> None:
    """Unmount a machine's disk and remove it. Raises TimeoutError."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(folder):
            run_here("umount", "-l", mount)
    limit = time.monotonic() + STOP_SECONDS
    while (
        folder.exists()
    ):  # the kernel tidies up after the last user of an overlay, at the same time
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > limit:
            raise TimeoutError(f"{folder} cannot be removed")
        time.sleep(0.02)


def clear_leftovers() -> None:
    """Remove what killed runs have left: call it while `trees.locked`."""
    MACHINES.mkdir(parents=True, exist_ok=True)
    for folder in MACHINES.iterdir():
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            (folder / "lock").open("w") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end_group(control_groups() / f"{PREFIX}{folder.name}")
            remove(folder)


def run_here(*argv: str | Path) -> None:
    """Run a program on the host. Raises CalledProcessError, TimeoutExpired."""
    subprocess.run(argv, check=True, timeout=120, stdin=subprocess.DEVNULL)


@functools.cache
def obstacle() -> str:
    """Why no machine can exist on this host; empty if nothing is known to be in the way."""
    trees.ROOT.mkdir(parents=True, exist_ok=True)
    try:
        control_groups()
    except LookupError as error:
        return str(error)
    with tempfile.TemporaryDirectory(prefix="try-", dir=trees.ROOT) as folder:
        lower, upper, work, tree = (Path(folder, n) for n in ("lower", "upper", "work", "tree"))
        for path in (lower, upper, work, tree):
            path.mkdir()
        overlay = f"lowerdir={lower},upperdir={upper},workdir={work}"
        attempts = {
            "mount control groups": ["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"],
            "mount an overlay": ["mount", "-t", "overlay", "-o", overlay, "overlay", str(tree)],
            "make a device": ["mknod", str(tree / "fuse"), "c", "10", "229"],
            "make namespaces": ["unshare", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "true"],
        }  # fmt: skip
        for what, argv in attempts.items():
            done = subprocess.run(["unshare", "--mount", *argv], capture_output=True, timeout=30)
            if done.returncode:
                return f"this host does not let root {what}: {done.stderr.decode().strip()}"
    return ""
