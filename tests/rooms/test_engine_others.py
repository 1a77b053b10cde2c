"""Who else is heard while an engine runs must neither keep the processor busy nor the engine's end hidden."""

import os
import time

from capkeep.kernel.process import spawn
from capkeep.rooms.engine import RunningEngine

ENV = {"PATH": "/usr/bin:/bin"}
SECONDS = 20.0


def run(command: str, other: int, heard: list[float]) -> tuple[int, float]:
    """The exit code of a shell's command, and how long that took; `other` is never read."""
    out, err = os.pipe(), os.pipe()
    child = spawn(("/bin/sh", "-c", command), env=ENV, stdout=out[1], stderr=err[1])
    os.close(out[1])
    os.close(err[1])
    begun = time.monotonic()
    try:
        engine = RunningEngine(
            child, out[0], err[0], {other: lambda: heard.append(time.monotonic())}
        )
        code = engine.run(
            lambda *_: None, on_tick=lambda: None, deadline=time.monotonic() + SECONDS
        )
        return code, time.monotonic() - begun
    finally:
        child.kill()
        os.close(out[0])
        os.close(err[0])


def test_one_that_has_hung_up_is_heard_once() -> None:
    other, end = os.pipe()
    os.close(end)
    heard: list[float] = []
    code, _ = run("echo begun; sleep 1.2; exit 3", other, heard)
    assert (code, len(heard)) == (3, 1)
    os.close(other)


def test_one_that_goes_on_talking_hides_no_end() -> None:
    """A program that has ended may have left something behind that holds its pipes open."""
    other, end = os.pipe()
    os.write(end, b"a server that talks without end")
    code, seconds = run("sleep 15 & exit 4", other, [])
    assert code == 4
    assert seconds < SECONDS / 2
    os.close(other)
    os.close(end)
