"""Runs that are brought to a standstill at a place of one's choice."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from tests.rooms.house import GROUP, MEMBER, wait_for
from tests.system.conftest import Product


def start(product: Product, *words: str) -> "subprocess.Popen[bytes]":
    """A command of an ordinary user, in the background."""
    return subprocess.Popen(
        product.home.command(*words), user=MEMBER, group=MEMBER, extra_groups=[GROUP], cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def random_file(path: Path, mebibytes: int) -> None:
    with open(path, "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(mebibytes))


def locks(product: Product) -> set[Path]:
    """Those of restic that count: one that is still being written has a longer name."""
    entries = (product.repository / "locks").iterdir()
    return {entry for entry in entries if len(entry.name) == 64}


def processes(product: Product, *kinds: str) -> dict[int, bytes]:
    """Number and command line of every process of the users of some kinds of rooms; of all of them.

    /proc/PID belongs to the process's user even where the process hides its memory (proc(5)).
    """
    uids = {r.grant.uid for r in product.home.plan.rooms if not kinds or r.kind in kinds}
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if entry.name.isdecimal() and entry.stat().st_uid in uids:
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
    return found


def programs(product: Product, kind: str) -> list[int]:
    """The room programs of a kind: Python, not the engine and not what starts it."""
    found = processes(product, kind).items()
    return [pid for pid, words in found if b"capkeep" in words and b"restic" not in words]


def halted_while_reading(product: Product, *paths: Path) -> tuple["subprocess.Popen[bytes]", int]:
    """A run whose engine has read some of each of these files, and its engine, standing still."""
    running = start(product, "run", "--json")
    found: list[int] = []

    def is_reading() -> bool:
        found[:] = [pid for pid in processes(product) if _positions(pid, paths) == len(paths)]
        return bool(found)

    wait_for(is_reading)
    os.kill(found[0], signal.SIGSTOP)
    assert _positions(found[0], paths) == len(paths), "the engine was faster"
    return running, found[0]


def _positions(pid: int, paths: tuple[Path, ...]) -> int:
    """How many of these files a process has begun to read."""
    wanted = {str(path) for path in paths}
    begun = set()
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(fd)
                if target in wanted:
                    info = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
                    if int(info.split()[1]):
                        begun.add(target)
    return len(begun)
