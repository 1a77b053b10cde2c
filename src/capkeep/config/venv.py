"""An engine in a virtual environment: the directory that rooms must see beside its program."""

import os
from typing import Final

from capkeep.config.mistakes import Collector, Place

FIRST_LINE: Final = 256  # bytes that the kernel reads (execve(2))
SYSTEM: Final = ("/usr/", "/bin/")  # what every room sees
BY_SHELL: Final = (
    b"'''exec' "  # pip's second line where the first would be too long, or has a space
)
MARK: Final = "pyvenv.cfg"


def environment_of(program: str) -> str:
    """The virtual environment that a program which is a script lies in; "" where there is none."""
    interpreter = _interpreter(program)
    folder = os.path.dirname(os.path.dirname(interpreter))
    if interpreter.startswith(SYSTEM) or not os.path.isfile(f"{folder}/{MARK}"):
        return ""
    return folder


def check_environment(program: str, place: Place, collector: Collector) -> None:
    """Tell the collector where a script's Python would be missing in a room."""
    if _lines(program)[1].startswith(BY_SHELL):
        collector.mistake(
            place,
            f"{program} finds its Python through a shell, which no room does for it",
            "make its virtual environment at a short path without spaces, such as /opt/rdiff-backup",
        )
    folder = environment_of(program)
    base = os.path.realpath(_interpreter(program))
    if folder and not base.startswith((*SYSTEM, f"{folder}/")):
        collector.mistake(
            place,
            f"the Python of {folder} is {base}, which no room sees",
            f"make it again with the system's: /usr/bin/python3 -m venv {folder}",
        )


def _interpreter(program: str) -> str:
    """What a script's first line names; "" for a program that is none, or cannot be read."""
    first, _ = _lines(program)
    words = os.fsdecode(first[2:]).split()
    return words[0] if first.startswith(b"#!") and words else ""


def _lines(program: str) -> tuple[bytes, bytes]:
    """The first two, as far as the kernel would read."""
    try:
        with open(program, "rb") as file:
            return file.readline(FIRST_LINE), file.readline(FIRST_LINE)
    except OSError:
        return b"", b""
