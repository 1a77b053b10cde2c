"""A program of the engine's serves its repository: one for each pair of pipes, which are its own.

The first is started ahead, and gets ready while its client does. No byte of what the two say to each
other passes through here. The program is confined as the vault
is, sees what the vault sees, and may tell of itself on a descriptor: what it has stored, and what
failed behind it.
"""

import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from capkeep.engines import ENGINES
from capkeep.engines.base import Served
from capkeep.errors import Failure, StepError
from capkeep.kernel.pipes import enlarge
from capkeep.kernel.process import Child, spawn
from capkeep.plan.model import Access, Brief
from capkeep.rooms.handover import Ends
from capkeep.rooms.scripts import TOOLS, interpreter_of
from capkeep.rooms.service import (
    PREFLIGHT_SECONDS,
    Action,
    Rates,
    Stored,
    StoreError,
    explain,
    folder,
)
from capkeep.values import Location, ValueMistake, parse_location

REPORT_FD: Final = 3
SERVER_FD: Final = 4
MAX_RUNNING: Final = 8  # at a time: each call of an engine makes one
END_SECONDS: Final = 20  # from the end of what it is told to its own
GRACE_SECONDS: Final = 5
NOISE: Final = 1 << 20  # bytes that locks and notes may take
REPORT_LIMIT: Final = 64 << 10  # bytes of a line


class Line(Protocol):
    """A program's own way to a server."""

    @property
    def fd(self) -> int:
        """For the program; ours is given up when it has been started."""

    @property
    def words_fd(self) -> int:
        """Readable when there is something to hear."""

    def hear(self) -> None: ...
    def give_up(self) -> None:
        """The program has `fd` now, or nobody needs it."""

    def opened(self) -> None:
        """The program has met whom it should meet."""

    def lost(self, text: str) -> StoreError:
        """What has become of it, if the program tells this of it."""

    def end(self, seconds: float) -> None:
        """Let it end by itself for so long."""


class Place(Protocol):
    """Where the repository is."""

    def patience(self) -> float:
        """Seconds that the preflight may take."""

    def preflight(self) -> None:
        """Raises StoreError."""

    def free_space(self) -> int | None:
        """Bytes, where they can be known."""

    def line(self) -> Line | None:
        """For the next program; None where none ever needs any. Raises StoreError."""

    def close(self) -> None: ...


class Directory:
    """On this machine."""

    def __init__(self, path: str) -> None:
        self._path = path

    def patience(self) -> float:
        return PREFLIGHT_SECONDS

    def preflight(self) -> None:
        """The directory must be there, and ours to read and write."""
        path = self._path
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            raise StoreError(
                Failure.NO_REPOSITORY, f"{path} does not exist; is its disk mounted?"
            ) from None
        except OSError as error:
            raise explain(error, path) from error
        if not stat.S_ISDIR(mode):
            raise StoreError(Failure.NO_REPOSITORY, f"{path} is not a directory")
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise StoreError(Failure.DENIED, f"{path} is not readable and writable for us")

    def free_space(self) -> int | None:
        state = os.statvfs(self._path)
        return state.f_bavail * state.f_frsize

    def line(self) -> Line | None:
        return None

    def close(self) -> None:
        """Nothing is open."""


class Running:
    """A program at work, what it tells of itself, and its line if it has one."""

    def __init__(self, child: Child, client: socket.socket, report: int, line: Line | None) -> None:
        self.child = child
        self.client = client  # through which it gets its client's pipes
        self.report = report
        self.line = line
        self.partial = b""


class ProgramService:
    """One session."""

    def __init__(self, brief: Brief) -> None:
        """Starts no program, but a connection if one is needed. Raises StoreError."""
        repository = brief.repository
        assert repository is not None, "a vault has a repository"
        self._brief = brief
        self._engine = ENGINES[repository.engine]
        try:
            self._location = parse_location(repository.location)
            script = self._engine.traits.script
            self._interpreter = interpreter_of(repository.program) if script else ()
        except ValueMistake as mistake:
            raise StoreError(Failure.REFUSED, str(mistake)) from mistake
        except StepError as error:
            raise StoreError(error.failure, str(error)) from error
        self._place = _place(brief, self._location)
        self._program = repository.program
        self._running: list[Running] = []
        self._waiting: Running | None = None  # the one of them that has no client yet
        self._bytes = self._free = 0
        self._snapshots: list[str] = []
        self._failed: Callable[[StoreError], None] = _nobody
        self._making = False

    def patience(self) -> float:
        return self._place.patience()

    def preflight(self) -> None:
        self._place.preflight()

    def begin(self, rates: Rates, failed: Callable[[StoreError], None]) -> None:  # noqa: ARG002
        """The engine keeps the pace: the pipes are its server's own."""
        self._failed = failed
        os.makedirs(folder(self._brief), 0o700, exist_ok=True)
        self._free = self._place.free_space() or 0
        if isinstance(self._place, Directory):
            self._waiting = self._start(None)

    def serve(self, ends: Ends) -> None:
        for fd in ends:
            enlarge(fd)
        try:
            one, self._waiting = self._waiting, None
            if one not in self._running:
                if len(self._running) >= MAX_RUNNING:
                    text = f"the vault did not serve a call of the engine: {MAX_RUNNING} are at work already"
                    raise StoreError(Failure.REFUSED, text)
                one = self._start(self._place.line())
            with suppress(BrokenPipeError):  # it has told why it ended
                socket.send_fds(one.client, [b"p"], ends)
            one.client.close()
        except StoreError as error:
            self._failed(error)
        finally:
            ends.close()

    def _start(self, line: Line | None) -> Running:
        """A program that waits for its client. Raises StoreError."""
        own, repository = folder(self._brief), self._brief.repository
        assert repository is not None, "a vault has a repository"
        command = self._engine.server(
            Served(
                program=self._program,
                interpreter=self._interpreter,
                tools=TOOLS,
                path=self._location.path,
                admin=self._brief.access is Access.ADMIN,
                folder=own,
                report=REPORT_FD,
                owners=repository.owners,
                quota=repository.quota_bytes,
                server=SERVER_FD if line else -1,
                making=self._making,
            )
        )
        assert command is not None, "an engine whose protocol is not spoken here has a server"
        report, told = os.pipe()
        client, given = socket.socketpair()
        try:
            child = spawn(
                command.argv, env=dict(command.env), stdin=given.fileno(),
                keep={REPORT_FD: told, **({SERVER_FD: line.fd} if line else {})},
                cwd=command.cwd or own,
            )  # fmt: skip
        except OSError as error:
            os.close(report)
            client.close()
            if line:
                line.end(0)
            text = f"{command.argv[0]} cannot start: {error}"
            raise StoreError(Failure.ENGINE, text) from error
        finally:
            os.close(told)
            given.close()
            if line:
                line.give_up()
        os.set_blocking(report, False)
        one = Running(child, client, report, line)
        self._running.append(one)
        return one

    def _send_away(self) -> None:
        """Nobody comes any more for the program that waits, or it may do too little for them."""
        if self._waiting in self._running:
            self._end(self._waiting, 0.0)
        self._waiting = None

    def heard(self) -> Mapping[int, Action]:
        words = {one.line.words_fd: one.line.hear for one in self._running if one.line}
        return {**words, **{one.report: partial(self._hear, one) for one in self._running}}

    def _hear(self, one: Running) -> None:
        """What a program tells; the end of it is its own end."""
        try:
            said = os.read(one.report, REPORT_LIMIT)
        except BlockingIOError:
            return
        *lines, one.partial = (one.partial + said).split(b"\n")
        for line in lines:
            self._take(one, line)
        if not said or len(one.partial) > REPORT_LIMIT:
            self._end(one)

    def _take(self, one: Running, line: bytes) -> None:
        """Its word counts for numbers and names of ours: it has read what a hostile engine sent."""
        try:
            said = json.loads(line)
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        stored, failure = said.get("stored"), said.get("failure")
        if re.fullmatch(r"[0-9a-f]{8,64}", name := str(said.get("snapshot") or "")):
            self._snapshots.append(name)
        if type(stored) is int and stored > 0:
            self._bytes += stored
        if isinstance(failure, str) and failure in tuple(Failure):
            self._failed(StoreError(Failure(failure), str(said.get("text", ""))[:1000]))
        if one.line and said.get("open") is True:
            one.line.opened()
        if one.line and "lost" in said:
            self._failed(one.line.lost(str(said["lost"])[:1000]))

    def _end(self, one: Running, seconds: float = END_SECONDS) -> None:
        """Wait for it for so long, and no longer."""
        self._running.remove(one)
        try:
            one.child.wait(seconds)
        except TimeoutError:
            one.child.kill(GRACE_SECONDS)
        os.close(one.report)
        one.client.close()
        if one.line:
            one.line.end(min(seconds, END_SECONDS))

    def tick(self) -> None:
        """See that the disk does not fill up while this session adds to it.

        Whoever removes things must be able to on a full disk, and so must whoever restores.
        """
        floor = self._brief.room.grant.limits.free_space_bytes
        free = self._place.free_space()
        if free is None:
            return
        if self._brief.access is not Access.ADMIN and free < min(floor, self._free - NOISE):
            text = f"less than {floor >> 20} MiB are free where {self._location.path} is"
            self._failed(StoreError(Failure.NO_SPACE, text))

    def let_make(self) -> None:
        self._making = True
        self._send_away()

    def hold(self) -> list[str] | None:
        """Such a program removes at once."""
        return None

    def stop(self) -> None:
        """Their engine has hung up, so they end by themselves; nothing keeps them if they do not."""
        self._send_away()
        deadline = time.monotonic() + END_SECONDS
        for one in list(self._running):
            while one in self._running and time.monotonic() < deadline:
                if one.child.poll() is not None:
                    break
                time.sleep(0.005)
                self._hear(one)
            if one in self._running:
                self._hear(one)
            if one in self._running:
                self._end(one, 0.0)

    def commit(self) -> None:
        """Nothing was held back."""

    def release(self) -> None:
        """Whoever comes next sees which sessions have ended."""

    def stored(self) -> Stored:
        return Stored(self._bytes, tuple(self._snapshots))

    def close(self) -> None:
        for one in list(self._running):
            self._end(one, 0.0)
        self._place.close()


def _place(brief: Brief, location: Location) -> Place:
    if location.scheme == "ssh":
        from capkeep.rooms.remote import SshPlace

        return SshPlace(brief, location)
    return Directory(location.path)


def _nobody(_: StoreError) -> None:
    """Before there is anybody to be told."""
