"""The hook's room: runs one command of the administrator's, with what the configuration grants it.

The command is told which run it is for by its environment: words of a fixed form, nothing secret.
What it prints is kept in the run's log, up to a limit.
"""

import re
import time
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.plan.model import Hook
from capkeep.rooms.base import EngineRoom, option, option_list, serve
from capkeep.rooms.protocol import Message, ProtocolError

ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
}
TOLD: Final = ("moment", "job", "run", "outcome", "failure")
WORD: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
SNAPSHOT: Final = re.compile(r"[a-z0-9_-]{1,32}:[0-9a-f]{8,64}")
SNAPSHOTS: Final = 256
LINES: Final = 500  # of what it prints that are kept
CHARACTERS: Final = 64 << 10  # of all of them together
LAST: Final = 20  # lines of its standard error that are kept beside the step if it fails
SENTENCE: Final = 200  # characters of a line in a sentence


def main() -> int:
    """A hook's whole life."""
    return serve({"run": run, "probe": probe}, seccomp.Profile.RUNNER)


def _own(room: EngineRoom) -> Hook:
    assert room.brief.hook is not None, "a hook's room has a hook"
    return room.brief.hook


def run(room: EngineRoom, request: Message) -> Message:
    """Run the command; it has succeeded if it ends with 0 within its time."""
    what = _own(room)
    said = _Said(room)
    late = time.monotonic() + what.timeout_seconds
    try:
        with room.engine(what.command, environment(request)) as process:
            code = process.run(said.hear, on_tick=room.alive, deadline=late, may_be_quiet=True)
    except StepError as error:
        text = str(error)
        if error.failure is Failure.TIMEOUT:
            text = f"not done when its {what.timeout_seconds} s were over"
        raise StepError(
            error.failure, f"hook {what.name}: {text}", hint=error.hint,
            engine_words=error.engine_words or said.words(),
        ) from error  # fmt: skip
    finally:
        said.end()
    if code != 0:
        program = what.command[0].rpartition("/")[2]
        ended = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
        first = f": {said.errors[0][:SENTENCE]}" if said.errors else ""
        raise StepError(
            Failure.ENGINE, f"hook {what.name}: {program} {ended}{first}", engine_words=said.words()
        )
    return {
        "exit_code": 0, "failure": None, "text": said.last[:SENTENCE], "engine_words": "",
        "summary": {},
    }  # fmt: skip


def environment(request: Message) -> dict[str, str]:
    """All that the command finds in its environment. Raises ProtocolError for odd words."""
    words = {name: option(request, name, default="") for name in TOLD}
    if odd := [name for name, word in words.items() if not WORD.fullmatch(word)]:
        raise ProtocolError(f"option {odd[0]} is no plain word")
    code = option(request, "exit_code", default=-1)
    snapshots = option_list(request, "snapshots")
    if len(snapshots) > SNAPSHOTS or not all(map(SNAPSHOT.fullmatch, snapshots)):
        raise ProtocolError("option snapshots must be REPOSITORY:ID")
    return {
        **ENVIRONMENT,
        "CAPKEEP_HOOK": words["moment"],
        "CAPKEEP_JOB": words["job"],
        "CAPKEEP_RUN": words["run"],
        "CAPKEEP_OUTCOME": words["outcome"],
        "CAPKEEP_FAILURE": words["failure"],
        "CAPKEEP_EXIT_CODE": str(code) if code >= 0 else "",
        "CAPKEEP_SNAPSHOTS": " ".join(snapshots),
    }


class _Said:
    """What a command prints: passed on line by line, in bounded amount."""

    def __init__(self, room: EngineRoom) -> None:
        self.last = ""  # line of its standard output
        self.errors: list[str] = []  # the first lines of its standard error
        self._ending: list[str] = []  # the last of them
        self._room = room
        self._lines = self._characters = self._more = 0

    def hear(self, stream: str, line: bytes) -> None:
        """A line of one of its outputs."""
        text = line.decode(errors="replace").rstrip()
        if not text:
            return
        if stream == "stdout":
            self.last = text
        else:
            self.errors = self.errors or [text]
            self._ending = [*self._ending[1 - LAST :], text[: CHARACTERS // LAST]]
        if self._lines >= LINES or self._characters + len(text) > CHARACTERS:
            self._more += 1
            return
        self._lines += 1
        self._characters += len(text)
        self._room.tell({"event": "message", "text": text})

    def words(self) -> str:
        """Its last words."""
        return "\n".join(self._ending)

    def end(self) -> None:
        """Say how much was not passed on."""
        if self._more:
            more = "1 more line" if self._more == 1 else f"{self._more} more lines"
            self._more = 0
            self._room.tell({"event": "message", "text": f"… and {more}, which are not kept"})


def probe(room: EngineRoom, _request: Message) -> Message:
    """Prove a process with the hook's rights that does nothing: nobody knows what its own would do."""
    deadline = time.monotonic() + _own(room).timeout_seconds
    with room.engine(("/usr/bin/true",), dict(ENVIRONMENT)) as process:
        code = process.run(lambda *_: None, on_tick=room.alive, deadline=deadline)
    failure = None if code == 0 else Failure.ENGINE
    return {
        "exit_code": code, "failure": failure, "text": "", "hint": "", "engine_words": "",
        "summary": {},
    }  # fmt: skip
