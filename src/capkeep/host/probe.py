"""Start every room and let it show what it can do, beside what it was granted.

What a room says of itself is judged once more here, by the plan and by this host's own namespaces: a
room that was told wrong things about its grant does not deceive.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.errors import CapkeepError, Failure
from capkeep.host import bubblewrap, hardening, systemd, unit_state, units
from capkeep.host.direct import converse
from capkeep.host.finding import APPLY, Finding, Kind, Proven
from capkeep.kernel.facts import Facts, host_filters, host_namespaces, namespaces
from capkeep.plan import codec
from capkeep.plan.codec import DecodeError
from capkeep.plan.model import NO_WALLS, WIRED, Outside, Plan, Room, RoomKind, Starter, Walls
from capkeep.rooms.proof import judge
from capkeep.rooms.protocol import Channel, Message, ProtocolError

REQUEST: Final[Message] = {"action": "probe", "options": {}}
SECONDS: Final = 120  # a vault may wait a minute for a remote
TRIES: Final = 3  # to ask a room that turns us away, though nobody has it
PAUSE_SECONDS: Final = 0.5
TARGET: Final = "target"  # what processes of another host are called, beside a puller's
ACCEPT: Final = "or, where this host cannot give it: [host] accept-missing"


class Probes(NamedTuple):
    """What was proven, what differs, and rooms that were in use."""

    rooms: tuple[Proven, ...]
    findings: tuple[Finding, ...]
    busy: tuple[str, ...]


def probe(plan: Plan, mends: Mapping[str, str]) -> Probes:
    """Every room but the vaults, which are proven through the rooms on their wires.

    `mends`: by unit, what mends it where it is known to be changed.
    """
    prober = _Prober(plan, mends)
    for room in plan.rooms:
        if room.kind not in WIRED:
            prober.ask(room)
    return Probes(tuple(prober.rooms), tuple(prober.findings), tuple(prober.busy))


class _Prober:
    """Asks one room after the other and keeps what is found."""

    def __init__(self, plan: Plan, mends: Mapping[str, str]) -> None:
        self.rooms: list[Proven] = []
        self.findings: list[Finding] = []
        self.busy: list[str] = []
        self._plan = plan
        self._mends = mends
        self._units = systemd.look(plan) if plan.starter is Starter.SYSTEMD else None
        self._host = dict(namespaces("/proc/1") if self._units else host_namespaces())
        self.findings += _told_wrong(plan, self._host) if self._units else ()

    def ask(self, room: Room) -> None:
        """Start one room; whatever goes wrong is a finding."""
        door = room.door if self._units else None
        proofs: dict[str, Message] = {}

        def take(message: Message) -> None:
            if message.get("event") == "proof":
                proofs[str(message.get("process"))] = message

        result = self._heard_out(room, door.path if door else "", take)
        launched = self._plan.launched(room)
        if result is None or (launched and result.get("failure") == Failure.LOCKED):
            self.busy.append(room.name)
            return
        before = len(self.findings)
        for process, message in proofs.items():
            try:
                self._take(room, process, message)
            except DecodeError as error:
                result = {"failure": "refused", "text": f"it proves nothing: {error}"}
        if result.get("failure") is not None and len(self.findings) == before:
            text = f"cannot be looked at: {result.get('text')}"
            self.findings.append(Finding(Kind.PROBE, room.name, text, self._reason(room)))

    def _heard_out(self, room: Room, door: str, take: Callable[[Message], None]) -> Message | None:
        """What it says in the end, or why it says nothing; None where another caller has its door.

        It may have been busy and be free again by the time that is looked at.
        """
        plan = self._plan
        for left in reversed(range(TRIES)):
            try:
                if door:
                    return visit(door, take)
                return converse(plan, room, REQUEST, take, seconds=SECONDS)
            except (CapkeepError, OSError) as error:
                if door and self._is_busy(room):
                    return None
                turned_away = isinstance(error, ConnectionResetError | ProtocolError)
                if not (door and left and turned_away):
                    return {"failure": Failure.INTERRUPTED, "text": str(error)}
                time.sleep(PAUSE_SECONDS)
        raise AssertionError("the last try returns")

    def _is_busy(self, room: Room) -> bool:
        """Whether another caller has the room: what it can do is proven in his run."""
        assert room.door is not None
        return all(
            unit_state.connections(f"{name}.socket") >= room.door.connections
            for name in units.sockets_of(self._plan, room)
        )

    def _reason(self, room: Room) -> str:
        """Where more is said."""
        if room.kind in (RoomKind.PULLER, RoomKind.MOUNTER):
            return f"capkeep target check {self._plan.job(room.job).target}"
        if self._units and room.door:
            return f"journalctl -u '{self._plan.name}-{room.name}@*'"
        return APPLY

    def _take(self, asked: Room, process: str, message: Message) -> None:
        wire = asked.wire if process == "vault" else None
        if process == "origin" and asked.origin:
            wire = asked.origin.wire
        room = self._plan.room(wire.vault) if wire else asked
        facts = codec.from_plain(Facts, message.get("facts"))
        if asked.kind is RoomKind.PULLER and process.startswith(TARGET):
            self._take_told(asked, process, facts, _weaker(message))
            return
        facts = seen_from(facts, self._host)
        by_unit = self._units is not None and asked.door is not None
        walls = self._walls(room, by_unit=by_unit)
        judgement = judge(facts, room, walls, self._plan.mode_of(room), process)
        weaker = tuple(dict.fromkeys((*judgement.weaker, *_weaker(message))))
        name = f"{room.name} for {asked.name}" if wire else room.name
        self.rooms.append(
            Proven(name, process, room.grant, walls, facts, weaker, judgement.accepted)
        )
        suffix = f"-{wire.access}" if wire else ""
        unit = f"{self._plan.name}-{room.name}{suffix}@.service"
        mend = self._mends.get(unit, f"{APPLY}; {ACCEPT}") if by_unit else APPLY
        self.findings += (
            Finding(Kind.WEAKER, f"{name} ({process})", text, mend) for text in weaker
        )

    def _take_told(self, asked: Room, process: str, facts: Facts, weaker: tuple[str, ...]) -> None:
        """What another host says of its own rooms: its grants and namespaces are not known here."""
        uid, gid = next(iter(facts.uids), -1), next(iter(facts.gids), -1)
        grant = asked.grant._replace(
            uid=uid, gid=gid, capabilities=facts.effective, write=facts.writable
        )
        walls = Walls(facts.separated)
        self.rooms.append(Proven(asked.name, process, grant, walls, facts, weaker, ()))
        target = self._plan.job(asked.job).target
        self.findings += (
            Finding(Kind.WEAKER, f"{asked.name} ({process})", text, f"on {target}: {APPLY}")
            for text in weaker
        )

    def _walls(self, room: Room, *, by_unit: bool) -> Walls:
        if by_unit and self._units:
            walls = hardening.walls(self._plan, room.grant, self._units)
            return walls._replace(filters=host_filters())
        if self._plan.launched(room):
            return NO_WALLS
        return bubblewrap.walls(room.grant, self._plan.mode_of(room))


def _weaker(message: Message) -> tuple[str, ...]:
    """What a process itself says it lacks."""
    said = message.get("weaker")
    return tuple(map(str, said)) if isinstance(said, list) else ()


def seen_from(facts: Facts, host: dict[str, int]) -> Facts:
    """The facts with those namespaces as separate that are not this host's, as far as known."""
    separated = tuple(n for n, inode in facts.namespaces if n in host and inode != host[n])
    return facts._replace(separated=separated)


def _told_wrong(plan: Plan, host: dict[str, int]) -> Iterator[Finding]:
    """Rooms compare themselves with what a file says of this host."""
    path = units.host_facts(plan)
    unit = f"{plan.name}-host.service"
    try:
        with open(path, "rb") as file:
            told = dict(codec.loads(Outside, file.read()).namespaces)
    except FileNotFoundError:
        return  # no room has been started since this host was; the first one makes it
    except (CapkeepError, OSError) as error:
        yield Finding(Kind.DRIFT, path, f"cannot be read: {error}", f"systemctl restart {unit}")
        return
    if any(told.get(name) != inode for name, inode in host.items()):
        text = "does not name this host's namespaces, with which rooms compare their own"
        yield Finding(Kind.DRIFT, path, text, f"systemctl restart {unit}")


def visit(path: str, take: Callable[[Message], None]) -> Message:
    """The result of a room behind a socket. Raises OSError, ProtocolError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SECONDS)
    deadline = time.monotonic() + SECONDS
    with Channel(sock) as channel:
        sock.connect(path)
        with suppress(BrokenPipeError):  # who is turned away finds the reason lying there
            channel.send(REQUEST)
        for message in channel:
            if message.get("event") in ("result", "end"):
                return message | {"failure": message.get("failure", "refused")}
            take(message)
            if time.monotonic() > deadline:
                raise TimeoutError(f"it goes on talking after {SECONDS} seconds")
    raise ProtocolError("it ended without a result")
