"""Starts an engine that is written in Python so that what it starts can reach the vault.

Python closes all descriptors but the standard ones in the programs that it starts; a relay needs
the handover (`base.HANDOVER_FD`). Run by the engine's own interpreter, whatever version that is,
with the engine's program as its first argument: nothing of capkeep's is imported here.
"""

import os
import subprocess
import sys

HANDOVER = 3


def inherit() -> None:
    """Let every program that is started from here on have the handover too."""
    start = subprocess.Popen.__init__

    def init(self: object, *words: object, **options: object) -> None:
        start(self, *words, **{"pass_fds": (HANDOVER,), **options})  # type: ignore[call-overload]

    subprocess.Popen.__init__ = init  # type: ignore[method-assign]


def run(program: str, arguments: list[str]) -> None:
    """Become a Python program, as its first line would start it."""
    sys.argv = [program, *arguments]
    sys.path[0] = os.path.dirname(program)
    with open(program, "rb") as file:
        code = compile(file.read(), program, "exec")
    exec(code, {"__name__": "__main__", "__file__": program, "__builtins__": __builtins__})  # noqa: S102


def inherit_if_there() -> None:
    """An engine without a vault has no handover."""
    try:
        os.fstat(HANDOVER)
    except OSError:
        return
    inherit()


if __name__ == "__main__":
    inherit_if_there()
    run(sys.argv[1], sys.argv[2:])
