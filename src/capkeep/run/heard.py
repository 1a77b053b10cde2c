"""What a room said during a step, sorted as it comes, in bounded memory."""

import json
from collections.abc import Callable
from typing import Final

from capkeep.plan.model import Job, Room
from capkeep.records.model import Finding, FindingKind, Proof
from capkeep.rooms.protocol import Message
from capkeep.values import parse_glob

KEPT: Final = 10_000  # findings of a kind; the rest is counted


class Heard:
    """Takes a room's events: keeps proofs and findings, passes everything on to be shown."""

    def __init__(self, job: Job | None, room: Room, show: Callable[[Message], None]) -> None:
        self._may_miss = tuple(map(parse_glob, job.may_miss if job else ()))
        self._room = room
        self._show = show
        self.proofs: list[Proof] = []
        self.findings: list[Finding] = []
        self.counts: dict[FindingKind, int] = {}
        self.sources: list[Message] = []

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
        elif event == "source":
            self.sources.append(message)
        self._show({**message, "room": self._room.name})

    def _take_proof(self, message: Message) -> None:
        weaker = message.get("weaker")
        self.proofs.append(Proof(
            room=self._room.name, process=str(message.get("process")),
            facts=json.dumps(message.get("facts")),
            weaker=tuple(map(str, weaker)) if isinstance(weaker, list) else (),
        ))  # fmt: skip

    def _take_unreadable(self, message: Message) -> Message:
        """A path that the job may miss is kept apart, and shown as such."""
        if any(g.matches(str(message.get("path"))) for g in self._may_miss):
            self._find(FindingKind.MAY_MISS, message, "detail")
            return {**message, "event": "may-miss"}
        self._find(FindingKind.UNREADABLE, message, "detail")
        return message

    def _find(self, kind: FindingKind, message: Message, detail: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= KEPT:
            self.findings.append(Finding(
                kind, str(message.get("path") or ""), str(message.get("cause") or ""),
                str(message.get(detail) or ""),
            ))  # fmt: skip
