"""The vault: alone has the repository's disk or network, and serves it on one wire.

One process per wire. It trusts neither the engine that speaks to it, nor the room at the
other end of the wire, which is asked for one thing: the socket over which its engine's relays hand
over the pipes that the engine speaks through.
"""

import os
import select
import socket
import sys
import threading
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.facts import read_facts
from capkeep.kernel.process import hide_memory
from capkeep.plan import codec
from capkeep.plan.model import Access, Brief
from capkeep.rooms.brief import read_brief
from capkeep.rooms.handover import Handover, is_handover, receive
from capkeep.rooms.proof import judge
from capkeep.rooms.protocol import Channel, Message, ProtocolError, decode
from capkeep.rooms.service import Rates, Service, StoreError

WIRE_FD: Final = 0
HOLD: Final = b'{"hold":true}\n'  # hold removals back, and tell the names of all snapshots
MAKE: Final = b'{"make":true}\n'  # let the repository be made by whoever may only add
COMMIT: Final = b'{"commit":true}\n'  # carry out what was held back, then end
REST_ENGINES: Final = ("restic",)  # whose protocol capkeep speaks itself
NAMED_ENGINES: Final = (*REST_ENGINES, "rdiff-backup")  # of whose snapshots it knows the names
TICK_SECONDS: Final = 1.0
HANDOVER_SECONDS: Final = 60
SEND_SECONDS: Final = 10
MOST_RATE: Final = 1 << 62


class Wire:
    """The room's end, told of every kind of failure once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._told: set[Failure] = set()
        self.rates = Rates()  # as fast as the room asked for

    def tell(self, message: Message) -> None:
        """Say something; a room that left does not hear it."""
        with self._lock, suppress(OSError):
            self._channel.send(message)

    def failed(self, error: StoreError) -> None:
        """The place behind us failed."""
        with self._lock:
            known = error.failure in self._told
            self._told.add(error.failure)
        if not known:
            self.tell({"event": "failure", "failure": error.failure, "text": str(error)})

    def receive_handover(self) -> Handover:
        """The one message a room sends. Raises ProtocolError, OSError."""
        sock = self._channel.sock
        sock.settimeout(HANDOVER_SECONDS)
        data, fds, whole = receive(sock, 4096, 1)
        sock.settimeout(SEND_SECONDS)
        try:
            if not whole or len(fds) != 1:
                raise ProtocolError("expected one descriptor")
            self.rates = _rates(decode(data))
            if not is_handover(fds[0]):
                raise ProtocolError("not a connected unix socket")
            return Handover(socket.socket(fileno=fds.pop()))
        finally:
            for fd in fds:
                os.close(fd)

    def hear(self) -> bytes:
        """After a select: what the room says; it has few words, and all others mean its end."""
        with suppress(OSError):
            return self._channel.sock.recv(4096)
        return b""

    def fileno(self) -> int:
        """For select(2)."""
        return self._channel.fileno()


def main() -> int:
    """A vault's whole life."""
    hide_memory()
    seccomp.install(seccomp.Profile.VAULT)
    channel = Channel(socket.socket(fileno=WIRE_FD))
    channel.sock.settimeout(SEND_SECONDS)
    wire = Wire(channel)
    try:
        brief = read_brief()
    except StepError as error:
        wire.failed(StoreError(error.failure, str(error)))
        return 1
    grant = brief.room.grant
    # A repository's directory that is missing is told by name, in `_serve`.
    writable = [path for path in grant.write if os.path.exists(path)]
    landlock.restrict(writable, network=grant.network)
    _prove(brief, wire)
    try:
        handover = wire.receive_handover()
        service = _service(brief)
    except (ProtocolError, OSError) as error:
        print(f"capkeep vault: {error}", file=sys.stderr)
        return 1
    except StoreError as error:
        wire.failed(error)
        return 1
    try:
        return _serve(wire, handover, service, _words(brief))
    finally:
        service.close()


def _words(brief: Brief) -> frozenset[bytes]:
    """What a room may say on its wire beside its end, and `COMMIT`."""
    if brief.access is Access.ADMIN:
        return frozenset((HOLD,))
    kept = brief.repository is not None and brief.repository.target_keeps_password
    return frozenset((MAKE,) if kept and brief.access is Access.APPEND else ())


def _rates(message: Message) -> Rates:
    """What a handover asks for. Raises ProtocolError for anything but a handover."""
    if message.get("handover") is not True or message.keys() - {"handover", *Rates._fields}:
        raise ProtocolError("expected a handover")
    rates = [message.get(name, 0) for name in Rates._fields]
    if not all(type(rate) is int and 0 <= rate < MOST_RATE for rate in rates):
        raise ProtocolError("expected bytes a second")
    return Rates(*(rate for rate in rates if isinstance(rate, int)))


def _prove(brief: Brief, wire: Wire) -> None:
    """Tell what the kernel says of this process; the room starts no engine if that is too little."""
    facts = read_facts(None, brief.host_namespaces)
    judgement = judge(facts, brief.room, brief.walls, brief.mode, "vault")
    wire.tell({
        "event": "proof", "process": "vault", "facts": codec.to_plain(facts),
        "weaker": list(judgement.weaker), "accepted": list(judgement.accepted),
    })  # fmt: skip


def _service(brief: Brief) -> Service:
    """What serves the repository, or stands for a target. Raises StoreError."""
    if brief.target is not None:
        from capkeep.rooms.pull.carrier import Carrier

        return Carrier(brief, brief.target)
    assert brief.repository is not None, "a vault has a repository"
    if brief.repository.engine in REST_ENGINES:
        from capkeep.rooms.rest.service import RestService

        return RestService(brief)
    from capkeep.rooms.served import ProgramService

    return ProgramService(brief)


def _serve(wire: Wire, handover: Handover, service: Service, words: frozenset[bytes]) -> int:
    """Preflight, then engines until the wire closes, then no lock of this session is left."""
    try:
        if not _preflight(service, wire):
            return 1
        service.begin(wire.rates, wire.failed)
    except StoreError as error:
        wire.failed(error)
        return 1
    said = _converse(wire, handover, service, words)
    handover.close()
    service.stop()
    try:
        if said == COMMIT:
            service.commit()
            wire.tell({"event": "committed"})
    except StoreError as error:
        wire.failed(error)
    try:
        service.release()
    except StoreError as error:
        wire.failed(error)
    stored = service.stored()
    wire.tell({"event": "stored", "bytes": stored.bytes, "snapshots": list(stored.snapshots)})
    return 0


def _converse(wire: Wire, handover: Handover, service: Service, words: frozenset[bytes]) -> bytes:
    """Serve engines until the room has said its last word; returns that."""
    watched: list[Wire | Handover] = [wire, handover]
    while True:
        heard = service.heard()
        found = select.select([*watched, *heard], [], [], TICK_SECONDS if heard else None)[0]
        for fd in heard.keys() & {f for f in found if isinstance(f, int)}:
            heard[fd]()
        if heard:
            service.tick()
        if wire in found:
            said = wire.hear()
            if said not in words:
                return said
            if said == MAKE:
                service.let_make()
            else:
                wire.tell({"event": "snapshots", "names": service.hold()})
        elif handover in found:
            try:
                ends = handover.take()
            except EOFError:
                watched = [wire]
                continue
            if ends is not None:
                service.serve(ends)


def _preflight(service: Service, wire: Wire) -> bool:
    """Whether the place answers in time."""
    failures: list[StoreError] = []

    def look() -> None:
        try:
            service.preflight()
        except StoreError as error:
            failures.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(service.patience())
    if thread.is_alive():
        text = f"no answer within {service.patience():.0f} seconds"
        failures.append(StoreError(Failure.UNREACHABLE, text))
    for error in failures[:1]:
        wire.failed(error)
    return not failures
