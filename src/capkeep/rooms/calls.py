"""One engine call in a room, from the brief to its result."""

import fcntl
import os
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from itertools import count

from capkeep.engines import ENGINES
from capkeep.engines.base import (
    Abilities,
    Call,
    Command,
    Diagnosis,
    Engine,
    LineReader,
    Said,
    Unreadable,
    Warned,
)
from capkeep.errors import Failure, StepError
from capkeep.plan.model import Repository, closed
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.engine import RunningEngine
from capkeep.rooms.protocol import Message
from capkeep.rooms.scripts import TOOLS, interpreter_of

OnLine = Callable[[str, bytes], None]
HOUR = 3600  # seconds
VERSION_SECONDS = 30
OUTPUT_LIMIT = 64 << 20  # bytes; restic's lists of snapshots and of a directory are one line
LAST_WORDS = 4096  # bytes
NOTE_LIMIT = 64 << 10
SCRATCHES = 256
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class TooMuch(StepError):
    """The engine printed more than can be taken in."""


class Caller:
    """The engine of a room's repository, ready to be called; makes the room's cache usable."""

    def __init__(self, room: EngineRoom, scratch: str = "tmp", *, unlocked: bool = False) -> None:
        """`scratch`: its temporary directory, of this caller alone; `unlocked` as in `Call`."""
        repository = room.brief.repository
        assert repository is not None, "a room with an engine has a repository"
        self.room = room
        self.engine: Engine = ENGINES[repository.engine]
        cache = room.brief.room.grant.write[0]
        self.scratch = f"{cache}/{scratch}"
        remove_tree(self.scratch)  # what a killed run left behind
        os.mkdir(self.scratch, 0o700)
        self.call = Call(
            program=repository.program,
            interpreter=interpreter_of(repository.program) if self.engine.traits.script else (),
            tools=TOOLS,
            repository=repository.location,
            relay=room.relay(),
            cache_dir=cache,
            tmp_dir=self.scratch,
            password=dict(room.brief.secrets).get("password", ""),
            unlocked=unlocked,
            standing=room.standing,
        )
        if self.engine.traits.password and not self.call.password:
            raise _no_password(room, repository)
        job = room.brief.job
        by_vault = self.engine.traits.paced_by_vault and not room.brief.room.grant.network
        if job and not by_vault:
            self.call = self.call._replace(
                upload_bytes=job.resources.upload_bytes,
                download_bytes=job.resources.download_bytes,
            )

    def run(
        self,
        command: Command,
        on_line: OnLine,
        seconds: float,
        *,
        tell: bool = True,
        given: int = -1,
        source: int = -1,
    ) -> int:
        """Run a command of the engine to its end; returns its exit code."""
        with self.started(command, tell=tell, given=given, source=source) as process:
            return process.run(
                on_line, on_tick=self.room.alive, deadline=time.monotonic() + seconds
            )

    def started(
        self,
        command: Command,
        *,
        tell: bool = True,
        given: int = -1,
        source: int = -1,
        output: int = -1,
    ) -> AbstractContextManager[RunningEngine]:
        """A command of the engine, running; as `EngineRoom.engine` starts it."""
        env = dict(command.env)
        if self.room.brief.room.grant.network:
            # Without a vault the engine itself logs in: with every secret but the password.
            env |= {k: v for k, v in self.room.brief.secrets if k != "password"}
        return self.room.engine(
            command.argv, env, tell=tell, given=given, source=source, output=output,
            cwd=command.cwd,
        )  # fmt: skip

    def output(
        self, command: Command, seconds: float, *, tell: bool = True, given: int = -1
    ) -> bytes:
        """The whole standard output of a short command, without its last line's end.

        Raises StepError with the engine's words, or as `TooMuch` where it prints without end.
        """
        said = bytearray()
        tail: list[str] = []

        def take(stream: str, part: bytes) -> None:
            if stream == "stdout":
                said.extend(part)
                if len(said) > OUTPUT_LIMIT:
                    text = f"the engine printed more than {OUTPUT_LIMIT >> 20} MiB at once"
                    raise TooMuch(Failure.ENGINE, text)
            elif len(tail) < 40:
                tail.append(part.decode(errors="replace"))

        with self.started(command, tell=tell, given=given) as process:
            process.take_parts()
            until = time.monotonic() + seconds
            code = process.run(take, on_tick=self.room.alive, deadline=until)
        last = said[-LAST_WORDS:].splitlines()[-3:] if code else ()
        self.raise_for(code, (*tail, *(line.decode(errors="replace") for line in last)))
        return bytes(said).removesuffix(b"\n")

    def raise_for(self, code: int, tail: tuple[str, ...]) -> None:
        """Raises StepError if an engine's end means failure."""
        found = self.engine.diagnose(code, tail)
        if found:
            raise step_error(found)

    def version(self) -> bytes:
        """What the engine says of its version, remembered for as long as the program is the same."""
        if known := self.remembered():
            return known
        program = self.program()
        said = self.output(self.engine.version(self.call), VERSION_SECONDS, tell=False)
        self.remember(program, said)
        return said

    def remember(self, program: bytes, said: bytes) -> None:
        """Note what `program`, as it was before it was started, has said of its version."""
        write_note(self._noted(), program + said)

    def remembered(self) -> bytes:
        """What it said of its version when it was last asked; b"" if the program is another one now."""
        first, _, rest = read_note(self._noted()).partition(b"\n")
        return rest if first + b"\n" == self.program() else b""

    def _noted(self) -> str:
        return f"{self.call.cache_dir}/version"

    def program(self) -> bytes:
        """Which file the program is now. Raises OSError."""
        path = self.call.program
        state = os.stat(path)
        return f"{path} {state.st_ino} {state.st_size} {state.st_mtime_ns}\n".encode()

    def abilities(self) -> Abilities:
        """What its version can do. Raises StepError."""
        return self.engine.abilities(self.version())

    def name(self) -> str:
        """Such as "restic 0.18.0"."""
        numbers = self.abilities().version
        return f"{self.engine.name} {'.'.join(map(str, numbers))}"


def _no_password(room: EngineRoom, repository: Repository) -> StepError:
    """Nobody who asks has brought one along, either."""
    if room.brief.pulled:
        file = f"{room.brief.places.secrets}/pulled-by-{repository.name}"
        table = f"[repositories.{repository.name}]"
        text = "this host has no password to seal its backups with, and its server gives none"
        hint = f'write password = {{ file = "{file}" }} in {table}, then capkeep apply'
    else:
        text, hint = closed(repository.name)
    return StepError(Failure.REFUSED, text, hint=hint)


def own_scratch(folder: str) -> tuple[int, str]:
    """A handle, and the name of a scratch that nobody else has for as long as that is open."""
    for number in range(SCRATCHES):
        name = f"tmp-{number}"
        fd = os.open(f"{folder}/{name}.lock", _LOCK, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
        else:
            return fd, name
    raise StepError(Failure.LOCKED, "too many ask for files at the same time")


def remove_tree(path: str) -> None:
    """Remove whatever an engine left there, however deep and whatever its modes; links unfollowed.

    What a directory holds is moved up first, so that no path grows too long. Importing `shutil`,
    which gives up on deep trees besides, would cost 3 ms.
    """
    if not _opened_up(path):
        with suppress(FileNotFoundError):
            os.unlink(path)
        return
    numbers = count()
    prefix = f"{path}/{os.urandom(8).hex()}-"  # no name that the engine could have taken
    while names := os.listdir(path):
        for place in (f"{path}/{name}" for name in names):
            if not _opened_up(place):
                os.unlink(place)
                continue
            for below in (f"{place}/{name}" for name in os.listdir(place)):
                _opened_up(below)  # moving a directory writes to it: its ".." changes
                os.rename(below, f"{prefix}{next(numbers)}")
            os.rmdir(place)
    os.rmdir(path)


def _opened_up(path: str) -> bool:
    """Whether it is a directory, which may be changed from now on."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    os.chmod(path, 0o700)
    return True


def read_note(path: str, limit: int = NOTE_LIMIT) -> bytes:
    """What a file of our own in the cache says; b"" if it is not there, or is no file any more."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, limit) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def write_note(path: str, text: bytes) -> None:
    """Have a file of our own in the cache say that."""
    remove_tree(path)  # the engine may write here too, and have put anything in its place
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(text)


def step_error(found: Diagnosis) -> StepError:
    """A diagnosis as the error that a room's result is made from."""
    return StepError(found.failure, found.sentence, engine_words=found.words)


def pass_on(room: EngineRoom, reader: LineReader) -> OnLine:
    """A line handler that tells the caller of everything unreadable, warned or said."""

    def take(stream: str, line: bytes) -> None:
        for event in reader.feed(stream, line):
            if isinstance(event, Unreadable):
                room.tell({"event": "unreadable", **event._asdict()})
            elif isinstance(event, Warned):
                room.tell({"event": "warning", "text": event.text})
            elif isinstance(event, Said):
                room.tell({"event": "message", "text": event.text})

    return take


def make_unless_there(caller: Caller, make: Callable[[], object]) -> bool:
    """Whether it was made; a repository that is there, and opens, is left alone. Raises StepError."""
    try:
        caller.output(caller.engine.snapshots(caller.call), HOUR)
    except StepError as error:
        if error.failure is not Failure.NO_REPOSITORY:
            raise
        make()
        return True
    return False


def init(room: EngineRoom, then: Callable[[Caller], None] = lambda _: None) -> Message:
    """Make the repository, and do what comes then; one that is there, and opens, is left alone."""
    caller = Caller(room)
    room.await_vault()
    new = make_unless_there(caller, lambda: caller.output(caller.engine.init(caller.call), HOUR))
    if new:
        then(caller)
    return done(caller, "the repository was made" if new else "the repository was there already")


def done(caller: Caller, text: str, summary: Message | None = None, **more: object) -> Message:
    """The result of a step that succeeded; ends the wire, so no engine can be called after."""
    engine = more.pop("engine", None) or caller.name()
    return {
        "exit_code": 0, "failure": None, "text": text, "engine": engine, "engine_words": "",
        "summary": summary or {}, **caller.room.finish_wire(), **more,
    }  # fmt: skip
