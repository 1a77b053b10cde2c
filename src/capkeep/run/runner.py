"""The runner's program: one caller, one request, its walk through the rooms, one answer.

It holds no secret and no capability; it alone writes the records. What it is asked for is taken
from a fixed vocabulary, so whoever may ask can at worst cost a backup's worth of time.
"""

import errno
import signal
import socket
from collections.abc import Iterable
from types import FrameType
from typing import Final, NoReturn

from capkeep.errors import (
    EXIT_CODES,
    EXIT_COMPLETE,
    EXIT_PARTIAL,
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
from capkeep.rooms.proof import weaker
from capkeep.rooms.protocol import Channel, Message, ProtocolError
from capkeep.run.caller import Caller, refusal
from capkeep.run.walk import Walk

REQUEST_SECONDS: Final = 30


def main() -> int:
    """A runner's whole life."""
    hide_memory()
    seccomp.install(seccomp.Profile.RUNNER)
    brief = read_brief()
    landlock.restrict(brief.room.grant.write, ())
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
        code = _serve(brief, caller, request)
        caller.tell({"event": "done", "exit_code": code})
        caller.drain(10)
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


def _serve(brief: Brief, caller: Caller, request: Message) -> int:
    """Do what was asked, if it is in the vocabulary; returns the exit code for the caller."""
    try:
        proof = _prove(brief)
        plan = load_plan(brief.places)
        walk = Walk(plan, caller, proof, brief.peer_uid)
        action = request.get("action")
        if action == "run":
            jobs = [plan.job(n) for n in _chosen(request, "jobs", [j.name for j in plan.jobs])]
            dry_run, accept = _flag(request, "dry_run"), _flag(request, "accept_shrink")
            return worst(walk.run_job(j, dry_run=dry_run, accept_shrink=accept) for j in jobs)
        names = _chosen(request, "repositories", [r.name for r in plan.repositories])
        if action == "check":
            return worst(walk.check(plan.repository(n), _text(request, "read_data")) for n in names)
        if action == "init":
            return worst(walk.init(plan.repository(n)) for n in names)
        if action == "snapshots":
            return worst(walk.snapshots(plan.repository(n)) for n in names)
        raise ProtocolError("unknown request")
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


def _prove(brief: Brief) -> Message:
    """The runner's own kernel facts. Raises StepError if it is weaker than its grant."""
    facts = read_facts(None, brief.host_namespaces)
    found = weaker(facts, brief.room, brief.mode, "room")
    if found:
        raise StepError(
            Failure.WEAKENED, f"the runner is weaker than its grant: {'; '.join(found)}"
        )
    return {"event": "proof", "room": "runner", "process": "room",
            "facts": codec.to_plain(facts), "weaker": []}  # fmt: skip


def _chosen(request: Message, key: str, known: list[str]) -> list[str]:
    """The names asked for, each one known; all of them if none is named. Raises ProtocolError."""
    names = request.get(key, [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ProtocolError(f"{key} must be a list of names")
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ProtocolError(f"there is no {unknown[0]!r}; known {key}: {', '.join(known)}")
    return list(dict.fromkeys(names)) or known


def _flag(request: Message, key: str) -> bool:
    value = request.get(key, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{key} must be true or false")
    return value


def _text(request: Message, key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str) or len(value) > 64:
        raise ProtocolError(f"{key} must be a short text")
    return value


def worst(codes: Iterable[int]) -> int:
    """Of several runs' exit codes the one to end with: a failure before partial before complete."""
    codes = list(codes)
    failures = [c for c in codes if c not in (EXIT_COMPLETE, EXIT_PARTIAL)]
    if failures:
        return failures[0]
    return EXIT_PARTIAL if EXIT_PARTIAL in codes else EXIT_COMPLETE
