"""A place in a drill's scratch where a server is for a moment, as somebody who is nobody else.

What a dump holds may be anybody's: whoever owns a database can have the server run his programs when
it is loaded. So the server, and whoever asks it, is a user of the room's own namespace that has nothing:
no capability, no file but those of this place, no network, no wire, none of the room's secrets.
Where there is no such namespace, as in user mode, no server is started.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from capkeep.errors import Failure, StepError
from capkeep.kernel import landlock
from capkeep.kernel.ownership import end_all
from capkeep.plan.model import Mode
from capkeep.rooms.base import EngineRoom, Lesser
from capkeep.rooms.calls import remove_tree
from capkeep.rooms.engine import RunningEngine

ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "LC_MESSAGES": "C",
    "HOME": "/nonexistent",
}  # fmt: skip
NOBODYS: Final = range(33_000, 60_000)  # ids that Debian and systemd give to nobody
SCOPED: Final = 6  # the first Landlock that keeps a process from abstract sockets of others
ANSWER_LIMIT: Final = 64 << 20  # bytes
SAID_LINES: Final = 20
LINE: Final = 300  # characters of one that is told
START_SECONDS: Final = 120.0


class Unproven(Exception):
    """Why a dump can be neither right nor wrong here."""


class Tally(NamedTuple):
    """What was loaded and found as it was noted."""

    databases: int = 0
    tables: int = 0
    rows: int = 0


class Said(NamedTuple):
    """What became of a program."""

    code: int
    answer: bytes
    errors: tuple[str, ...]

    @property
    def own_words(self) -> str:
        """Its first complaint that is an error, on one line; of programs that have met no dump.

        What a server says when it has is chosen by whoever wrote the dump (trials/causes.py).
        """
        answer = self.answer[: ANSWER_LIMIT >> 10].decode(errors="replace").split("\n")
        lines = [line for line in (*self.errors, *answer) if line.strip()]
        wrong = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
        return (wrong or lines or [f"exit code {self.code}"])[0][:LINE]


class Ground:
    """Use as a context: whoever was started is gone at its end, and all that they have left."""

    def __init__(self, room: EngineRoom, scratch: str, until: float) -> None:
        """`scratch` is the drill's, with its parent the room's own; `until` of time.monotonic()."""
        self.folder = f"{scratch}/server"
        self.until = until
        self.room = room
        self.unproven: list[tuple[str, str]] = []  # files of the dump, and why
        self._scratch = scratch
        self._above = (os.path.dirname(scratch), scratch)
        self._own = (os.geteuid(), os.getegid())
        self._somebody = (-1, -1)  # nobody yet
        self._server: RunningEngine | None = None
        self._said: list[str] = []

    def __enter__(self) -> "Ground":
        """Raises Unproven where nobody else is to be had, OSError."""
        self._somebody = self._nobody_else()
        os.mkdir(self.folder, 0o700)
        for path in self._above:
            os.chown(path, -1, self._somebody[1])
            os.chmod(path, 0o710)  # noqa: S103 - nobody on this host has that group
        return self

    def __exit__(self, *_: object) -> None:
        end_all(*self._somebody)
        close_up(self._scratch)
        remove_tree(self.folder)

    def _nobody_else(self) -> tuple[int, int]:
        grant = self.room.brief.room.grant
        if self.room.brief.mode is Mode.USER:
            raise Unproven("with --user there is nobody else whom a server could run as, and what a dump"
                           " holds may run programs: they would be you")  # fmt: skip
        if grant.network and landlock.abi() < SCOPED:
            raise Unproven("the engine here has the network, where this kernel could not keep a server"
                           " from the host's abstract sockets")  # fmt: skip
        if "CAP_SETUID" in grant.capabilities and grant.subordinate[1] > NOBODYS.stop:
            while True:
                somebody = NOBODYS[int.from_bytes(os.urandom(4), "big") % len(NOBODYS)]
                if self._own[0] not in (somebody, somebody + 1):
                    return somebody, somebody
        raise Unproven("there is nobody whom a server could run as: this host gives the prover no user"
                       " namespace with ids of its own")  # fmt: skip

    def has(self, uid: int) -> Lesser:
        """Make the place a user's, and that user's only."""
        gid = self._somebody[1]
        for folder, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                os.chown(f"{folder}/{name}", uid, gid, follow_symlinks=False)
        os.chown(self.folder, uid, gid)
        return Lesser(uid, gid, self.folder)

    @property
    def somebody(self) -> int:
        """The user that servers run as."""
        return self._somebody[0]

    # -- programs

    def run(
        self,
        argv: Sequence[str],
        *,
        source: int = -1,
        uid: int = -1,
    ) -> Said:
        """Run a program to its end, standing in the place. Raises StepError, Stopped."""
        answer, errors = bytearray(), list[str]()

        def hear(stream: str, line: bytes) -> None:
            if stream == "stdout":
                answer.extend(line + b"\n")
                if len(answer) > ANSWER_LIMIT:
                    raise StepError(Failure.ENGINE, f"{argv[0]}: an answer without end")
            elif line.strip() and len(errors) < SAID_LINES:
                errors.append(line.decode(errors="replace").strip())

        lesser = Lesser(self.somebody if uid < 0 else uid, self._somebody[1], self.folder)
        with self.room.engine(
            argv, ENVIRONMENT, tell=False, source=source, cwd=self.folder, lesser=lesser
        ) as process:
            code = process.run(hear, on_tick=self.room.alive, deadline=self.until)
        return Said(code, bytes(answer), tuple(errors))

    def ask(self, argv: Sequence[str], question: str) -> Said:
        """Run a program with a question as its input."""
        path = f"{self._scratch}/question"
        with open(path, "wb+") as file:
            os.unlink(path)
            file.write(question.encode("utf-8", "surrogateescape"))
            file.seek(0)
            return self.run(argv, source=file.fileno())

    @contextmanager
    def server(self, argv: Sequence[str], asks: Sequence[str]) -> Iterator[None]:
        """A server that runs and answers what `asks` does. Raises Unproven where it does not start."""
        lesser = self.has(self.somebody)
        with self.room.engine(argv, ENVIRONMENT, cwd=self.folder, lesser=lesser) as process:
            self._listen(process)
            try:
                self._await(process, asks)
                yield
            finally:
                self.room.aside = {}

    def _listen(self, process: RunningEngine) -> None:
        """Read what the server says, whatever else runs: it would wait for that."""
        said = self._said = []

        def take(_: str, line: bytes) -> None:
            if len(said) < SAID_LINES:
                said.append(line.decode(errors="replace").strip())

        def hear(fd: int) -> None:
            if fd in process.open_fds():
                process.feed(fd, take)

        for fd in process.open_fds():
            self.room.aside[fd] = lambda fd=fd: hear(fd)  # type: ignore[misc]

    def _await(self, process: RunningEngine, asks: Sequence[str]) -> None:
        import time

        until = min(self.until, time.monotonic() + START_SECONDS)
        while self.run(asks).code:
            if process.has_left() or time.monotonic() > until:
                # No dump was loaded yet: these are the server's own words.
                said = f": {self._said[-1][:LINE]}" if self._said else ""
                raise Unproven(f"the server that was started for it does not answer{said}")
            time.sleep(0.1)


def close_up(scratch: str) -> None:
    """Let nobody pass through a drill's scratch, and its parent, any more."""
    for path in (scratch, os.path.dirname(scratch)):
        try:
            os.chown(path, -1, os.getegid())
            os.chmod(path, 0o700)
        except FileNotFoundError:
            continue
