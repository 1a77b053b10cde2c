"""How a program that is a script is started by hand: by the interpreter that it names."""

import os
from typing import Final

from capkeep.errors import Failure, StepError

TOOLS: Final = f"{os.path.dirname(os.path.dirname(__file__))}/guest"  # ours, for such interpreters
_LINE: Final = 256  # bytes of the first line that the kernel reads (execve(2))


def interpreter_of(program: str) -> tuple[str, ...]:
    """The words in a script's first line. Raises StepError for a program that is no script."""
    try:
        with open(program, "rb") as file:
            first = file.readline(_LINE)
    except OSError as error:
        text = f"the engine {program} cannot be read: {error.strerror}"
        raise StepError(Failure.ENGINE, text) from error
    words = first[2:].decode(errors="surrogateescape").split()
    if not first.startswith(b"#!") or not words or not words[0].startswith("/"):
        raise StepError(
            Failure.REFUSED,
            f"{program} is not a script: an engine that is one whole binary cannot be guarded",
            hint="install the distribution's package, or the engine in a virtual environment",
        )
    return tuple(words)
