"""One process that starts scheduled runs where systemd has no timers for them, as in a container.

It keeps the doors open, starts `capkeep due` for each run when its time has come, and looks every
now and then for runs that did not happen. What it knows of the past it takes from the record, so it
may be ended and started at any moment: what was due meanwhile is made up for once.
"""

import contextlib
import os
import selectors
import signal
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from capkeep import calendars
from capkeep.errors import CapkeepError, RefusedError
from capkeep.kernel.process import Child, become_user, python, spawn
from capkeep.plan.load import load_plan
from capkeep.plan.model import Places, Plan, Starter
from capkeep.plan.timetable import Timetable, whole
from capkeep.records.model import Outcome
from capkeep.records.reader import RecordReader
from capkeep.run.watch import remembered

LONGEST_SLEEP: Final = 30.0  # seconds, after which the clock and the plan are looked at again
STOP_SECONDS: Final = 60.0  # for runs to end, once they were asked to
DOORS_SECONDS: Final = 30.0
CLOCK_TOLERANCE: Final = 60.0
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_NONE: Final = (0, 0)  # the stamp of no plan

Event = dict[str, object]


class _Entry:
    """One timetable, what of it is done, and its run if one is under way."""

    def __init__(self, table: Timetable, last: float) -> None:
        self.table = table
        self.calendar = tuple(map(calendars.parse, table.calendar))
        self.last = last  # the time up to which all is done
        self.delay = stable_delay(table)
        self.child: Child | None = None

    def due(self) -> float | None:
        """When its next run begins."""
        found = calendars.upcoming(self.calendar, self.last, 1)
        return found[0] + self.delay if found else None

    def settle(self, now: float) -> None:
        """One run stands for everything that was due until now."""
        found = calendars.latest(self.calendar, now - self.delay)
        self.last = max(self.last, found if found is not None else 0)


def stable_delay(table: Timetable) -> int:
    """Seconds within the spread: on one host always the same, on many hosts different ones."""
    if not table.spread_seconds:
        return 0
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            machine = file.read().strip()
    except OSError:
        machine = ""
    name = f"{machine}/{socket.gethostname()}/{table.job}/{table.kind}"
    return zlib.crc32(name.encode()) % (table.spread_seconds + 1)


class Scheduler:
    """Use as a context: leaving it ends all that it has started."""

    def __init__(
        self, places: Places, options: Sequence[str], tell: Callable[[Event], None]
    ) -> None:
        """`options` are those of this command line, for the commands that it starts.

        Raises RefusedError where there is no plan, or where systemd has timers.
        """
        self._places = places
        self._options = tuple(options)
        self._tell = tell
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._doors: Child | None = None
        self._watch: Child | None = None
        self._watched = 0.0  # when the next look is due, by the steady clock
        self._signals = 0
        self._stamp = _NONE
        self.plan = _load(places)
        self._selector = selectors.DefaultSelector()
        self._woken, self._waking = socket.socketpair()
        for end in (self._woken, self._waking):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_runs()
        for child in (self._watch, self._doors):
            if child is not None:
                with contextlib.suppress(TimeoutError):
                    child.kill(grace=DOORS_SECONDS)
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._woken.close()
        self._waking.close()

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP."""
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._signals += 1

    def serve(self) -> None:
        """Start runs when their time has come, until asked to end."""
        self._take_plan()
        # What is made up for first need not be looked for.
        self._watched = time.monotonic() + self.plan.watch.every_seconds
        while not self._signals:
            self._follow_plan()
            now = time.time()
            for entry in self._entries.values():
                self._see_to(entry, now)
            self._look_for_missed()
            self._sleep()

    # -- the plan

    def _take_plan(self) -> None:
        self._stamp = _stamp(self._places.plan)
        tables = {(t.job, t.kind): t for t in whole(self.plan)}
        for key in self._entries.keys() - tables.keys():
            if self._entries[key].child is None:
                del self._entries[key]
        for key, table in tables.items():
            known = self._entries.get(key)
            if known is None or known.table.calendar != table.calendar:
                entry = _Entry(table, self._done_until(table))
                if known is not None:
                    entry.child = known.child
                self._entries[key] = entry
            else:
                known.table, known.delay = table, stable_delay(table)
            self._tell_next(self._entries[key])
        if not tables:
            self._tell({"event": "idle", "text": "no job has a schedule"})
        self._open_doors()

    def _follow_plan(self) -> None:
        """Take over a plan that `apply` has written since; keep the old one if it is not usable."""
        stamp = _stamp(self._places.plan)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.plan = _load(self._places)
            self._take_plan()
        except CapkeepError as error:
            self._tell({"event": "warning", "text": f"the new plan is not used: {error}"})
        except OSError as error:
            self._stamp = _NONE  # of what may pass: look again
            self._tell({"event": "warning", "text": f"the new plan is not used yet: {error}"})

    def _done_until(self, table: Timetable) -> float:
        """Since when a run may be due: the last one, or else when the schedule was made."""
        now = time.time()
        applied = min(os.stat(self._places.plan).st_mtime, now)
        known = remembered(self._places).get((table.job, table.kind))
        if known is None or known.calendar != table.calendar:
            return applied
        try:
            with RecordReader(self._places.records) as records:
                runs = records.last_of(table.job, (table.kind,), 100)
        except CapkeepError as error:
            self._tell({"event": "warning", "text": str(error)})
            return min(known.settled, now)
        began = [r.started for r in runs if r.outcome is not Outcome.MISSED and r.started <= now]
        return max(began, default=min(known.settled, now))

    # -- runs

    def _see_to(self, entry: _Entry, now: float) -> None:
        if entry.last > now + CLOCK_TOLERANCE:
            entry.last = now  # the clock was set back
        due = entry.due()
        if due is None or due > now:
            return
        entry.settle(now)
        table = entry.table
        if entry.child is not None:
            self._tell(
                _about(table, "still-running", text="the run before stands for this one too")
            )
            return
        kind = () if table.kind == "backup" else ("--kind", table.kind)
        try:
            self._open_doors()
            entry.child = self._start(("due", table.job, *kind))
        except OSError as error:
            self._tell(_about(table, "warning", text=f"it cannot be started: {error}"))
            return
        self._selector.register(entry.child, selectors.EVENT_READ, entry)
        self._tell(_about(table, "start", due=due - entry.delay))

    def _open_doors(self) -> None:
        """Keep the doors open, unless somebody else does: a run then need not open them itself."""
        if self._doors is not None and self._doors.poll() is None:
            return
        if not os.path.exists(self._places.runner_socket):
            self._doors = self._start(("doors",))
            deadline = time.monotonic() + DOORS_SECONDS
            while not os.path.exists(self._places.runner_socket) and self._doors.poll() is None:
                if time.monotonic() > deadline:
                    break  # the run says what is wrong
                time.sleep(0.02)

    def _look_for_missed(self) -> None:
        """Let the runner's user look, who alone writes the record."""
        now = time.monotonic()
        if self._watch is not None or now < self._watched:
            return
        self._watched = now + self.plan.watch.every_seconds
        runner = self.plan.runner.grant
        prepare = None
        if os.geteuid() != runner.uid:
            prepare = partial(become_user, runner.uid, runner.gid)  # who may read the plan
        try:
            self._watch = self._start(("watch",), prepare)
        except OSError as error:
            self._tell({"event": "warning", "text": f"nobody looks for missed runs: {error}"})
            return
        self._selector.register(self._watch, selectors.EVENT_READ, None)

    def _start(self, words: Sequence[str], prepare: Callable[[], None] | None = None) -> Child:
        plan = self.plan
        program = (plan.interpreter, *python(plan.package, "capkeep.__main__"))
        own = {k: v for k, v in os.environ.items() if k.startswith("XDG_") or k in ("HOME", "TZ")}
        return spawn(
            [*program, *self._options, *words], env={**ENVIRONMENT, **own}, stdout=1, stderr=2,
            prepare=prepare,
        )  # fmt: skip

    def _sleep(self) -> None:
        """Until something is to be done, or a process has ended, or a signal came."""
        now = time.time()
        times = [d for e in self._entries.values() if (d := e.due()) is not None]
        until = min([LONGEST_SLEEP, *(d - now for d in times)])
        until = min(until, self._watched - time.monotonic()) if self._watch is None else until
        for key, _ in self._selector.select(max(0.0, until)):
            if key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            else:
                self._reap(key.fileobj, key.data)

    def _reap(self, child: object, entry: object) -> None:
        assert isinstance(child, Child)
        self._selector.unregister(child)
        code = child.poll()
        if not isinstance(entry, _Entry):
            self._watch = None
            return
        entry.child = None
        for known in self._entries.values():
            if known.child is child:
                known.child = None
        self._tell(_about(entry.table, "end", exit_code=code))
        self._tell_next(entry)

    def _end_runs(self) -> None:
        """Ask the runs under way to stop, so that they end with a record and without a lock."""
        running = [e for e in self._entries.values() if e.child is not None]
        for entry in running:
            self._tell(_about(entry.table, "stopping"))
            assert entry.child is not None
            entry.child.send_signal(signal.SIGINT)
        asked, deadline = self._signals, time.monotonic() + STOP_SECONDS
        for entry in running:
            assert entry.child is not None
            while entry.child.poll() is None:
                if time.monotonic() > deadline or self._signals > asked:
                    entry.child.kill()  # the run itself belongs to the runner, and ends with the doors
                    break
                time.sleep(0.05)
            self._tell(_about(entry.table, "end", exit_code=entry.child.poll()))

    def _tell_next(self, entry: _Entry) -> None:
        due = entry.due()
        if due is not None:
            self._tell(_about(entry.table, "next", at=due))


def _about(table: Timetable, event: str, **more: object) -> Event:
    return {"event": event, "job": table.job, "kind": table.kind, **more}


def _load(places: Places) -> Plan:
    plan = load_plan(places)
    if plan.starter is Starter.SYSTEMD:
        raise RefusedError(
            "systemd has timers for the schedules of this host",
            hint=f"`systemctl list-timers '{plan.name}-*'` shows them",
        )
    return plan


def _stamp(path: str) -> tuple[int, int]:
    """Changes whenever the file is replaced."""
    try:
        state = os.stat(path)
    except OSError:
        return _NONE
    return (state.st_ino, state.st_mtime_ns)
