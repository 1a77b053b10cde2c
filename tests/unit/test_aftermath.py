"""What follows a run: each part of it by itself, and nobody's silence for another's fault."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.host import timers
from capkeep.plan import codec
from capkeep.plan.model import (
    Door,
    Grant,
    Job,
    Limits,
    Mode,
    Notify,
    NotifyKind,
    Places,
    Plan,
    Room,
    RoomKind,
    Watch,
    When,
)
from capkeep.plan.timetable import whole
from capkeep.records.due import Waiting, Watched
from capkeep.records.locks import Holder, JobLock
from capkeep.records.model import Outcome, Run
from capkeep.records.notices import Notice, Notices, State, add, settle
from capkeep.records.store import Recorder
from capkeep.run.aftermath import Aftermath, concerned
from capkeep.run.marks import write_metrics
from capkeep.run.watch import MEMORY, missed_run, read_clocks, remembered, watch


class Notifier:
    """Whoever stands behind the notifier's door: takes every report, but for channels that hang."""

    def __init__(self, path: str) -> None:
        self.told: list[tuple[str, str]] = []  # what, and of which run
        self.silent: set[str] = set()  # channels that get no answer
        self._held: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            self._held.append(sock)
            request = json.loads(sock.makefile("rb").readline())
            self.told.append((request["what"], request["report"]["run"]["id"]))
            with contextlib.suppress(BrokenPipeError):  # who has heard it all is gone
                self._answer(sock, request["channels"])

    def _answer(self, sock: socket.socket, channels: list[str]) -> None:
        for name in set(channels) - self.silent:
            said = {"event": "told", "channel": name, "ok": True, "text": "taken"}
            sock.sendall(json.dumps(said).encode() + b"\n")
        if not self.silent & set(channels):
            sock.sendall(b'{"event":"result"}\n')

    @property
    def runs(self) -> list[str]:
        return [run for what, run in self.told if what == "end"]

    def close(self) -> None:
        # Closing alone wakes nobody who waits in accept(2).
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for sock in self._held:
            sock.close()


def channel(name: str = "hook", **more: object) -> Notify:
    known = Notify(name, NotifyKind.WEBHOOK, When.ALWAYS, ("job",), (), log=False, retry_seconds=2)
    return known._replace(**more)


def ended(name: str = "one", **more: object) -> Run:
    now = time.time()
    done = Run(
        name,
        "job",
        now,
        ended=now,
        seconds=0.0,
        outcome=Outcome.COMPLETE,
        exit_code=0,
        text="ended",
    )
    return done._replace(**more)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    places = Places(*(f"{tmp_path}/{n}" for n in ("etc", "state", "cache", "log", "run")))
    for path in (places.records, places.log, places.run, places.stamps, f"{tmp_path}/metrics"):
        os.makedirs(path, exist_ok=True)
    Path(places.plan).parent.mkdir(parents=True, exist_ok=True)
    Path(places.plan).touch()
    grant = Grant(user="x", uid=os.getuid(), gid=os.getgid(), limits=Limits())
    door = Door(f"{tmp_path}/door", 0, 0, 0o600, 16)
    rooms = (
        Room(name="runner", kind=RoomKind.RUNNER, grant=grant),
        Room(name="notifier", kind=RoomKind.NOTIFIER, grant=grant, door=door),
    )
    return Plan(
        Mode.USER, places, 0, "/usr/bin/python3", "/usr/lib", (), (Job("job", (), ("/srv",)),), rooms,
        "0", notify=(channel(),), metrics=f"{tmp_path}/metrics",
    )  # fmt: skip


@pytest.fixture
def notifier(plan: Plan) -> Iterator[Notifier]:
    door = plan.room("notifier").door
    assert door is not None
    serving = Notifier(door.path)
    yield serving
    serving.close()


def _overdue(_number: int, _frame: object) -> None:
    raise TimeoutError("it hangs")


def after(plan: Plan) -> Aftermath:
    found = Aftermath()
    found.use(plan)
    return found


def end(plan: Plan, run: Run, *, finish: bool = True) -> None:
    """A run has ended, and its runner does what follows."""
    following = after(plan)
    with Recorder(plan.places.records) as recorder:
        recorder.note(run)
        following.ended(recorder, run.id, "")
    if finish:
        following.finish()


def pending(plan: Plan) -> list[str]:
    with Recorder(plan.places.records) as recorder:
        return [n.run for n in Notices(recorder).pending()]


def test_marks_that_cannot_be_written_silence_no_channel(plan: Plan, notifier: Notifier) -> None:
    os.rmdir(plan.metrics)
    os.rmdir(plan.places.stamps)
    end(plan, ended())
    assert notifier.runs == ["one"]
    assert pending(plan) == []


def test_metrics_are_written_while_nobody_opens_the_notifiers_door(plan: Plan) -> None:
    plan = plan._replace(notify=(channel(kind=NotifyKind.HEALTHCHECKS),))
    following = after(plan)
    with Recorder(plan.places.records) as recorder:
        recorder.note(ended())
        following.ended(recorder, "one", "")
        following.started(recorder, Run("two", "job", time.time()), "")
    assert os.listdir(plan.metrics) == ["capkeep.prom"]
    assert pending(plan) == ["one"]


def test_whoever_owns_the_metrics_directory_cannot_hang_or_divert_a_run(plan: Plan) -> None:
    other = Path(plan.metrics, "other")
    draft = Path(plan.metrics, ".capkeep.prom.new")
    os.mkfifo(draft)
    signal.signal(signal.SIGALRM, _overdue)
    signal.alarm(10)
    try:
        write_metrics(plan)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    other.touch()
    os.link(other, draft)
    write_metrics(plan)
    assert Path(plan.metrics, "capkeep.prom").read_text().startswith("# HELP")
    assert not draft.exists()
    assert other.read_text() == ""


def test_the_watch_may_write_metrics_that_say_what_is_missed(plan: Plan) -> None:
    job = plan.jobs[0]._replace(schedule=("03:00",))
    units = {u.name: u.text for u in timers.units(plan._replace(jobs=(job,)), "/run/x/host")}
    lines = units["capkeep-watch.service"].splitlines()
    assert f"BindPaths=-{plan.metrics}" in lines


def noted(plan: Plan, *runs: Run) -> None:
    """In the record, by whoever was killed before anybody could be told."""
    with Recorder(plan.places.records) as recorder:
        for run in runs:
            recorder.note(run)


def test_what_was_recorded_and_not_told_is_told_after_the_next_run(
    plan: Plan, notifier: Notifier
) -> None:
    applied = time.time() - 100
    os.utime(plan.places.plan, (applied, applied))
    failed = {"outcome": Outcome.FAILED, "exit_code": 1}
    noted(
        plan,
        ended("before", started=applied - 1, **failed),
        ended("missed", outcome=Outcome.MISSED),
        ended("failed", **failed),
        ended("fine"),
        ended("left-out", action="skip-backup", outcome=Outcome.SKIPPED),
    )
    end(plan, ended("next"))
    assert sorted(notifier.runs) == ["failed", "missed", "next"]
    end(plan, ended("last"))
    assert sorted(notifier.runs) == ["failed", "last", "missed", "next"]


def overdue(plan: Plan) -> Run:
    """Apply a plan with a schedule of which one time is over, as the watch remembers; its run."""
    job = plan.jobs[0]._replace(schedule=("*:00",))
    plan = plan._replace(jobs=(job,), watch=Watch(1, 0))
    Path(plan.places.plan).write_text(codec.dumps(plan))
    (table,), now = whole(plan), read_clocks()
    due = int(now.wall) // 3600 * 3600
    waiting = Waiting(due, now.steady - 100, now.boot)
    watched = Watched(table.calendar, float(due), (waiting,), now)
    memory = {"entries": [{"job": "job", "kind": "backup", "watched": codec.to_plain(watched)}]}
    Path(plan.places.records, MEMORY).write_text(json.dumps(memory, separators=(",", ":")))
    return missed_run(table, due, now.wall)


def test_a_missed_run_whose_watch_was_killed_is_told_by_the_next_look(
    plan: Plan, notifier: Notifier
) -> None:
    run = overdue(plan)
    noted(plan, run)
    assert watch(plan.places) == ()
    assert notifier.runs == [run.id]
    overdue(plan)
    assert watch(plan.places) == ()
    assert notifier.runs == [run.id]


def test_a_run_that_still_tells_is_not_told_of_by_another(plan: Plan, notifier: Notifier) -> None:
    run = ended("failed", outcome=Outcome.FAILED, exit_code=1)
    noted(plan, run)
    with JobLock(plan.places.records, "job") as lock:
        lock.acquire(Holder("job", run.id))
        end(plan, ended("next", job="", action="check"))
        end(plan, ended("other"))
    assert notifier.runs == ["other"]


def test_a_run_that_is_not_closed_yet_is_not_told_of(plan: Plan, notifier: Notifier) -> None:
    with Recorder(plan.places.records) as recorder:
        recorder.begin_run(Run("cut-off", "job", time.time()))
        following = after(plan)
        recorder.note(ended("fine"))
        following.ended(recorder, "fine", "")
        following._tell_of_the_dead(recorder)
    assert pending(plan) == ["fine"]
    following.finish()
    assert sorted(notifier.runs) == ["cut-off", "fine"]


def test_who_is_told_of_changes_is_not_told_of_old_news(plan: Plan, notifier: Notifier) -> None:
    plan = plan._replace(notify=(channel(when=When.CHANGE),))
    partial = {"outcome": Outcome.PARTIAL, "exit_code": 3}
    for run in (ended("1", **partial), ended("2", **partial), ended("3"), ended("4")):
        end(plan, run)
    assert notifier.runs == ["1", "3"]
    noted(plan, ended("5", **partial), ended("6", **partial))
    end(plan, ended("7", **partial))
    assert notifier.runs == ["1", "3", "7", "5"]
    end(plan, ended("8"))
    assert notifier.runs == ["1", "3", "7", "5", "8"]


def test_one_alone_waits_for_channels_and_tells_what_others_leave(
    plan: Plan, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capkeep.run.aftermath.SLACK_SECONDS", 1)
    monkeypatch.setattr("capkeep.run.aftermath.LOOK_SECONDS", 0.2)
    plan = plan._replace(notify=(channel("mail", retry_seconds=2), channel()))
    notifier.silent = {"mail"}
    first = threading.Thread(target=end, args=(plan, ended("one")))
    started = time.monotonic()
    first.start()
    while not notifier.runs:
        time.sleep(0.01)
    end(plan, ended("two"))
    assert time.monotonic() - started < 3
    assert notifier.runs == ["one"]
    while len(notifier.runs) < 2:
        assert first.is_alive()
        time.sleep(0.05)
    assert first.is_alive(), "the channel that is well is told meanwhile"
    first.join(20)
    assert time.monotonic() - started < 8, "one time limit for all"
    with Recorder(plan.places.records) as recorder:
        left = {(n.run, n.channel) for n in Notices(recorder).pending(idle_at=time.time())}
    assert left == {("one", "mail"), ("two", "mail")}


def test_a_look_tells_again_what_nobody_got_and_is_soon_over(
    plan: Plan, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capkeep.run.watch.LEAST_SECONDS", 0.5)
    plan = plan._replace(watch=Watch(1, 0), notify=(channel(retry_seconds=600),))
    Path(plan.places.plan).write_text(codec.dumps(plan))
    with Recorder(plan.places.records) as recorder:
        recorder.note(ended())
        add(recorder, [Notice("one", "hook")], 0)
    notifier.silent = {"hook"}
    started = time.monotonic()
    watch(plan.places)
    assert time.monotonic() - started < 5
    assert pending(plan) == ["one"]
    notifier.silent = set()
    time.sleep(1)  # the pause between looks
    watch(plan.places)
    assert pending(plan) == []
    assert notifier.runs == ["one", "one"]


def test_looks_tell_ever_more_seldom_what_nobody_takes(plan: Plan, notifier: Notifier) -> None:
    plan = plan._replace(watch=Watch(600, 900), notify=(channel(retry_seconds=1),))
    Path(plan.places.plan).write_text(codec.dumps(plan))
    with Recorder(plan.places.records) as recorder:
        recorder.note(ended()._replace(started=time.time() - 900, ended=time.time()))
        add(recorder, [Notice("one", "hook")], 0)
        for _ in range(2):
            settle(recorder, Notice("one", "hook"), State.PENDING, "refused")
    watch(plan.places)
    assert notifier.runs == [], "twice within a quarter of an hour is enough"
    with Recorder(plan.places.records) as recorder:
        recorder.change("UPDATE run SET started = ?", [(time.time() - 1300,)])
    watch(plan.places)
    assert notifier.runs == ["one"]


@pytest.mark.parametrize("bad", [
    "NaN", "Infinity", "-9999999999", "1e300", "9" * 400, "[" * 100_000, "[" * 900 + "]" * 900,
])  # fmt: skip
@pytest.mark.parametrize("where", ["settled", "due", "wall", "steady"])
def test_a_memory_that_makes_no_sense_does_not_end_the_watch(
    plan: Plan, bad: str, where: str
) -> None:
    overdue(plan)
    path = Path(plan.places.records, MEMORY)
    text, found = re.subn(rf'"{where}":[^,}}]*', lambda _: f'"{where}":{bad}', path.read_text())
    assert found
    path.write_text(text)
    assert remembered(plan.places) == {}
    assert watch(plan.places) == ()
    assert remembered(plan.places).keys() == {("job", "backup")}


def test_a_clock_that_was_ahead_keeps_no_notice_from_anybody(plan: Plan) -> None:
    now = time.time()
    with Recorder(plan.places.records) as recorder:
        for name in ("ahead", "busy", "settled"):
            recorder.note(ended(name))
        known = Notices(recorder)
        add(recorder, [Notice("ahead", "hook"), Notice("settled", "hook")], now + 400 * 86400)
        add(recorder, [Notice("busy", "hook")], now + 600)
        settle(recorder, Notice("settled", "hook"), State.PENDING, "no")
        assert [n.run for n in known.pending(idle_at=now)] == ["ahead", "settled"]
        assert len(known.pending()) == 3


@pytest.mark.parametrize("action, heard", [
    ("backup", True), ("retention", True), ("copy", True),
    ("dry-run", False), ("retention-dry-run", False), ("copy-dry-run", False), ("init", False),
])  # fmt: skip
def test_nobody_is_told_of_what_did_nothing(plan: Plan, action: str, heard: bool) -> None:
    assert bool(concerned(plan, ended(action=action), "repo")) == heard
