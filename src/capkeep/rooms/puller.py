"""The puller: stands for the reader of another host, which it reaches over ssh.

It has the network, the key for the target's login and, unless the target keeps it, the repository's
password; no capability, and no file but its own notes. What the target says is made anew from a fixed
vocabulary (`pull/heard.py`). The target's engine talks to the vault here through pipes that this room
fills and empties, so the vault's promises hold against the target as they do against any engine.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.pipes import enlarge
from capkeep.plan.model import Brief, Job, Target
from capkeep.rooms.base import EngineRoom, serve
from capkeep.rooms.protocol import Message, ProtocolError, decode, encode
from capkeep.rooms.pull import link
from capkeep.rooms.pull.asked import request_of
from capkeep.rooms.pull.frames import TALK, WIRE, FrameError, Session, StrangerError
from capkeep.rooms.pull.heard import Rebuilder, differing
from capkeep.rooms.pull.lines import Lines
from capkeep.rooms.pull.pump import LostError, Pump
from capkeep.rooms.rest.ssh import Ssh
from capkeep.rooms.service import StoreError
from capkeep.rooms.vault import NAMED_ENGINES

END_SECONDS: Final = 2.0  # for ssh to end by itself
SAID_MOST: Final = 64 << 20  # bytes that a target may tell at once, and so many a second
SAID_A_SECOND: Final = 32 << 10
NAME_LEAST: Final = 8  # characters by which engines tell a snapshot
ENROLL: Final = "change both sides alike: `capkeep enroll` it again"
# What must have been proven before a result is believed, by action.
PROVEN: Final = {
    "backup": ("target", "target engine"), "init": ("target", "target engine"),
    "probe": ("target", "target engine"), "sums": ("target",),
}  # fmt: skip
EARLY: Final = ("proof", "warning", "alive")  # said before a reader has heard what is asked


def main() -> int:
    """A puller's whole life."""
    actions = dict.fromkeys(PROVEN, pull)
    return serve(actions, seccomp.Profile.VAULT, _close_in)


def _close_in(brief: Brief) -> Brief:
    """It starts no engine that would be confined further: it is confined itself, as a vault is."""
    landlock.restrict([p for p in brief.room.grant.write if os.path.exists(p)], network=True)
    seccomp.install(seccomp.Profile.VAULT)
    return brief


def pull(room: EngineRoom, request: Message) -> Message:
    """Have the target's reader do what is asked, and its engine talk to our vault. Raises StepError."""
    job, target = room.brief.job, room.brief.target
    if job is None or target is None:
        raise StepError(Failure.REFUSED, "this room has no target")
    asked = _asked(room.brief, job, request)
    if asked["action"] == "init":
        _let_make(room)
    secrets = dict(room.brief.secrets)
    ssh = link.connect(target, secrets.get("identity", ""), room.brief.room.grant.write[0])
    try:
        sock = ssh.start()
        pulled = _Pull(room, job, target, ssh, sock)
        try:
            result = pulled.run(asked)
        finally:
            pulled.close()
    except StoreError as error:
        raise StepError(error.failure, str(error)) from error
    finally:
        if ssh.sock is not None:
            ssh.sock.close()
        ssh.end(END_SECONDS)
    return _checked(room, asked, {**result, **pulled.stored()})


def _let_make(room: EngineRoom) -> None:
    """Ask the vault, before anybody speaks to it, to let the target make the repository. Raises StepError."""
    repository, wire = room.brief.repository, room.wire
    if repository is None or wire is None or not repository.target_keeps_password:
        raise StepError(Failure.REFUSED, "the keeper makes this repository")
    with suppress(OSError):  # a vault that is gone is noticed when it is needed
        wire.send({"make": True})


def _asked(brief: Brief, job: Job, request: Message) -> Message:
    """What the target is asked. Raises ProtocolError."""
    resources = job.resources
    said: Message = {
        "action": request.get("action"), "options": request.get("options", {}),
        "host": job.host, "tags": list(job.tags),
        "rates": {"upload": resources.upload_bytes, "download": resources.download_bytes},
    }  # fmt: skip
    if password := dict(brief.secrets).get("password"):
        said["password"] = password
    return request_of(said)


def _checked(room: EngineRoom, asked: Message, result: Message) -> Message:
    """A target's success is worth what our vault has of it. Raises StepError."""
    repository, options = room.brief.repository, asked["options"]
    dry_run = isinstance(options, dict) and options.get("dry_run") is True
    if repository is None or asked["action"] != "backup" or dry_run or result.get("failure"):
        return result
    summary, stored = result.get("summary"), result.get("snapshots_stored")
    said = (result, summary) if isinstance(summary, dict) else (result,)  # either may name one
    named = {str(one.get("snapshot") or "") for one in said} - {""}
    there = tuple(map(str, stored)) if isinstance(stored, list) else ()
    if repository.engine in NAMED_ENGINES:
        made_up = [
            n for n in named if len(n) < NAME_LEAST or not any(o.startswith(n) for o in there)
        ]
        bad = not named or bool(made_up)
    else:
        made_up, bad = [], not result.get("stored")  # each of its snapshots takes something
    if bad:
        which = f"snapshot {made_up[0][:8]}" if made_up else "a snapshot"
        text = f"the target says that it has made {which}, and our vault got none"
        raise StepError(Failure.REFUSED, text)
    return result


class _Pull:
    """One connection to a target, from its hello to the reader's result."""

    def __init__(
        self, room: EngineRoom, job: Job, target: Target, ssh: Ssh, sock: socket.socket
    ) -> None:
        self._room, self._job, self._target, self._ssh = room, job, target, ssh
        self._session = Session(opens=False)
        self._pump = Pump(sock.fileno(), sock.fileno(), self._session, self)
        self._lines = Lines()
        self._rebuilder = Rebuilder(job)
        self._result: Message | None = None
        self._proven: set[str] = set()
        self._heard_any = self._alike = self._key_forgotten = False
        self._said, self._begun = 0, time.monotonic()
        self._released = self._vault_gone = False  # the vault has been told that the engine is done
        self._stored: Message | None = None

    def run(self, asked: Message) -> Message:
        """The target's result. Raises StepError, Stopped."""
        self._pump.say(TALK, encode(asked))
        name = self._target.name
        try:
            self._pump.run()
        except LostError as error:
            raise link.explain(
                self._ssh, self._target, str(error), greeted=self._session.greeted
            ) from error
        except StrangerError as error:
            raise StepError(
                Failure.REFUSED, f"{name} lets us in, and no capkeep answers there: {error}",
                hint=f"capkeep enroll {name}, with the same version of capkeep on both sides",
            ) from error  # fmt: skip
        except (FrameError, ProtocolError) as error:
            raise StepError(
                Failure.REFUSED, f"{name} says what no reader says ({error}): it was left"
            ) from error
        assert self._result is not None, "it stops with the result"
        missing = [p for p in PROVEN[str(asked["action"])] if p not in self._proven]
        if self._result.get("failure") is None and missing:
            raise StepError(Failure.REFUSED, f"{name} has not proven itself ({missing[0]})")
        return self._result

    def close(self) -> None:
        """The vault sees the engine's calls end."""
        self._pump.close()

    def stored(self) -> Message:
        """What our vault has stored, for the result; ends the wire."""
        if self._stored is None:
            return self._room.finish_wire()
        said = self._stored
        return {"stored": said.get("bytes"), "snapshots_stored": said.get("snapshots")}

    # -- the target

    def opened(self, channel: int) -> None:
        """A call of its engine: a pair of pipes, which the vault gets as if a relay were here."""
        theirs_in, sink = os.pipe()
        source, theirs_out = os.pipe()
        for end in (sink, source):
            enlarge(end)
        self._pump.lead(channel, source=source, sink=sink)
        try:
            self._room.hand_over(theirs_in, theirs_out)
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def said(self, channel: int, data: bytes) -> None:
        """Lines of the reader's. Raises ProtocolError, StepError, Stopped."""
        if channel != TALK:
            raise ProtocolError("words on a wire that has none")
        for line in self._lines.feed(data):
            if self._result is None:
                self._take(decode(line), len(line))
        self._session.took(channel, len(data))

    def _take(self, message: Message, size: int) -> None:
        event = message.get("event")
        self._heard_any = True
        self._said += size
        if self._said > SAID_MOST + SAID_A_SECOND * (time.monotonic() - self._begun):
            raise ProtocolError(f"more than {SAID_MOST >> 20} MiB of events")
        if event == "kept":
            self._compare(message)
        elif event == "result":
            made = self._rebuilder.result(message)
            hint = f"on {self._target.name}: {made['hint']}" if made["hint"] else ""
            self._result = {**made, "hint": hint}
            if not self._alike and made["failure"] is None:
                raise ProtocolError("a result before it said what it keeps")
            self._pump.stopped = True
        elif not self._alike and event not in EARLY:
            raise ProtocolError("an event before it said what it keeps")
        elif (made_anew := self._rebuilder.event(message)) is not None:
            if event == "proof":
                self._proven.add(str(made_anew["process"]))
            self._room.tell(made_anew)

    def _compare(self, message: Message) -> None:
        """A target decides what it gives away; what that is must be known here."""
        if found := differing(self._job, message):
            raise StepError(
                Failure.REFUSED, f"{self._target.name} keeps something else: {found}", hint=ENROLL
            )
        self._alike = True

    def ended(self, channel: int) -> None:
        """The reader is gone, or done with its wire. Raises StepError."""
        if channel == WIRE:
            self._release()
        elif self._result is None and self._heard_any:
            text = f"the reader of {self._target.name} ended without a result"
            raise StepError(
                Failure.INTERRUPTED, text, hint=f"on {self._target.name}: capkeep audit"
            )
        elif self._result is None:
            text = f"the reader of {self._target.name} is busy, or cannot be started there"
            raise StepError(Failure.LOCKED, text, hint=f"on {self._target.name}: capkeep audit")

    def _release(self) -> None:
        """The engine is done: so is the vault; what it has stored is heard when it says so."""
        wire = self._room.wire
        if wire is None or self._released:
            return
        self._released = True
        wire.sock.shutdown(socket.SHUT_WR)
        self._pump.say(WIRE, encode({"event": "stored", "bytes": 0, "snapshots": []}))

    # -- our side

    def watched(self) -> Mapping[int, Callable[[], None]]:
        """The caller, who may leave; the vault, until it has; and what ssh says."""
        heard = {**self._room.heard(), self._ssh.words_fd: self._ssh.hear}
        if self._room.wire is not None:
            heard[self._room.wire.fileno()] = self._hear_vault
            if self._vault_gone:
                del heard[self._room.wire.fileno()]
        return heard

    def tick(self) -> None:
        """Tell that it goes on; once logged in nobody needs the key any more. Raises StepError."""
        self._room.alive()
        if self._session.greeted and not self._key_forgotten:
            self._key_forgotten = True
            self._ssh.forget_key()

    def _hear_vault(self) -> None:
        """What is there now; the target learns that there is a vault, and nothing about it."""
        wire = self._room.wire
        assert wire is not None, "watched only where there is one"
        if wire.hear(self._take_vault):
            return
        self._vault_gone = True
        if not self._released:
            raise StepError(Failure.INTERRUPTED, "the vault ended while it was needed")

    def _take_vault(self, message: Message) -> None:
        event = message.get("event")
        if event == "proof":
            self._room.pass_vault_proof(message)
            self._pump.say(WIRE, encode({"event": "proof", "process": "vault", "weaker": []}))
        elif event == "stored":
            self._stored = message
        elif not self._released:
            self._room.raise_vault_failure(message)
