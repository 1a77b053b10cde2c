"""The end of a program of ours."""

import os
import sys

TYPE_CHECKING = False  # `--version` starts before typing has loaded
if TYPE_CHECKING:
    from typing import NoReturn


def leave(code: int) -> "NoReturn":
    """End this program once its work is done, without taking the interpreter apart first.

    That costs 3 to 6 ms in which nothing happens that the kernel does not do anyway; each program
    here closes what it owns before. Raises OSError if standard output cannot take its last words.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
