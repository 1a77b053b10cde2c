"""Run a short system command and take what it prints."""

import os
import select
import time
from collections.abc import Sequence

from capkeep.kernel.process import spawn

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
OUTPUT_LIMIT = 1 << 20


def run_command(argv: Sequence[str], *, timeout: float) -> tuple[int, str]:
    """Exit code and merged output, at most 1 MiB of it. Raises OSError, TimeoutError."""
    receiving, sending = os.pipe()
    try:
        child = spawn(argv, env=ENVIRONMENT, stdout=sending, stderr=sending)
    except BaseException:
        os.close(receiving)
        raise
    finally:
        os.close(sending)
    deadline = time.monotonic() + timeout
    output = b""
    with open(receiving, "rb", buffering=0) as pipe:
        try:
            while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
                part = pipe.read(65536)
                if not part:
                    break
                output = (output + part)[:OUTPUT_LIMIT]
            return child.wait(max(0, deadline - time.monotonic())), output.decode(errors="replace")
        finally:
            child.kill()
