"""What a keeper's visit makes of archives that are not listed, told by an engine that is not there."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from capkeep.engines.base import Call, Command, Snapshot
from capkeep.engines.borg import Borg
from capkeep.plan.model import Job
from capkeep.rooms import losses
from capkeep.rooms.calls import Caller
from capkeep.rooms.together import Together
from capkeep.rooms.upkeep import _Visit

HIDDEN, OTHER, NEWEST = "a" * 64, "b" * 64, "c" * 64
JOB = Job(name="job", repositories=("r",), include=("/x",), host="here")


class Engine(Borg):
    """Lists ids, as told."""

    def parse_snapshots(self, output: bytes) -> tuple[Snapshot, ...]:
        return tuple(
            Snapshot(one, "2026-01-01T00:00:00+00:00", "here", "", (), ("capkeep:job",), name=one)
            for one in output.decode().split()
        )


class Bench:
    """One keeper; each visit is told what the engine answers, in order."""

    def __init__(self, base: Path) -> None:
        self.told: list[dict[str, Any]] = []
        self.base = base

    def start(
        self, command: Command, take: Callable[[str, bytes], None], end: Callable[[int], None]
    ) -> None:
        if "check" in command.argv:
            self.checked = True
            return
        word, answer = self.answers.pop(0)
        assert word in command.argv, (word, command.argv)
        take("stdout", answer.encode())
        end(0)

    def visit(self, *answers: tuple[str, str]) -> list[tuple[str, str]]:
        """What failed, and why."""
        self.answers, self.told, self.checked = list(answers), [], False
        call = Call(
            program="borg", repository="/r", cache_dir=str(self.base), tmp_dir="", password=""
        )
        room = SimpleNamespace(tell=self.told.append)
        caller = SimpleNamespace(
            engine=Engine(), call=call, room=room, scratch=str(self.base),
            raise_for=lambda *_: None,
        )  # fmt: skip
        request = {"options": {"recorded": [HIDDEN, NEWEST]}}
        visit = _Visit(
            cast(Caller, caller), cast(Together, self), JOB, cast(Any, request), ("check",)
        )
        visit.begin()
        assert self.answers == []
        return [(m["kind"], m["text"]) for m in self.told if m["event"] == "part" and m["failure"]]

    def known(self) -> losses.Known:
        call = Call(
            program="borg", repository="/r", cache_dir=str(self.base), tmp_dir="", password=""
        )
        known = losses.recall(cast(Caller, SimpleNamespace(call=call)))
        return known._replace(seen=())


def rescue(**said: list[str]) -> tuple[str, str]:
    return "capkeep-rescue", json.dumps({"found": [], "lost": [], "wrong": 0, **said})


def listed(*ids: str) -> tuple[str, str]:
    return "list", "\n".join(ids)


def test_only_what_this_host_has_lost_is_told_and_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.visit(listed(HIDDEN, OTHER, NEWEST)) == []
    assert bench.known() == losses.Known((HIDDEN, NEWEST), (), (OTHER,))
    gone = bench.visit(listed(HIDDEN, NEWEST), rescue(lost=[OTHER]), listed(HIDDEN, NEWEST))
    assert gone == []
    assert bench.checked, "another keeper has removed what is its own"
    told = bench.visit(listed(NEWEST), rescue(lost=[HIDDEN]), listed(NEWEST))
    assert [part for part, _ in told] == ["check"]
    assert "1 snapshots (aaaaaaaa) are gone" in told[0][1]
    assert bench.visit(listed(NEWEST)) == []


def test_what_is_hidden_again_at_once_is_not_forgotten(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.visit(listed(HIDDEN, OTHER, NEWEST)) == []
    both = rescue(found=[HIDDEN, OTHER])
    assert bench.visit(listed(NEWEST), both, listed(NEWEST)), "hidden again before it was listed"
    assert bench.known() == losses.Known((HIDDEN, NEWEST), (), (OTHER,))
    told = bench.visit(listed(NEWEST), rescue(), listed(NEWEST))
    assert "2 snapshots (aaaaaaaa, bbbbbbbb) are not listed" in told[0][1]
    assert not bench.checked
    assert bench.known() == losses.Known((HIDDEN, NEWEST), (), (OTHER,))
