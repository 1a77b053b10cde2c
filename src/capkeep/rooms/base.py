"""What every room with an engine does: prove itself, connect its wire, run the engine, report.

The room's program trusts neither its caller (whose requests come from a fixed vocabulary) nor the
engine (which is confined further than the room before it starts, and whose output is only read).
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

from capkeep.errors import CapkeepError, Failure, StepError
from capkeep.kernel import landlock, seccomp, trial
from capkeep.kernel.facts import Facts, read_facts
from capkeep.kernel.pipes import enlarge
from capkeep.kernel.priority import limit_memory
from capkeep.kernel.process import Child, hide_memory, interpreter, spawn
from capkeep.plan import codec
from capkeep.plan.model import Brief, Starter
from capkeep.rooms.brief import read_brief
from capkeep.rooms.engine import RunningEngine
from capkeep.rooms.proof import HOW_WEAKENED, Judgement, judge
from capkeep.rooms.protocol import Channel, Message, ProtocolError, encode

CALLER_FD: Final = 0
ROOT: Final = "/"
WIRE_FD: Final = 4
WIRE_NAME: Final = "wire"
ORIGIN_NAME: Final = "origin"  # a copier's wire to the vault of what it copies from
ORIGIN_FD: Final = 6  # in a copier that wire; in its engine what WIRE_FD's HANDOVER_FD is
LISTEN_FDS_START: Final = 3
HANDOVER_FD: Final = 3  # in an engine, and in the relay that it starts
FACTS_FD: Final = 4  # where a child tells its facts before it becomes the engine
GIVEN_FD: Final = 5  # what an engine is given to read, such as another password
REQUEST_SECONDS: Final = 30
VAULT_START_SECONDS: Final = 60
VAULT_END_SECONDS: Final = 120
COMMIT_SECONDS: Final = 6 * 3600  # for removing what is not needed any more
HANDOVER_SECONDS: Final = 10
HOLD_SECONDS: Final = 600  # for the names of all snapshots
PATIENCE_SECONDS: Final = 300.0  # with a caller, such as a pager, who does not take what is said
TEXT_LIMIT: Final = 1 << 14  # characters; a path has at most 4096 bytes (PATH_MAX)

NOBODY_S_HOME: Final = "/nonexistent"  # which only root could make

NO_LANDLOCK: Final = (
    "this kernel, or a container around this host, offers no Landlock: a hostile engine could write"
    " to FIFOs among the files that it reads, reach abstract sockets from a room with a network, and look"
    " into other engines of its user where systemd 252 starts the rooms"
)

OptionT = TypeVar("OptionT", str, int, bool)


class Lesser(NamedTuple):
    """A process with less than the room has: as somebody else, and with one directory alone."""

    uid: int
    gid: int
    write: str


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


def _nothing_lost() -> None:
    """What a room reads from is there for as long as the room is."""


class EngineRoom:
    """A room between its caller, its engine and its vault. Owns all three on every way out."""

    def __init__(
        self, brief: Brief, *, profile: seccomp.Profile, patience: float | None = None
    ) -> None:
        """`patience`: seconds in which the caller takes one message; without, as long as it likes."""
        self.brief = brief
        self.patience = patience
        self.caller = Channel(socket.socket(fileno=CALLER_FD))
        self.wire: Channel | None = None
        self.profile = profile  # of the engines that it starts
        self.origin: Channel | None = None
        self._handover: socket.socket | None = None
        self._origin_handover: socket.socket | None = None
        self._vault_gone = False
        self._awaited = False
        self.standing = ROOT  # where engines stand, by a name that they take for the machine's "/"
        self.standing_fds: tuple[int, ...] = ()  # by which that name leads there
        self.steady: Callable[[], None] = _nothing_lost
        self.aside: dict[int, Callable[[], None]] = {}  # who else is heard while an engine runs

    def close(self) -> None:
        """Ends the conversation with the caller and the vault."""
        ends = (self._handover, self._origin_handover, self.wire, self.origin, self.caller)
        for end in ends:
            if end is not None:
                end.close()

    # -- proof

    def prove(self) -> None:
        """Tell the caller what the kernel says of this room. Raises StepError if it is weak."""
        facts = self._tried(read_facts(None, self.brief.host_namespaces))
        facts, judgement = self._judged("room", facts)
        self._tell_proof("room", facts, judgement)
        if not facts.landlock:
            self.tell({"event": "warning", "text": NO_LANDLOCK})

    def _tell_proof(self, process: str, facts: Facts, judgement: Judgement) -> None:
        self.tell({
            "event": "proof", "process": process, "facts": codec.to_plain(facts),
            "weaker": list(judgement.weaker), "accepted": list(judgement.accepted),
        })  # fmt: skip

    def _judged_lesser(self, facts: Facts, lesser: Lesser) -> tuple[Facts, Judgement]:
        """Of what was started with less: less is right.

        No program that it can run has capabilities of its own, so the bounding set means nothing
        (capabilities(7)). Raises StepError.
        """
        room = self.brief.room
        grant = room.grant._replace(uid=lesser.uid, gid=lesser.gid, capabilities=())
        walls, mode = self.brief.walls, self.brief.mode
        judgement = judge(
            facts._replace(bounding=()), room._replace(grant=grant), walls, mode, "engine"
        )
        if judgement.weaker:
            self._tell_proof("server", facts, judgement)
            found = "; ".join(judgement.weaker)
            raise StepError(
                Failure.WEAKENED, f"{room.name} (server) is weaker than its grant: {found}",
                hint=HOW_WEAKENED,
            )  # fmt: skip
        return facts, judgement

    def _tried(self, facts: Facts) -> Facts:
        """Of this very process, with what it was refused, where its walls are not to be read of."""
        return facts._replace(refused=trial.refused()) if self.launched else facts

    @property
    def launched(self) -> bool:
        """Whether it is in the machine's own namespaces (`host/launched.py`)."""
        return self.brief.walls.starter is Starter.LAUNCHER

    def _judged(self, process: str, facts: Facts) -> tuple[Facts, Judgement]:
        """What they are worth. Raises StepError, after telling them, if they are weak."""
        brief = self.brief
        judgement = judge(facts, brief.room, brief.walls, brief.mode, process)
        if judgement.weaker:
            self._tell_proof(process, facts, judgement)
            found = "; ".join(judgement.weaker)
            raise StepError(
                Failure.WEAKENED,
                f"{brief.room.name} ({process}) is weaker than its grant: {found}",
                hint=HOW_WEAKENED,
            )
        return facts, judgement

    def seen(self, path: str) -> str:
        """Where a path of the machine is seen in this room."""
        return (self.brief.source_root + path.rstrip("/")) or "/"

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
        pulled = self.brief.pulled
        message = self._given_wire() if pulled else self.caller.receive()
        # Who asks on behalf of another host must not hold an engine by listening no more.
        self.caller.sock.settimeout(PATIENCE_SECONDS if pulled else self.patience)
        if message is None:
            raise Stopped("the caller asked for nothing")
        return message

    def _given_wire(self) -> Message | None:
        """A request with which a caller gives this room its wire, and what it does not know itself.

        Its repository is another host's, whose vault is at the wire's far end. Raises ProtocolError.
        """
        from capkeep.rooms.pull.given import brief_of, receive_given

        data, end = receive_given(self.caller.sock)
        self.caller.take(data)
        self.wire = Channel(end) if end else None
        message = self.caller.receive()
        if self.wire is None and message is not None and message.get("action") != "probe":
            raise ProtocolError("a reader of a repository that is pulled is given its wire")
        if self.wire is not None and message is not None:
            self.brief = brief_of(self.brief, message)
            self._handover = self._hand_over(self.wire)
        return message

    # -- wire

    def open_wire(self) -> None:
        """Give each vault its end of the socket through which relays hand over their pipes."""
        brief = self.brief
        if brief.room.wire is not None:
            self.wire = Channel(_connected(brief.wire_path, WIRE_NAME, WIRE_FD))
            self._handover = self._hand_over(self.wire)
        if brief.room.origin is not None:
            self.origin = Channel(_connected(brief.origin_path, ORIGIN_NAME, ORIGIN_FD))
            self._origin_handover = self._hand_over(self.origin)

    def _hand_over(self, wire: Channel) -> socket.socket:
        """Our end of that socket."""
        near, far = socket.socketpair()
        with far, suppress(BrokenPipeError):  # one that is dead already is missed a little later
            socket.send_fds(wire.sock, [encode(self._handover_message())], [far.fileno()])
        return near

    def _handover_message(self) -> Message:
        """With how fast the vault is to be, if there is a limit."""
        job = self.brief.job
        rates: Message = {
            "upload": job.resources.upload_bytes, "download": job.resources.download_bytes,
        } if job else {}  # fmt: skip
        return {"handover": True, **{k: v for k, v in rates.items() if v}}

    def relay(self) -> tuple[str, ...]:
        """The program whose input and output lead an engine to the vault; empty without one."""
        if self._handover is None:
            return ()
        program = f"{os.path.dirname(__file__)}/relay.py"
        origin = (str(ORIGIN_FD),) if self._origin_handover else ()
        return (interpreter(), "-I", "-S", program, str(HANDOVER_FD), *origin)

    def hand_over(self, incoming: int, outgoing: int) -> None:
        """Give the vault a pair of pipes, as a relay would: to read from, and to write to.

        Raises OSError.
        """
        assert self._handover is not None, "a room with a wire"
        self._handover.settimeout(HANDOVER_SECONDS)
        socket.send_fds(self._handover, [b"p"], [incoming, outgoing])

    def hand_to_origin(self, incoming: int, outgoing: int) -> None:
        """Give whoever is at the other wire's end the one pair of pipes that it gets. Raises OSError."""
        assert self._origin_handover is not None, "a room with an origin"
        self._origin_handover.settimeout(HANDOVER_SECONDS)
        socket.send_fds(self._origin_handover, [b"p"], [incoming, outgoing])
        self._origin_handover.close()
        self._origin_handover = None  # so that no engine gets it

    def await_vault(self) -> None:
        """Wait until each vault has proven itself, and pass the proofs on. Raises StepError."""
        if self._awaited:
            return
        self._awaited = True
        for wire in filter(None, (self.wire, self.origin)):
            self._await(wire)

    def _await(self, wire: Channel) -> None:
        wire.sock.settimeout(VAULT_START_SECONDS)
        try:
            while (message := wire.receive()) is not None:
                self.raise_vault_failure(message, wire)
                if message.get("event") == "proof":
                    self.pass_vault_proof(message, "vault" if wire is self.wire else ORIGIN_NAME)
                    return
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"the vault did not start: {error}") from error
        raise StepError(Failure.INTERRUPTED, "the vault ended before it had started")

    def pass_vault_proof(self, message: Message, process: str = "vault") -> None:
        """Tell what a vault has proven. Raises StepError where that is too little."""
        self.tell({**message, "process": process})
        found = message.get("weaker")
        if isinstance(found, list) and found:
            sentence = "; ".join(map(str, found))
            raise StepError(
                Failure.WEAKENED, f"the vault is weaker than its grant: {sentence}",
                hint=HOW_WEAKENED,
            )  # fmt: skip

    def raise_vault_failure(self, message: Message, wire: Channel | None = None) -> None:
        """Raises StepError if the vault says that the place behind it failed; of two, which."""
        if message.get("event") == "failure":
            far = self.brief.target and wire is self.origin  # who names himself
            whose = f"{self._behind(wire)}: " if wire and self.origin and not far else ""
            text = str(message.get("text", ""))
            raise StepError(Failure(str(message.get("failure"))), f"{whose}{text}")

    def _behind(self, wire: Channel) -> str:
        """The repository at the other end."""
        room = self.brief.room
        return room.origin.repository if room.origin and wire is self.origin else room.repository

    def hold_removals(self) -> frozenset[str] | None:
        """Have the vault hold removals back until `commit`; the names of all snapshots, if it tells.

        Raises StepError. After `await_vault`, before any engine; for a wire that may remove.
        """
        if self.wire is None:
            return None
        deadline = time.monotonic() + HOLD_SECONDS
        self.wire.sock.settimeout(1.0)
        try:
            self.wire.send({"hold": True})
            while True:
                try:
                    message = self.wire.receive()
                except TimeoutError:  # a far place lists slowly
                    self.alive()
                    if time.monotonic() > deadline:
                        raise
                    continue
                if message is None:
                    break
                self.raise_vault_failure(message)
                if message.get("event") == "snapshots":
                    names = message.get("names")
                    return frozenset(map(str, names)) if isinstance(names, list) else None
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"the vault does not answer: {error}") from error
        raise StepError(Failure.INTERRUPTED, "the vault ended before it had answered")

    def commit(self) -> None:
        """Have what was held back removed; ends the wire. Raises StepError, Stopped."""
        if self.wire is None:
            return
        deadline = time.monotonic() + COMMIT_SECONDS
        self.wire.sock.settimeout(1.0)
        done = False
        try:
            self.wire.send({"commit": True})
            while time.monotonic() < deadline:
                try:
                    message = self.wire.receive()
                except TimeoutError:
                    self.tell({"event": "alive"})
                    continue
                if message is None or message.get("event") == "stored":
                    break
                self.raise_vault_failure(message)
                done = done or message.get("event") == "committed"
        except (OSError, ProtocolError) as error:
            raise StepError(Failure.INTERRUPTED, f"the vault has left: {error}") from error
        finally:
            self._vault_gone = True
        if not done:
            raise StepError(Failure.INTERRUPTED, "the vault ended before it had removed everything")

    def finish_wire(self) -> Message:
        """Tell the vault that the engine is done; what it has stored, for the result.

        `stored` are bytes, `snapshots_stored` names; nothing where it is unknown.
        """
        nothing: Message = {"stored": 0, "snapshots_stored": []}
        if self.origin is not None:
            self._ended(self.origin)
        if self.wire is None or self._vault_gone:
            return nothing
        message = self._ended(self.wire)
        if message is None:
            return nothing  # the engine has ended; what it said of its own success counts
        return {"stored": message.get("bytes"), "snapshots_stored": message.get("snapshots")}

    def _ended(self, wire: Channel) -> Message | None:
        """A vault's last word, after ours; None if it has none."""
        wire.sock.settimeout(VAULT_END_SECONDS)
        try:
            wire.sock.shutdown(socket.SHUT_WR)
            for message in wire:
                if message.get("event") == "stored":
                    return message
        except (OSError, ProtocolError):
            pass
        return None

    # -- engine

    def writable(self) -> tuple[str, ...]:
        """Where the engine may write."""
        return self.brief.room.grant.write

    def _confine(self, *, wired: bool = True) -> None:
        """In the child that becomes the engine; one without a wire has nothing to write down either."""
        grant = self.brief.room.grant
        # A hook has what its configuration names, though more had to be bound for it.
        hook = self.brief.hook
        lent = filter(os.path.exists, hook.write if hook else grant.shared)
        landlock.restrict((*self.writable(), *lent) if wired else (), network=grant.network)
        # An engine that was explicitly given the network keeps sockets, and nothing else.
        profile = seccomp.Profile.VAULT if grant.network else self.profile
        sealed = hook and grant.capabilities
        profile = seccomp.Profile.LAUNCHED if self.launched else profile
        seccomp.install(seccomp.Profile.SEALED if sealed else profile)

    def _confine_lesser(self, lesser: Lesser) -> None:
        """In the child that becomes a server, or asks one; the place may be out of its reach later."""
        from capkeep.kernel.ownership import become  # of provers alone

        landlock.restrict((lesser.write,), network=False)
        become(lesser.uid, lesser.gid)
        seccomp.install(seccomp.Profile.SERVER)

    @contextmanager
    def engine(
        self,
        argv: Sequence[str],
        env: dict[str, str],
        *,
        tell: bool = True,
        output: int = -1,
        given: int = -1,
        source: int = -1,
        cwd: str = "",
        lesser: Lesser | None = None,
        aide_bytes: int = 0,
    ) -> Iterator[RunningEngine]:
        """A confined, proven, running engine; killed on the way out if it still runs.

        Every engine is proven; `tell` says whether the caller hears of it when all is well. With
        an `output` it writes there, and only what it says on its standard error is heard. A
        `source` is its standard input, `cwd` where it stands if not in the machine's "/", and
        `given` a descriptor that it finds as GIVEN_FD. A `lesser` one has no wire, nor has one with
        `aide_bytes`, which helps the others: it has no more memory than that, writes nowhere, and
        does not wait until what it says is heard.
        """
        wired = not aide_bytes
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        enlarge(out_read)
        facts_read, facts_write = os.pipe()
        enlarge(facts_read)
        keep = {FACTS_FD: facts_write}
        if self.brief.room.grant.capabilities and env.get("HOME") in self.writable():
            # What a program looks for at home may be code, and its cache is not its own alone: an
            # engine taken over before, or another room of its user, could have left some there.
            env = {**env, "HOME": NOBODY_S_HOME}
        wires = {HANDOVER_FD: self._handover, ORIGIN_FD: self._origin_handover}
        keep |= {fd: end.fileno() for fd, end in wires.items() if end and wired and not lesser}
        keep |= {GIVEN_FD: given} if given >= 0 else {}
        keep |= {fd: fd for fd in self.standing_fds} if wired else {}
        if aide_bytes:
            os.set_blocking(err_write, False)

        def confine() -> None:
            if aide_bytes:
                limit_memory(aide_bytes)
            self._confine_lesser(lesser) if lesser else self._confine(wired=wired)

        try:
            child = spawn(
                argv, env=env, stdin=source, stdout=out_write if output < 0 else output, stderr=err_write,
                keep=keep, hold=True, prepare=self._tell_facts(confine), cwd=cwd or self.seen("/"),
            )  # fmt: skip
        except OSError as error:
            os.close(out_read)
            os.close(err_read)
            os.close(facts_read)
            raise StepError(Failure.ENGINE, f"the engine cannot be started: {error}") from error
        finally:
            os.close(out_write)
            os.close(err_write)
            os.close(facts_write)
        try:
            with open(facts_read, "rb") as pipe:
                facts = codec.loads(Facts, pipe.read())
            held = self._judged_lesser(facts, lesser) if lesser else self._judged("engine", facts)
            child.release()
            running = held if lesser else self._running(child, held)
            if tell:
                self._tell_proof("server" if lesser else "engine", *running)
            yield RunningEngine(child, out_read, err_read, self.heard())
        except OSError as error:
            raise StepError(Failure.ENGINE, f"the engine cannot be started: {error}") from error
        finally:
            child.kill()
            os.close(out_read)
            os.close(err_read)

    def _tell_facts(self, confine: Callable[[], None]) -> Callable[[], None]:
        """In the child that becomes the engine: be confined, and tell what the kernel says of it.

        Until its exec it is a copy of this program, into which nobody may look from outside.
        """
        host = self.brief.host_namespaces

        def prepare() -> None:
            confine()
            facts = self._tried(read_facts(None, host))
            with open(FACTS_FD, "wb") as pipe:
                pipe.write(codec.dumps(facts).encode("utf-8", "surrogateescape"))

        return prepare

    def _running(self, child: Child, held: tuple[Facts, Judgement]) -> tuple[Facts, Judgement]:
        """The engine's facts now that it is the engine; those from before if it has ended already."""
        try:
            facts = read_facts(child.pid, self.brief.host_namespaces)
        except OSError:
            return held
        # What was tried before its exec stays so: neither Landlock nor a filter can be taken off.
        return self._judged("engine", facts._replace(refused=held[0].refused))

    def heard(self) -> dict[int, Callable[[], None]]:
        """Whom to listen to while an engine runs."""
        heard: dict[int, Callable[[], None]] = {
            self.caller.fileno(): self._hear_caller,
            **self.aside,
        }
        for wire in filter(None, (self.wire, self.origin)):
            heard[wire.fileno()] = partial(self._hear_vault, wire)
        return heard

    def _hear_caller(self) -> None:
        """After its request a caller can only leave."""
        if not self.caller.sock.recv(4096):
            raise Stopped("the caller is gone")

    def _hear_vault(self, wire: Channel) -> None:
        """A vault that stops inside a message must not stop us: what is there now is heard."""
        if not wire.hear(lambda message: self.raise_vault_failure(message, wire)):
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


def _connected(path: str, name: str, fd: int) -> socket.socket:
    """The wire to the vault: a descriptor from systemd or from our parent, or a socket to connect to.

    systemd says which of its descriptors is which, from 3 on (sd_listen_fds_with_names(3)). The name
    of a connection that is the standard input stands before them, though it is not among them (257).
    """
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")[-count:] if count else []
    if name in names:
        return socket.socket(fileno=LISTEN_FDS_START + names.index(name))
    if not path:
        return socket.socket(fileno=fd)
    try:
        wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            wire.connect(path)
        except OSError:
            wire.close()
            raise
    except OSError as error:
        raise StepError(
            Failure.INTERRUPTED, "the vault cannot be reached: nobody opens its door",
            hint="`capkeep audit` tells which unit is missing",
        ) from error  # fmt: skip
    return wire


def serve(
    actions: Mapping[str, Callable[[EngineRoom, Message], Message]],
    profile: seccomp.Profile,
    become: Callable[[Brief], Brief] | None = None,
    *,
    read: Callable[[], Brief] = read_brief,
    patience: float | None = None,
) -> int:
    """A room's whole life: brief, proof, wire, one request, one result.

    `read` finds its brief. `become` changes the process before its proof, and says what is to be
    proven then; `patience` is as `EngineRoom`'s.
    """
    hide_memory()
    try:
        brief = read()
        if become is not None:
            brief = become(brief)
    except StepError as error:
        _tell_unstarted(error)
        return 1
    room = EngineRoom(brief, profile=profile, patience=patience)
    try:
        result = _answer(room, actions)
        room.tell({"event": "result", **result})
    except Stopped:
        return 1
    finally:
        room.close()
    return 0


def _tell_unstarted(error: StepError) -> None:
    """Why no room came to be, to its caller; on the log where there is no caller, as by hand."""
    try:
        sock = socket.socket(fileno=CALLER_FD)
    except OSError:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"capkeep: {error}{hint}", file=sys.stderr)
        return
    with Channel(sock) as caller, suppress(OSError):
        caller.send({"event": "result", **failed(error.failure, str(error), error.hint)})


def _answer(
    room: EngineRoom, actions: Mapping[str, Callable[[EngineRoom, Message], Message]]
) -> Message:
    """The result of the one request: every failure becomes a result with a name."""
    try:
        room.open_wire()
        servers = room.brief.room.grant.servers
        own = seccomp.Profile.ALONE if room.launched else seccomp.Profile.ROOM
        seccomp.install(seccomp.Profile.HOST if servers else own)
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
