"""What every kind of dump has: pieces, each a file that a program writes, and what is known of it."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from capkeep.errors import Failure, StepError
from capkeep.kernel.pipes import enlarge
from capkeep.plan.model import Dump
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.pipe import PART_BYTES, Pump

ANSWER_LIMIT: Final = 16 << 20  # bytes of what a server answers to a question
SAID_LINES: Final = 20
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
# What programs say of why they failed, and what that is called here.
SIGNS: Final = (
    ("No space left on device", Failure.NO_SPACE),
    ("Disk quota exceeded", Failure.NO_SPACE),
    ("Access denied", Failure.DENIED),
    ("authentication failed", Failure.DENIED),
    ("permission denied", Failure.DENIED),
    ("NOAUTH", Failure.DENIED),
    ("Permission denied", Failure.DENIED),
    ("connection to server", Failure.UNREACHABLE),
    ("Can't connect", Failure.UNREACHABLE),
    ("Could not connect", Failure.UNREACHABLE),
    ("Lost connection", Failure.UNREACHABLE),
)


class Piece(NamedTuple):
    """One file of a dump."""

    file: str
    what: str  # for people: "database shop"
    argv: tuple[str, ...]
    database: str = ""
    writes_itself: bool = False  # to `file`, rather than to its standard output
    head: bytes = b""  # what it begins with if it is whole, as far as that can be said
    tail: bytes = b""  # what is among its last bytes


class Noted(NamedTuple):
    """What is known of a piece that was found to be whole; kept beside the dump and in the record."""

    file: str
    bytes: int
    database: str = ""
    tables: int = 0
    rows: int = 0  # of tables, entries or keys; 0 where nobody counted
    counts: tuple[
        tuple[str, str, int], ...
    ] = ()  # schema, table and rows, as they are in the piece
    names: tuple[str, ...] = ()  # of roles or users

    def told(self) -> dict[str, object]:
        """What the record has of it: not every table, of which there may be any number."""
        return {k: v for k, v in self._asdict().items() if k not in ("counts", "names")}


class Tools:
    """Runs a kind's programs in the room, each confined and proven, until the dump's time is over."""

    def __init__(self, room: EngineRoom, dump: Dump) -> None:
        self.user = room.brief.room.grant.user
        self.folder = ""  # where the pieces are
        self._room = room
        self._dump = dump
        self._deadline = time.monotonic() + dump.timeout_seconds
        self._proven = False

    def ask(self, what: str, argv: tuple[str, ...]) -> bytes:
        """What a program prints. Raises StepError."""
        answer = bytearray()

        def take(line: bytes) -> None:
            answer.extend(line + b"\n")
            if len(answer) > ANSWER_LIMIT:
                raise StepError(Failure.ENGINE, f"{what}: an answer without end")

        self._run(what, argv, take, -1)
        return bytes(answer)

    def read(self, what: str, argv: tuple[str, ...], take: Callable[[bytes], None]) -> None:
        """Let a program print, and take it part by part. Raises StepError, and what `take` raises."""
        source, inlet = os.pipe()
        enlarge(source)

        def hear() -> None:
            take(os.read(source, PART_BYTES))

        def begin() -> None:
            nonlocal inlet
            os.close(inlet)
            inlet = -1

        self._room.aside[source] = hear
        try:
            self._run(what, argv, lambda _: None, inlet, begin)
            while part := os.read(source, PART_BYTES):
                take(part)
        finally:
            del self._room.aside[source]
            if inlet >= 0:
                os.close(inlet)
            os.close(source)

    def write(self, piece: Piece, output: int) -> None:
        """Let a piece's program write. Raises StepError."""
        self._run(piece.what, piece.argv, lambda _: None, output)

    def stream(self, piece: Piece, target: int) -> Noted:
        """Let a piece's program write into a pipe, and look at both ends of it. Raises StepError."""
        pump = Pump(target)
        try:
            self._run(piece.what, piece.argv, lambda _: None, pump.inlet, pump.begin)
            self._await_end(piece, pump)
        except StepError as error:
            if not pump.broken:
                raise
            raise _untaken(piece) from error
        finally:
            pump.close()
        if pump.broken:
            raise _untaken(piece)
        whole = pump.head.startswith(piece.head) and piece.tail in pump.tail
        if not pump.bytes or not whole:
            why = "what was written is not whole" if pump.bytes else "nothing was written"
            raise StepError(Failure.ENGINE, f"{piece.what}: {why}")
        return Noted(piece.file, pump.bytes, piece.database)

    def _await_end(self, piece: Piece, pump: Pump) -> None:
        """Its program has ended, and a slow repository may be far behind. Raises StepError."""
        try:
            pump.end(self._room.alive, self._deadline)
        except StepError as error:
            late = error.failure is Failure.TIMEOUT
            text = self._late() if late else str(error)
            raise StepError(error.failure, f"{piece.what}: {text}", hint=error.hint) from error

    def _late(self) -> str:
        return f"not done when the {self._dump.timeout_seconds} s for the dump were over"

    def _run(
        self,
        what: str,
        argv: tuple[str, ...],
        take: "Taker",
        output: int,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        said: list[str] = []

        def hear(stream: str, line: bytes) -> None:
            if stream == "stdout":
                take(line)
            elif line.strip():
                said.append(line.decode(errors="replace").strip())
                del said[:-SAID_LINES]

        tell, self._proven = not self._proven, True
        try:
            with self._room.engine(argv, dict(ENVIRONMENT), tell=tell, output=output) as process:
                begin()
                code = process.run(hear, on_tick=self._room.alive, deadline=self._deadline)
        except StepError as error:
            text = str(error)
            if error.failure is Failure.TIMEOUT:
                text = self._late()
            words = error.engine_words or "\n".join(said)
            raise StepError(
                error.failure, f"{what}: {text}", hint=error.hint, engine_words=words
            ) from error
        if code != 0:
            program = argv[0].rpartition("/")[2]
            ended = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
            first = f": {said[0]}" if said else ""
            raise StepError(
                failure_in(said), f"{what}: {program} {ended}{first}", engine_words="\n".join(said)
            )


def _untaken(piece: Piece) -> StepError:
    """The only failure of this name: why it is so, the other room knows."""
    return StepError(Failure.INTERRUPTED, f"{piece.what}: the engine takes no more of it")


class Taker(Protocol):
    """Takes a line of what a program prints."""

    def __call__(self, line: bytes, /) -> None: ...


def failure_in(said: list[str]) -> Failure:
    """What a program's last words are a sign of."""
    text = "\n".join(said)
    return next((failure for sign, failure in SIGNS if sign in text), Failure.ENGINE)


class Kind(Protocol):
    """How one kind of server is dumped. Nothing is kept between two calls."""

    def server(self, dump: Dump, tools: Tools) -> str:
        """The program and its version, and whether the server answers. Raises StepError."""

    def pieces(self, dump: Dump, tools: Tools) -> Iterator[Piece]:
        """One after the other: each may depend on what the one before has written."""

    def check(self, dump: Dump, tools: Tools, piece: Piece, path: str) -> Noted:
        """What is in a piece that is whole. Raises StepError for one that is not."""

    def version(self, dump: Dump) -> tuple[str, ...]:
        """A command that only names its program's version."""


def broken(what: str, why: str) -> StepError:
    """A program was content, and its work is not whole."""
    return StepError(Failure.ENGINE, f"{what}: {why}", hint="the dump before is kept")


def tail(path: str, size: int) -> bytes:
    """The last bytes of a file."""
    with open(path, "rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - size))
        return file.read()


LONGEST: Final = 200  # bytes of a file's name, without what others put after it
DIGEST_DIGITS: Final = 32
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._- ")


def file_name(name: str, suffix: str) -> str:
    """A database's name as a file's: whatever is not plain as %XX, so that no two are the same.

    What would be longer than a file's name may be (255 bytes) ends with a digest of all of it.
    """
    quoted = "".join(c if c in _PLAIN else "".join(f"%{b:02X}" for b in c.encode()) for c in name)
    if quoted.startswith("."):
        quoted = f"%2E{quoted[1:]}"
    if len(quoted) > LONGEST:
        from hashlib import sha256  # rarely needed, and slow to load

        whole = sha256(quoted.encode()).hexdigest()[:DIGEST_DIGITS]
        quoted = f"{quoted[:LONGEST]}-{whole}"
    return quoted + suffix


def chosen(dump: Dump, found: tuple[str, ...]) -> tuple[str, ...]:
    """The databases that are wanted of those that there are. Raises StepError for a missing one."""
    missing = [name for name in dump.databases if name not in found]
    if missing:
        raise StepError(
            Failure.ENGINE,
            f"the server has no database {missing[0]}",
            hint=f"dumps.{dump.name}.databases names it; there are: {', '.join(found)}",
        )
    return tuple(n for n in dump.databases or found if n not in dump.exclude_databases)
