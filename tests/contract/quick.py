"""A repository of restic's that costs little to open."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Final

from capkeep.engines import ENGINES
from capkeep.engines.base import Call

SECONDS: Final = 60


def quick_key(program: Path, place: Path, password: str) -> None:
    """Make a repository of restic's whose key is opened in a tenth of the time.

    It makes a key as dear as 500 ms of its own time; an `init` that is stopped nine tenths of the
    time takes itself for slow.
    """
    call = Call(str(program), str(place), "/nonexistent", "/tmp", password)
    argv, env, _ = ENGINES["restic"].init(call)
    process = subprocess.Popen([*argv, "--no-cache"], env=dict(env), stdout=subprocess.DEVNULL)
    ended = threading.Event()
    brake = threading.Thread(target=_brake, args=(process.pid, ended))
    brake.start()
    try:
        code = _reap(process.pid)
    finally:
        ended.set()
        brake.join()
        process.wait()
    assert code == 0


def _brake(pid: int, ended: threading.Event) -> None:
    while not ended.wait(0.001):
        os.kill(pid, signal.SIGSTOP)
        ended.wait(0.012)
        os.kill(pid, signal.SIGCONT)


def _reap(pid: int) -> int:
    """Wait until it has ended, but leave its id taken until the brake has let go."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if done is not None:
            return done.si_status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise TimeoutError("restic init did not end")
