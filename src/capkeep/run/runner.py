"""The runner's program: one caller, one request, its walk through the rooms, one answer.

It holds no secret and no capability; it alone writes the records. What it is asked for is taken
from a fixed vocabulary, so whoever may ask can at worst cost a backup's worth of time.
"""

import errno
import os
import signal
import socket
from types import FrameType
from typing import Final, NoReturn

from capkeep.errors import (
    EXIT_CODES,
    EXIT_COMPLETE,
    EXIT_USAGE,
    CapkeepError,
    Failure,
    StepError,
)
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.facts import read_facts
from capkeep.kernel.process import hide_memory
from capkeep.plan import codec
from capkeep.plan.load import load_plan
from capkeep.plan.model import NOBODY_YET, Brief
from capkeep.rooms.brief import read_brief
from capkeep.rooms.proof import HOW_WEAKENED, judge
from capkeep.rooms.protocol import Channel, Message, ProtocolError
from capkeep.run.aftermath import Aftermath
from capkeep.run.caller import Caller, refusal
from capkeep.run.vocabulary import answer
from capkeep.run.walk import Walk

REQUEST_SECONDS: Final = 30


def main() -> int:
    """A runner's whole life."""
    hide_memory()
    seccomp.install(seccomp.Profile.RUNNER)
    brief = read_brief()
    # A directory for metrics may be gone; what else is missing is told when it is written to.
    landlock.restrict([p for p in brief.room.grant.write if os.path.isdir(p)], network=False)
    sock = socket.socket(fileno=0)
    if brief.peer_uid == NOBODY_YET:
        with sock:
            sock, uid = _await_caller(sock)
        brief = brief._replace(peer_uid=uid)
    signal.signal(signal.SIGTERM, _end)
    with Channel(sock) as channel:
        try:
            request = _request(channel)
        except (ProtocolError, OSError) as error:
            return _refuse(channel, str(error))
        caller = Caller(channel)
        signal.signal(signal.SIGTERM, lambda *_: _stop(caller))
        after = Aftermath()
        code = _serve(brief, caller, request, after)
        caller.tell({"event": "done", "exit_code": code})
        caller.drain(10)
    after.finish()
    return 0


def _await_caller(line: socket.socket) -> tuple[socket.socket, int]:
    """Started ahead: load what a run needs, then wait for whoever opened us to send a caller."""
    import capkeep.run.step  # noqa: F401

    said, fds, _, _ = socket.recv_fds(line, 32, 1)
    if not fds:
        raise SystemExit(0)  # nobody came, and nobody will
    return socket.socket(fileno=fds[0]), int(said)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise StepError(Failure.INTERRUPTED, "the runner was ended from outside")


def _stop(caller: Caller) -> NoReturn:
    """End the step under way, and let none come after it."""
    caller.asked_to_stop = True
    raise StepError(Failure.INTERRUPTED, "the runner was ended from outside")


def _request(channel: Channel) -> Message:
    channel.sock.settimeout(REQUEST_SECONDS)
    message = channel.receive()
    channel.sock.settimeout(None)
    if message is None:
        raise ProtocolError("nothing was asked for")
    return message


def _refuse(channel: Channel, text: str) -> int:
    channel.sock.settimeout(1)
    try:
        channel.send({"event": "end", "outcome": None, "exit_code": EXIT_USAGE, "text": text})
        channel.send({"event": "done", "exit_code": EXIT_USAGE})
    except OSError:
        pass  # it did not wait for the answer
    return 1


def _serve(brief: Brief, caller: Caller, request: Message, after: Aftermath) -> int:
    """Do what was asked, if it is in the vocabulary; returns the exit code for the caller."""
    try:
        proof = _proof(brief)
        if request.get("action") == "probe":
            caller.tell(proof)
            caller.tell({"event": "result", "failure": None})
            return EXIT_COMPLETE
        _refuse_weak(proof)
        plan = load_plan(brief.places, in_room=True)
        walk = Walk(plan, caller, proof, brief.peer_uid, after)
        return answer(plan, walk, brief, request)
    except CapkeepError as error:
        code = EXIT_USAGE if isinstance(error, ProtocolError) else error.exit_code
        caller.tell(refusal(error, code))
        return code
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = EXIT_CODES[Failure.NO_SPACE if full else Failure.ENGINE]
        text = f"the run cannot be recorded: {error}"
        hint = f"`df {brief.places.records}` shows the space there" if full else ""
        caller.tell(refusal(CapkeepError(text, hint=hint), code))
        return code


def _proof(brief: Brief) -> Message:
    """The runner's own kernel facts, and whether they are weaker than its grant."""
    facts = read_facts(None, brief.host_namespaces)
    judgement = judge(facts, brief.room, brief.walls, brief.mode, "room")
    return {"event": "proof", "room": "runner", "process": "room",
            "facts": codec.to_plain(facts), "weaker": list(judgement.weaker),
            "accepted": list(judgement.accepted)}  # fmt: skip


def _refuse_weak(proof: Message) -> None:
    found = proof["weaker"]
    if isinstance(found, list) and found:
        text = f"the runner is weaker than its grant: {'; '.join(map(str, found))}"
        raise StepError(Failure.WEAKENED, text, hint=HOW_WEAKENED)
