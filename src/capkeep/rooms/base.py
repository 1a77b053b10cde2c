"""What every room with an engine does: prove itself, connect its wire, run the engine, report.

The room's program trusts neither its caller (whose requests come from a fixed vocabulary) nor the
engine (which is confined further than the room before it starts, and whose output is only read).
"""

import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from capkeep.errors import CapkeepError, Failure, StepError
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.facts import Facts, read_facts
from capkeep.kernel.process import Child, hide_memory, spawn
from capkeep.plan import codec
from capkeep.plan.model import Brief
from capkeep.rooms.brief import read_brief
from capkeep.rooms.engine import RunningEngine, enlarge
from capkeep.rooms.proof import weaker
from capkeep.rooms.protocol import Channel, Message, ProtocolError

CALLER_FD: Final = 0
WIRE_FD: Final = 4
REQUEST_SECONDS: Final = 30
VAULT_START_SECONDS: Final = 60
VAULT_END_SECONDS: Final = 120
TEXT_LIMIT: Final = 1 << 14  # characters; a path has at most 4096 bytes (PATH_MAX)

OptionT = TypeVar("OptionT", str, int, bool)


class Stopped(CapkeepError):
    """The caller closed its socket: whatever is done for it ends."""


def option(request: Message, name: str, default: OptionT) -> OptionT:
    """A request's option of the default's type. Raises ProtocolError for any other type."""
    options = request.get("options", {})
    value = options.get(name, default) if isinstance(options, dict) else None
    if type(value) is not type(default):
        raise ProtocolError(f"option {name} must be {type(default).__name__}")
    return value


def option_list(request: Message, name: str) -> tuple[str, ...]:
    """A request's option that is a list of strings; empty if absent. Raises ProtocolError."""
    options = request.get("options", {})
    value = options.get(name, []) if isinstance(options, dict) else None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ProtocolError(f"option {name} must be a list of strings")
    return tuple(value)


def _clipped(value: object) -> object:
    """What an engine says may be as long as it likes; what is passed on is what people read."""
    if isinstance(value, str) and len(value) > TEXT_LIMIT:
        return value[:TEXT_LIMIT] + "…"
    return value


class EngineRoom:
    """A room between its caller, its engine and its vault. Owns all three on every way out."""

    def __init__(self, brief: Brief, *, profile: seccomp.Profile) -> None:
        self.brief = brief
        self.caller = Channel(socket.socket(fileno=CALLER_FD))
        self.wire: Channel | None = None
        self._profile = profile
        self._listener: socket.socket | None = None
        self._vault_gone = False

    def close(self) -> None:
        """Ends the conversation with the caller and the vault."""
        for end in (self._listener, self.wire, self.caller):
            if end is not None:
                end.close()

    # -- proof

    def prove(self) -> None:
        """Tell the caller what the kernel says of this room. Raises StepError if it is weak."""
        self._tell_proof("room", self._proven("room", None))

    def _tell_proof(self, process: str, facts: Facts) -> None:
        self.tell({
            "event": "proof", "process": process, "facts": codec.to_plain(facts), "weaker": [],
        })  # fmt: skip

    def _proven(self, process: str, pid: int | None) -> Facts:
        """A process's kernel facts. Raises StepError, after telling them, if they are weak."""
        facts = read_facts(pid, self.brief.host_namespaces)
        found = weaker(facts, self.brief.room, self.brief.mode, process)
        if found:
            self.tell({
                "event": "proof", "process": process, "facts": codec.to_plain(facts),
                "weaker": list(found),
            })  # fmt: skip
            raise StepError(
                Failure.WEAKENED,
                f"{self.brief.room.name} ({process}) is weaker than its grant: {'; '.join(found)}",
                hint="nothing was started; `capkeep apply` renews the rooms, and the kernel or a"
                " container around this host may be what takes the protection away",
            )
        return facts

    # -- caller

    def tell(self, message: Message) -> None:
        """Say something to the caller, no text of it at great length. Raises Stopped if it is gone."""
        try:
            self.caller.send({k: _clipped(v) for k, v in message.items()})
        except OSError as error:
            raise Stopped("the caller is gone") from error

    def request(self) -> Message:
        """The caller's one request. Raises ProtocolError, Stopped, TimeoutError."""
        self.caller.sock.settimeout(REQUEST_SECONDS)
        message = self.caller.receive()
        self.caller.sock.settimeout(None)
        if message is None:
            raise Stopped("the caller asked for nothing")
        return message

    # -- wire

    def open_wire(self) -> None:
        """Make the listener inside this room's own network and hand it to the vault."""
        if self.brief.room.wire is None:
            return
        self.wire = Channel(socket.socket(fileno=WIRE_FD))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        socket.send_fds(self.wire.sock, [b'{"listen":true}\n'], [self._listener.fileno()])

    def repository_url(self) -> str:
        """What the engine is told: its end of the wire, or the location itself."""
        assert self.brief.repository is not None
        if self._listener is None:
            return self.brief.repository.location
        return f"rest:http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def await_vault(self) -> None:
        """Wait until the vault has proven itself, and pass the proof on. Raises StepError."""
        if self.wire is None:
            return
        self.wire.sock.settimeout(VAULT_START_SECONDS)
        try:
            while (message := self.wire.receive()) is not None:
                self.raise_vault_failure(message)
                if message.get("event") == "proof":
                    self._pass_vault_proof(message)
                    return
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"the vault did not start: {error}") from error
        raise StepError(Failure.INTERRUPTED, "the vault ended before it had started")

    def _pass_vault_proof(self, message: Message) -> None:
        self.tell({**message, "process": "vault"})
        found = message.get("weaker")
        if found:
            raise StepError(Failure.WEAKENED, f"the vault is weaker than its grant: {found}")

    def raise_vault_failure(self, message: Message) -> None:
        """Raises StepError if the vault says that the place behind it failed."""
        if message.get("event") == "failure":
            raise StepError(Failure(str(message.get("failure"))), str(message.get("text", "")))

    def finish_wire(self) -> int:
        """Tell the vault that the engine is done; returns the bytes it stored, 0 if unknown."""
        if self.wire is None or self._vault_gone:
            return 0
        self.wire.sock.settimeout(VAULT_END_SECONDS)
        try:
            self.wire.sock.shutdown(socket.SHUT_WR)
            for message in self.wire:
                if message.get("event") == "stored":
                    stored = message.get("bytes")
                    return stored if isinstance(stored, int) else 0
        except (OSError, ProtocolError):
            pass  # the engine has ended; what it said of its own success counts
        return 0

    # -- engine

    def writable(self) -> tuple[str, ...]:
        """Where the engine may write."""
        return self.brief.room.grant.write

    def _confine(self, ports: Sequence[int]) -> Callable[[], None]:
        writable = self.writable()
        profile = self._profile

        def confine() -> None:
            landlock.restrict(writable, ports)
            seccomp.install(profile)

        return confine

    @contextmanager
    def engine(
        self, argv: Sequence[str], env: dict[str, str], *, tell: bool = True
    ) -> Iterator[RunningEngine]:
        """A confined, proven, running engine; killed on the way out if it still runs.

        Every engine is proven; `tell` says whether the caller hears of it when all is well.
        """
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        enlarge(out_read)
        ports = [self._listener.getsockname()[1]] if self._listener else []
        confine = None if self.brief.room.grant.network else self._confine(ports)
        try:
            child = spawn(
                argv, env=env, stdout=out_write, stderr=err_write, hold=True,
                prepare=confine or self._confine_with_network,
            )  # fmt: skip
        except OSError as error:
            os.close(out_read)
            os.close(err_read)
            raise StepError(Failure.ENGINE, f"the engine cannot be started: {error}") from error
        finally:
            os.close(out_write)
            os.close(err_write)
        try:
            held = self._proven("engine", child.pid)
            child.release()
            running = self._running(child, held)
            if tell:
                self._tell_proof("engine", running)
            yield RunningEngine(child, out_read, err_read, self._heard())
        except OSError as error:
            raise StepError(Failure.ENGINE, f"the engine cannot be started: {error}") from error
        finally:
            child.kill()
            os.close(out_read)
            os.close(err_read)

    def _running(self, child: Child, held: Facts) -> Facts:
        """The engine's facts now that it is the engine; those from before if it has ended already.

        Only now may we, its parent, also read its namespaces: until its exec it was a copy of this
        program, whose memory is hidden (PR_SET_DUMPABLE).
        """
        try:
            return self._proven("engine", child.pid)
        except OSError:
            return held

    def _heard(self) -> dict[int, Callable[[], None]]:
        """Whom to listen to while an engine runs."""
        heard = {self.caller.fileno(): self._hear_caller}
        return heard if self.wire is None else heard | {self.wire.fileno(): self._hear_vault}

    def _hear_caller(self) -> None:
        """After its request a caller can only leave."""
        if not self.caller.sock.recv(4096):
            raise Stopped("the caller is gone")

    def _hear_vault(self) -> None:
        """A vault that stops inside a message must not stop us: what is there now is heard."""
        wire = self.wire
        assert wire is not None
        wire.sock.setblocking(False)
        try:
            while (message := wire.receive()) is not None:
                self.raise_vault_failure(message)
                if not wire.pending():
                    return
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            pass
        raise StepError(Failure.INTERRUPTED, "the vault ended while the engine was running")

    def alive(self) -> None:
        """Once a second of an engine: tell that it goes on. Raises StepError without space."""
        floor = self.brief.room.grant.limits.free_space_bytes
        for path in self.writable():
            state = os.statvfs(path)
            if state.f_bavail * state.f_frsize < floor:
                raise StepError(
                    Failure.NO_SPACE,
                    f"less than {floor >> 20} MiB are free where {path} is",
                    hint="make room there, or lower free-space in [limits]",
                )
        self.tell({"event": "alive"})

    def _confine_with_network(self) -> None:
        """An engine that was explicitly given the network keeps sockets, and nothing else."""
        landlock.restrict(self.writable(), None)
        seccomp.install(seccomp.Profile.VAULT)


def serve(
    actions: Mapping[str, Callable[[EngineRoom, Message], Message]], profile: seccomp.Profile
) -> int:
    """A room's whole life: brief, proof, wire, one request, one result."""
    hide_memory()
    room = EngineRoom(read_brief(), profile=profile)
    try:
        room.open_wire()
        seccomp.install(seccomp.Profile.ROOM)
        result = _answer(room, actions)
        room.tell({"event": "result", **result})
    except Stopped:
        return 1
    finally:
        room.close()
    return 0


def _answer(
    room: EngineRoom, actions: Mapping[str, Callable[[EngineRoom, Message], Message]]
) -> Message:
    """The result of the one request: every failure becomes a result with a name."""
    try:
        room.prove()
        request = room.request()
        action = actions.get(str(request.get("action")))
        if action is None:
            raise StepError(Failure.REFUSED, "this room does not know that request")
        return action(room, request)
    except StepError as error:
        return failed(error.failure, str(error), error.hint, error.engine_words)
    except ProtocolError as error:
        return failed(Failure.REFUSED, f"the request was refused: {error}")
    except (OSError, ValueError) as error:
        # Such as a cache that cannot be written, or output that no version of the engine prints.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f" (it writes to {', '.join(room.writable())})" if full else ""
        failure = Failure.NO_SPACE if full else Failure.ENGINE
        return failed(failure, f"{room.brief.room.name}: {error}{where}")


def failed(
    failure: Failure, text: str, hint: str = "", engine_words: str = "", **more: object
) -> Message:
    """The result of a step that failed."""
    return {
        "exit_code": None, "failure": failure, "text": text, "hint": hint,
        "engine_words": engine_words, "summary": {}, **more,
    }  # fmt: skip
