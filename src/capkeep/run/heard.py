"""What a room said during a step, sorted as it comes, in bounded memory."""

import json
from collections.abc import Callable
from typing import Final

from capkeep.engines.base import Cause, Unreadable
from capkeep.plan.model import Job, Room
from capkeep.records.model import Finding, FindingKind, Proof
from capkeep.rooms.protocol import Message
from capkeep.run.gate import excused, forgiven
from capkeep.values import parse_glob

KEPT: Final = 10_000  # findings of a kind; the rest is counted


def proof_of(room: str, message: Message) -> Proof:
    """A proof event as the record keeps it."""
    weaker = message.get("weaker")
    return Proof(
        room=room,
        process=str(message.get("process")),
        facts=json.dumps(message.get("facts")),
        weaker=tuple(map(str, weaker)) if isinstance(weaker, list) else (),
    )


class Heard:
    """Takes a room's events: keeps proofs and findings, passes everything on to be shown."""

    def __init__(self, job: Job | None, room: Room, show: Callable[[Message], None]) -> None:
        self._job = job
        self._may_miss = tuple(map(parse_glob, job.may_miss if job else ()))
        self.room = room
        self._show = show
        self.proofs: dict[str, Proof] = {}  # by process; an engine may be called more than once
        self.findings: list[Finding] = []
        self.counts: dict[FindingKind, int] = {}
        self.sources: list[Message] = []
        self.manifest: Message | None = None  # names files: neither shown nor logged
        self._missing: set[str] = set()
        self.unreadable: list[Unreadable] = []
        self.unlisted = 0  # unreadable paths that count and are not in the list any more

    def take(self, message: Message) -> None:
        """One event."""
        event = message.get("event")
        if event == "proof":
            self._take_proof(message)
        elif event == "unreadable":
            message = self._take_unreadable(message)
        elif event == "warning":
            self._find(FindingKind.WARNING, message, "text")
        elif event == "left-out":
            self._find(FindingKind.LEFT_OUT, message, "detail")
        elif event == "difference":
            self._find(FindingKind.DIFFERENCE, message, "detail")
        elif event == "manifest":
            self.manifest = message
            return
        elif event == "source":
            self.sources.append(message)
        if event != "alive":
            self._show({**message, "room": self._speaker(message)})

    def _speaker(self, message: Message) -> str:
        """The room that an event is about: a vault is heard through the room it works for."""
        room, process = self.room, message.get("process")
        wire = room.wire if process == "vault" else None
        if process == "origin" and room.origin:
            wire = room.origin.wire
        return wire.vault if wire else room.name

    def _take_proof(self, message: Message) -> None:
        speaker = self._speaker(message)
        self.proofs[str(message.get("process"))] = proof_of(speaker, message)
        self.warn_of_missing(speaker, message)

    def warn_of_missing(self, room: str, proof: Message) -> None:
        """What a room lacks and the plan accepts is written down every time, once for each room."""
        accepted = proof.get("accepted")
        for text in accepted if isinstance(accepted, list) else ():
            sentence = f"{room}: {text}"
            if sentence not in self._missing:
                self._missing.add(sentence)
                self.take({"event": "warning", "text": sentence})

    def _take_unreadable(self, message: Message) -> Message:
        """A path that the job may miss, or that vanished or changed, is shown as such."""
        cause = str(message.get("cause"))
        item = Unreadable(
            str(message.get("path")), Cause(cause) if cause in list(Cause) else Cause.UNKNOWN,
            str(message.get("detail")),
        )  # fmt: skip
        if excused(self._may_miss, item):
            kind = FindingKind.MAY_MISS
        elif self._job is not None and forgiven(self._job, item):
            kind = FindingKind.WARNING
        else:
            kind = FindingKind.UNREADABLE
        self._find(kind, message, "detail")
        if self.counts[kind] <= KEPT:
            self.unreadable.append(item)
        elif kind is FindingKind.UNREADABLE:
            self.unlisted += 1
        shown = {FindingKind.UNREADABLE: "unreadable", FindingKind.MAY_MISS: "may-miss"}
        return {**message, "event": shown.get(kind, "fleeting")}

    def _find(self, kind: FindingKind, message: Message, detail: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= KEPT:
            self.findings.append(Finding(
                kind, str(message.get("path") or ""), str(message.get("cause") or ""),
                str(message.get(detail) or ""),
            ))  # fmt: skip
