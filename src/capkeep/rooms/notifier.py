"""The notifier: tells people and machines outside what became of a run.

It has the network and the channels' secrets, and sees none of the machine's files. What it is asked
for names channels of the plan and holds the run's report as data; never an address or a program. The
log comes as an open descriptor. Its caller hears of each channel what came of it.
"""

import base64
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Final, NamedTuple, NoReturn

from capkeep.errors import Failure, StepError
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.facts import read_facts
from capkeep.kernel.process import hide_memory
from capkeep.plan import codec
from capkeep.plan.model import Brief, Notify, NotifyKind
from capkeep.rooms.base import failed
from capkeep.rooms.brief import read_brief
from capkeep.rooms.outside import Delivery, RefusedOutside, Sender, What
from capkeep.rooms.proof import HOW_WEAKENED, judge
from capkeep.rooms.protocol import MAX_LINE, Channel, Message, ProtocolError, decode

CALLER_FD: Final = 0
REQUEST_SECONDS: Final = 30
ATTEMPT_SECONDS: Final = 60  # for one attempt at one channel, whatever the other side does
FIRST_PAUSE: Final = 1.0  # seconds; each further pause is twice as long
LONGEST_PAUSE: Final = 300.0
SAID_LIMIT: Final = 500  # characters of what the other side says
# Bytes; a runner sends 64 MiB at most. It is held twice while it is compressed, and what comes of
# that as a mail: together half of what the room may have (plan.compile).
LOG_LIMIT: Final = 65 << 20


class Due(NamedTuple):
    """A channel that is to be tried at a time (monotonic seconds)."""

    at: float
    pause: float  # before the try after it
    channel: Notify


def main() -> int:
    """A notifier's whole life."""
    hide_memory()
    seccomp.install(seccomp.Profile.VAULT)
    caller = Channel(socket.socket(fileno=CALLER_FD))
    with caller:
        try:
            result = _answer(caller)
        except StepError as error:
            result = failed(error.failure, str(error), error.hint)
        except ProtocolError as error:
            result = failed(Failure.REFUSED, f"the request was refused: {error}")
        try:
            caller.send({"event": "result", **result})
        except OSError:
            return 1
    return 0


def _answer(caller: Channel) -> Message:
    brief = read_brief()
    landlock.restrict((), network=True)
    _prove(brief, caller)
    request, log = _request(caller.sock)
    if request.get("action") == "probe":
        return {"failure": None, "text": ""}
    if request.get("action") != "tell":
        raise StepError(Failure.REFUSED, "this room does not know that request")
    delivery = Delivery(
        what=_what(request), report=_report(request), log=_read_log(log),
        hostname=brief.hostname, secrets=dict(brief.secrets),
    )  # fmt: skip
    Round(caller, delivery).go(_chosen(request, brief.notify))
    return {"failure": None, "text": ""}


def _prove(brief: Brief, caller: Channel) -> None:
    """Tell what the kernel says of this room. Raises StepError if that is too little."""
    facts = read_facts(None, brief.host_namespaces)
    judgement = judge(facts, brief.room, brief.walls, brief.mode, "room")
    try:
        caller.send({
            "event": "proof", "process": "room", "facts": codec.to_plain(facts),
            "weaker": list(judgement.weaker), "accepted": list(judgement.accepted),
        })  # fmt: skip
    except OSError as error:
        raise ProtocolError("the caller is gone") from error
    if judgement.weaker:
        found = "; ".join(judgement.weaker)
        text = f"the notifier is weaker than its grant: {found}"
        raise StepError(Failure.WEAKENED, text, hint=HOW_WEAKENED)


def _request(sock: socket.socket) -> tuple[Message, int]:
    """The one request and the descriptor that came with it, -1 for none. Raises ProtocolError."""
    sock.settimeout(REQUEST_SECONDS)
    try:
        data, fds, _, _ = socket.recv_fds(sock, 1, 1)
        line = bytearray(data)
        while data and not line.endswith(b"\n"):
            data = sock.recv(65536)
            line += data
            if len(line) > MAX_LINE:
                raise ProtocolError(f"a request is longer than {MAX_LINE} bytes")
    except OSError as error:
        raise ProtocolError(f"no request came: {error}") from error
    return decode(bytes(line)), fds[0] if fds else -1


def _what(request: Message) -> What:
    named = str(request.get("what"))
    if named not in list(What):
        raise ProtocolError("it is not said what to tell")
    return What(named)


def _report(request: Message) -> Message:
    report = request.get("report")
    if not isinstance(report, dict):
        raise ProtocolError("there is nothing to tell")
    return report


def _chosen(request: Message, known: tuple[Notify, ...]) -> list[Notify]:
    """The channels that are named. Raises ProtocolError for one that is not in the plan."""
    names = request.get("channels")
    if not isinstance(names, list):
        raise ProtocolError("channels must be a list of names")
    by_name = {n.name: n for n in known}
    if any(not isinstance(name, str) or name not in by_name for name in names):
        raise ProtocolError("there is no such channel")
    chosen = [by_name[name] for name in dict.fromkeys(names)]
    # Whoever takes the time of the run from our messages comes first.
    return sorted(chosen, key=lambda n: n.kind is not NotifyKind.HEALTHCHECKS)


def _read_log(fd: int) -> bytes:
    """What a descriptor holds from its beginning."""
    if fd < 0:
        return b""
    with open(fd, "rb") as file:
        try:
            file.seek(0)
            return file.read(LOG_LIMIT)
        except OSError:
            return b""  # not a file; the report alone is told


class Round:
    """Every channel is tried until it has taken the report, or its time is over."""

    def __init__(self, caller: Channel, delivery: Delivery) -> None:
        self._caller = caller
        self._delivery = delivery
        self._sender = Sender(delivery)
        self._users: set[str] = set()
        signal.signal(signal.SIGALRM, _overdue)

    def go(self, channels: list[Notify]) -> None:
        """Raises ProtocolError when the caller is gone."""
        started = time.monotonic()
        self._users = {channel.user for channel in channels}
        waiting = [Due(started, FIRST_PAUSE, channel) for channel in channels]
        while waiting:
            due = min(waiting, key=lambda d: d.at)
            waiting.remove(due)
            self._wait(due.at)
            text, final, ok = self._attempt(due.channel)
            again = time.monotonic() + due.pause
            patience = due.channel.retry_seconds if self._delivery.what is What.END else 0
            if final or again > started + patience:
                self._tell({"event": "told", "channel": due.channel.name, "ok": ok, "text": text})
            else:
                pause = min(LONGEST_PAUSE, due.pause * 2)
                waiting.append(Due(again, pause, due.channel))

    def _attempt(self, channel: Notify) -> tuple[str, bool, bool]:
        """What was said, whether it is final, and whether the report was taken."""
        signal.setitimer(signal.ITIMER_REAL, ATTEMPT_SECONDS)
        try:
            return self._masked(self._sender.send(channel)), True, True
        except RefusedOutside as error:
            return self._masked(str(error)), True, False
        except OSError as error:
            return self._masked(_sentence(error)), False, False
        except Exception as error:  # noqa: BLE001 - one channel must not take the others along
            return self._masked(f"{type(error).__name__}: {error}"), True, False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _masked(self, text: str) -> str:
        """What servers say may repeat what they were sent; cut only then, or half of it would stay."""
        return masked(text, self._delivery.secrets, self._users)[:SAID_LIMIT]

    def _wait(self, until: float) -> None:
        """Pauses; a caller that leaves meanwhile ends it."""
        seconds = max(0.0, until - time.monotonic())
        if select.select([self._caller], [], [], seconds)[0]:
            raise ProtocolError("the caller is gone")

    def _tell(self, message: Message) -> None:
        try:
            self._caller.send(message)
        except OSError as error:
            raise ProtocolError("the caller is gone") from error


def masked(text: str, secrets: Mapping[str, str], users: Iterable[str] = ()) -> str:
    """The text without any secret, or a longer part of one that is an address.

    `users` are those who log in with one: what a server repeats is then encoded (RFC 4616, RFC 4954).
    """
    whole = {s for s in secrets.values() if s}
    sent = {w.encode(errors="surrogateescape") for w in whole}
    sent |= {f"\0{u}\0{w}".encode(errors="surrogateescape") for u in users for w in whole}
    whole |= {base64.b64encode(w).decode().rstrip("=") for w in sent}
    parts = {p for s in secrets.values() for p in s.replace("?", "/").split("/") if len(p) >= 8}
    for secret in sorted(whole | parts, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def _sentence(error: OSError) -> str:
    """An error as people know it."""
    if error.errno and error.errno > 0 and error.strerror:
        return error.strerror if not isinstance(error, socket.gaierror) else str(error.strerror)
    return str(error) or type(error).__name__


def _overdue(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"no answer within {ATTEMPT_SECONDS} seconds")
