"""The vault: alone has the repository's disk or network, and serves it on one wire.

One process per wire. It trusts neither the engine that speaks HTTP to it, nor the room at the
other end of the wire, which is asked for one thing: a listener in its own network.
"""

import os
import select
import socket
import sys
import threading
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.facts import read_facts
from capkeep.kernel.process import hide_memory
from capkeep.plan import codec
from capkeep.plan.model import Access, Brief
from capkeep.rooms.brief import read_brief
from capkeep.rooms.proof import weaker
from capkeep.rooms.protocol import Channel, Message, ProtocolError, decode
from capkeep.rooms.rest.front import Front
from capkeep.rooms.rest.places import folder, open_store
from capkeep.rooms.rest.server import Server
from capkeep.rooms.rest.sessions import Session, clean
from capkeep.rooms.rest.store import Store, StoreError

WIRE_FD: Final = 0
LISTEN_SECONDS: Final = 60
SEND_SECONDS: Final = 10
# Connecting, asking and being answered, names looked up included: a dead endpoint is told early.
PREFLIGHT_SECONDS: Final = 14


class Wire:
    """The room's end, told of every kind of failure once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._told: set[Failure] = set()

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

    def receive_listener(self) -> socket.socket:
        """The one message a room sends. Raises ProtocolError, OSError."""
        sock = self._channel.sock
        sock.settimeout(LISTEN_SECONDS)
        data, ancillary, flags, _ = sock.recvmsg(4096, socket.CMSG_SPACE(16), _CLOEXEC)
        fds = _descriptors(ancillary)
        sock.settimeout(SEND_SECONDS)
        try:
            if flags & socket.MSG_CTRUNC or len(fds) != 1:
                raise ProtocolError("expected one descriptor")
            if decode(data) != {"listen": True}:
                raise ProtocolError("expected a listener")
            listener = socket.socket(fileno=fds.pop())
        finally:
            for fd in fds:
                os.close(fd)
        if not _is_local_listener(listener):
            listener.close()
            raise ProtocolError("not a listener on 127.0.0.1")
        listener.setblocking(False)
        return listener

    def closed(self) -> bool:
        """After a select: whether the room has shut its end; anything it says is that too."""
        with suppress(OSError):
            self._channel.sock.recv(4096)
        return True

    def fileno(self) -> int:
        """For select(2)."""
        return self._channel.fileno()


_CLOEXEC: Final = socket.MSG_CMSG_CLOEXEC


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            found += [
                int.from_bytes(data[i : i + 4], sys.byteorder, signed=True)
                for i in range(0, whole, 4)
            ]
    return found


def _is_local_listener(sock: socket.socket) -> bool:
    try:
        return (
            sock.family == socket.AF_INET
            and sock.type == socket.SOCK_STREAM
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            and sock.getsockname()[0] == "127.0.0.1"
        )
    except OSError:
        return False


def main() -> int:
    """A vault's whole life."""
    hide_memory()
    seccomp.install(seccomp.Profile.VAULT)
    brief = read_brief()
    grant = brief.room.grant
    # A repository's directory that is missing is told by name, in `_serve`.
    writable = [path for path in grant.write if os.path.exists(path)]
    landlock.restrict(writable, None if grant.network else ())
    channel = Channel(socket.socket(fileno=WIRE_FD))
    channel.sock.settimeout(SEND_SECONDS)
    wire = Wire(channel)
    _prove(brief, wire)
    try:
        listener = wire.receive_listener()
        store = open_store(brief)
    except (ProtocolError, OSError) as error:
        print(f"capkeep vault: {error}", file=sys.stderr)
        return 1
    except StoreError as error:
        wire.failed(error)
        return 1
    try:
        return _serve(brief, wire, listener, store)
    finally:
        store.close()


def _prove(brief: Brief, wire: Wire) -> None:
    """Tell what the kernel says of this process; the room starts no engine if that is too little."""
    facts = read_facts(None, brief.host_namespaces)
    found = weaker(facts, brief.room, brief.mode, "vault")
    wire.tell({
        "event": "proof", "process": "vault", "facts": codec.to_plain(facts),
        "weaker": list(found),
    })  # fmt: skip


def _serve(brief: Brief, wire: Wire, listener: socket.socket, store: Store) -> int:
    """Preflight, then requests until the wire closes, then no lock of this session is left."""
    try:
        if not _preflight(store, wire):
            return 1
        clean(folder(brief), store)
        session = Session(folder(brief))
    except StoreError as error:
        wire.failed(error)
        return 1
    front = Front(store, session, brief.access or Access.APPEND, wire.failed)
    server = Server(front)
    with listener:
        while True:
            ready = select.select([wire.fileno(), listener.fileno()], [], [])[0]
            if wire.fileno() in ready and wire.closed():
                break
            server.accept(listener)
    server.close()
    try:
        session.end(store)
    except StoreError as error:
        wire.failed(error)
    wire.tell({"event": "stored", "bytes": front.stored})
    return 0


def _preflight(store: Store, wire: Wire) -> bool:
    """Whether the place answers in time."""
    failures: list[StoreError] = []

    def look() -> None:
        try:
            store.preflight()
        except StoreError as error:
            failures.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PREFLIGHT_SECONDS)
    if thread.is_alive():
        failures.append(
            StoreError(Failure.UNREACHABLE, f"no answer within {PREFLIGHT_SECONDS} seconds")
        )
    for error in failures[:1]:
        wire.failed(error)
    return not failures
