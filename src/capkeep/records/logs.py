"""The full log of each run: every message as it came, one JSON object a line, with its time.

Progress is not logged: it says nothing afterwards. What is written reaches the file at once, so a
killed runner loses nothing of it; a torn last line (a full disk) is skipped by the reader.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from capkeep.records.locks import open_regular

LIMIT: Final = 64 << 20  # bytes of one log
KEEP_LOGS: Final = 1_000
KEEP_BYTES: Final = 1 << 30  # of all logs together
LINE_LIMIT: Final = 4 << 20  # bytes that a reader takes for one line
ENDING: Final = ".jsonl"
_LASTING: Final = ("run", "step", "proof", "result", "step-end", "end")  # logged beyond the limit
_LASTING_LIMIT: Final = 16 << 20  # bytes more

LogLine = dict[str, object]


class LogWriter:
    """Appends to a run's log. A log that cannot be written is given up, never the run.

    `error` says then what went wrong.
    """

    def __init__(self, directory: str, run_id: str, limit: int = LIMIT) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._directory = directory
        self._limit = limit
        self._size = 0
        self._full = False
        self._fd = -1
        self.error = ""
        try:
            self._fd = os.open(log_path(directory, run_id), flags, 0o640)
            os.fchmod(self._fd, 0o640)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            self._give_up(error)

    def __enter__(self) -> "LogWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, message: LogLine) -> None:
        """Write one message with the time of now."""
        event = message.get("event")
        if event == "progress" or self.error:
            return
        line = _encode(message)
        room = self._limit + (_LASTING_LIMIT if event in _LASTING else 0)
        if self._size + len(line) <= room:
            self._put(line)
        elif not self._full:
            self._full = True
            text = f"the log has reached its limit of {self._limit} bytes; the rest is left out"
            self._put(_encode({"event": "log-limit", "text": text}))

    def _put(self, line: bytes) -> None:
        try:
            while line:
                written = os.write(self._fd, line)
                self._size += written
                line = line[written:]
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = f"the log cannot be written: {error.strerror}"

    def close(self) -> None:
        """End the log, and remove the oldest logs that are too many; safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(OSError):
                prune(self._directory)


def _encode(message: LogLine) -> bytes:
    stamped = {"time": round(time.time(), 3), **message}
    return json.dumps(stamped, separators=(",", ":")).encode() + b"\n"


def log_path(directory: str, run_id: str) -> str:
    """Where a run's log is."""
    return f"{directory}/{run_id}{ENDING}"


def read_log(directory: str, run_id: str) -> Iterator[LogLine]:
    """A run's messages; what is longer than a line can be is skipped. Raises OSError."""
    with open(open_regular(log_path(directory, run_id)), "rb") as file:
        while line := file.readline(LINE_LIMIT):
            with suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message


def prune(directory: str, keep_logs: int = KEEP_LOGS, keep_bytes: int = KEEP_BYTES) -> None:
    """Remove the oldest logs beyond so many, or so many bytes together; never the newest.

    Raises OSError when the directory cannot be listed.
    """
    names = sorted((n for n in os.listdir(directory) if n.endswith(ENDING)), reverse=True)
    total = 0
    for count, name in enumerate(names):
        path = f"{directory}/{name}"
        with suppress(OSError):  # another runner may prune as well
            total += os.stat(path).st_size
            if count and (count >= keep_logs or total > keep_bytes):
                os.unlink(path)
