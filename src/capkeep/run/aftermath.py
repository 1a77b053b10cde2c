"""What follows a run: its stamp, metrics, and whoever is to be told of it.

Nothing of this may fail or delay a backup. Channels are asked while the run ends; what they answer is
waited for when the caller has had his own answer.
"""

import fcntl
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from capkeep.plan.model import Notify, NotifyKind, Plan, RoomKind, When
from capkeep.records.model import Outcome, Run
from capkeep.rooms.protocol import Channel, Message, ProtocolError, encode
from capkeep.run.errand import AFTER_PULLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.records.notices import Notice
    from capkeep.records.queries import Records
    from capkeep.records.store import Recorder

WELL: Final = frozenset((Outcome.COMPLETE, Outcome.SKIPPED, None))  # None: it has not ended
QUIET: Final = ("init", "safety")  # of which nobody is told, nor of any dry run
DRY: Final = "dry-run"  # how their actions end
SEND_SECONDS: Final = 5  # for handing a report to the notifier
SLACK_SECONDS: Final = 90  # a notifier takes so long at most for one attempt and its start
BETWEEN_SECONDS: Final = 2  # that the next run waits at most for the signal of the one before
OLDEST: Final = 7 * 24 * 3600  # seconds; what nobody has got by then is not told any more
AT_ONCE: Final = 10  # reports that are under way; a notifier has its door for 16
RECENT: Final = 20  # runs that are looked at for one that died
LOOK_SECONDS: Final = 3.0  # between two looks at what others have left to be told
LONGEST: Final = 3600.0  # seconds that anybody waits for channels, however patient they are
ENDED: Final = "the notifier ended without a word"
LOG_BYTES: Final = 64 << 20


class Visit:
    """A notifier under way with one report, not waited for."""

    def __init__(
        self, plan: Plan, what: str, channels: list[str], report: Message, log: int = -1
    ) -> None:
        """Raises OSError when nobody opens the door."""
        room = next(r for r in plan.rooms if r.kind is RoomKind.NOTIFIER)
        assert room.door is not None, "the notifier has a door"
        self.channels = set(channels)
        self.run = ""
        self.over = False  # nothing more will be answered
        self.error = "there was no answer in time"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(SEND_SECONDS)
            sock.connect(room.door.path)
            request: Message = {
                "action": "tell", "what": what, "channels": channels, "report": report,
            }  # fmt: skip
            data = encode(request)
            # The descriptor goes with the first byte.
            socket.send_fds(sock, [data[:1]], [log] if log >= 0 else [])
            sock.sendall(data[1:])
        except OSError:
            sock.close()
            raise
        self._channel = Channel(sock)

    def fileno(self) -> int:
        """For select(2)."""
        return self._channel.fileno()

    def heard(self) -> Iterator[tuple[str, bool, str]]:
        """Each channel that has an answer by now, whether it was told, and what was said."""
        self._channel.sock.settimeout(0)
        try:
            while self.channels:
                message = self._channel.receive()
                if message is None or message.get("event") == "result":
                    self.error = str((message or {}).get("text") or ENDED)
                    break
                name = str(message.get("channel"))
                if message.get("event") == "told" and name in self.channels:
                    self.channels.discard(name)
                    yield name, message.get("ok") is True, str(message.get("text"))
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self.error = f"the notifier: {error}"
        self.over = True

    def given_up(self) -> Iterator[tuple[str, bool, str]]:
        """Each channel that has had no answer, and will have none any more."""
        self.leave()
        self.over = True
        for name in sorted(self.channels):
            yield name, False, self.error

    def answers(self, deadline: float) -> Iterator[tuple[str, bool, str]]:
        """Each channel, whether it was told, and what was said; every one of them once."""
        while not self.over and (left := deadline - time.monotonic()) > 0:
            select.select([self], [], [], left)
            yield from self.heard()
        yield from self.given_up()

    def leave(self) -> None:
        """Whatever comes of it."""
        self._channel.close()


class Aftermath:
    """Of all runs of one caller."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._begun: list[Visit] = []
        self._told: list[Visit] = []
        self._waiting: list[tuple[str, list[Notify]]] = []  # run, and who is to be told of it
        self._ran = False
        self._tried: set[tuple[str, str]] = set()  # run and channel
        self._down: set[str] = set()  # channels that could not be told of something
        self._seldom = False  # what nobody got is told in growing pauses
        self._unwritten = False  # runs have ended since metrics were written

    def use(self, plan: Plan) -> None:
        """Whatever is told is told by this plan."""
        self._plan = plan

    def started(self, recorder: "Recorder", run: Run, repository: str) -> None:
        """Signal that a run has begun to those who measure it, and tell of the one before it."""
        with _by_itself():
            self._hear_starts(BETWEEN_SECONDS)
        with _by_itself():
            self._signal_start(run, repository)
        with _by_itself():
            self._send_waiting(recorder)
        with _by_itself():
            self._write_metrics()

    def ended(self, recorder: "Recorder", run_id: str, repository: str) -> None:
        """The run is in the record: stamp it, and note who is to be told of it.

        Whatever takes time is left for when the caller has had his answer.
        """
        with _by_itself():
            run = recorder.run(run_id)
            if self._plan is None or run is None:
                return
            self._ran = self._unwritten = True
            with _by_itself():
                self._stamp(run)
            self._note(recorder, run, repository, concerned(self._plan, run, repository))

    def finish(self, seconds: float = LONGEST, *, again: bool = False) -> None:
        """The caller has gone: hear for so long what became of it all, and tell what nobody got.

        With `again` do so too if no run has ended, ever more seldom: a server that refuses a login
        must not be asked all night.
        """
        self._seldom = again
        try:
            with _by_itself():
                self._write_metrics()
            with _by_itself():
                if self._plan is not None and self._plan.notify and (self._ran or again):
                    self._hear(seconds)
            with _by_itself():
                self._write_metrics()
        finally:
            for visit in (*self._begun, *self._told):
                visit.leave()

    def test(self, names: list[str]) -> Iterator[tuple[str, bool, str]]:
        """Tell each channel something harmless. Raises OSError when nobody opens the door."""
        assert self._plan is not None, "a plan was given"
        host = socket.gethostname()
        title = f"[capkeep] test from {host}"
        text = f"This is a test of capkeep's notifications from {host}. Nothing is wrong."
        page = f"<!DOCTYPE html><html><body><p>{text}</p></body></html>"
        report: Message = {"title": title, "short": text, "text": text, "html": page, "run": {}}
        visit = Visit(self._plan, "test", names, report)
        yield from visit.answers(time.monotonic() + SLACK_SECONDS * len(names))

    # -- parts

    def _stamp(self, run: Run) -> None:
        if self._plan and run.job and run.action == "backup" and run.outcome is Outcome.COMPLETE:
            from capkeep.run.marks import stamp

            stamp(self._plan.places, run)

    def _signal_start(self, run: Run, repository: str) -> None:
        if self._plan is None:
            return
        channels = [n.name for n in concerned(self._plan, run, repository)
                    if n.kind is NotifyKind.HEALTHCHECKS]  # fmt: skip
        if channels:
            what = f"{run.action} of {run.job}" if run.job else run.action
            report: Message = {
                "text": f"{what} has begun",
                "run": {"id": run.id, "job": run.job, "action": run.action},
            }
            self._begun.append(Visit(self._plan, "start", channels, report))

    def _hear_starts(self, seconds: float) -> None:
        """The signal of a start must not arrive after that of the end."""
        deadline = time.monotonic() + seconds
        for visit in self._begun:
            for _ in visit.answers(deadline):
                pass
        self._begun = []

    def _note(
        self, recorder: "Recorder", run: Run, repository: str, channels: list[Notify]
    ) -> None:
        """From now on those of the channels that want it are to be told, whatever becomes of us."""
        due = [n for n in channels if is_due(recorder, n, run, repository)]
        if due:
            from capkeep.records import notices

            new = [notices.Notice(run.id, n.name, alike(run, repository)) for n in due]
            notices.add(recorder, new, self._busy_until(due))
            self._waiting.append((run.id, due))

    def _send_waiting(self, recorder: "Recorder") -> None:
        """Hand over what has been noted."""
        waiting, self._waiting = self._waiting, []
        for run_id, channels in waiting:
            run = recorder.run(run_id)
            if run is not None:
                self._send(recorder, run, channels)

    def _busy_until(self, channels: list[Notify]) -> float:
        """When a notifier is done with them at the latest (wall clock)."""
        patience = max(n.retry_seconds for n in channels)
        return time.time() + patience + SLACK_SECONDS * len(channels)

    def _send(self, recorder: "Recorder", run: Run, channels: list[Notify]) -> None:
        """Hand a report over; who could not be asked is told of with the next run."""
        from capkeep.records import notices
        from capkeep.report.notice import plain_report
        from capkeep.report.story import from_record

        assert self._plan is not None
        report = plain_report(from_record(recorder, run), socket.gethostname())
        log = _log(self._plan, run.id) if any(n.log for n in channels) else -1
        try:
            visit = Visit(self._plan, "end", [n.name for n in channels], report, log)
        except OSError as error:
            for n in channels:
                notice = notices.Notice(run.id, n.name)
                text = f"the notifier: {error}"
                notices.settle(recorder, notice, notices.State.PENDING, text)
            return
        finally:
            if log >= 0:
                os.close(log)
        visit.run = run.id
        self._told.append(visit)

    def _hear(self, seconds: float) -> None:
        """Tell whatever nobody got, if nobody else is at it: one process at a time waits for answers.

        What others leave while one is at it is told by that one.
        """
        from capkeep.records.store import Recorder

        assert self._plan is not None
        patience = max(n.retry_seconds for n in self._plan.notify)
        patience += SLACK_SECONDS * len(self._plan.notify)
        deadline = time.monotonic() + min(patience, seconds)
        with Recorder(self._plan.places.records) as recorder:
            with _by_itself():
                self._tell_of_the_dead(recorder)
            self._leave_waiting(recorder)
            while True:
                with _alone(self._plan.places.records) as alone:
                    until = deadline if alone else time.monotonic() + BETWEEN_SECONDS
                    self._hear_starts(min(SLACK_SECONDS, until - time.monotonic()))
                    self._tell_pending(recorder, until, more=alone)
                # Something may have been left since the last look.
                if not alone or time.monotonic() > deadline or not self._next(recorder):
                    break

    def _leave_waiting(self, recorder: "Recorder") -> None:
        """What was noted here may be told by anybody from now on."""
        from capkeep.records import notices

        for run_id, channels in self._waiting:
            noted = [notices.Notice(run_id, n.name) for n in channels]
            notices.take(recorder, noted, notices.NOBODY)
        self._waiting = []

    def _tell_pending(self, recorder: "Recorder", deadline: float, *, more: bool) -> None:
        """Hear what came of all that is under way; with `more` tell what else nobody got."""
        while (left := deadline - time.monotonic()) > 0:
            while more and len(self._told) < AT_ONCE and (found := self._next(recorder)):
                self._again(recorder, found)
            if not self._told:
                return
            for visit in select.select(self._told, [], [], min(LOOK_SECONDS, left))[0]:
                self._settle(recorder, visit, visit.heard())
                if visit.over:
                    self._end_visit(recorder, visit)
        for visit in list(self._told):
            self._end_visit(recorder, visit)

    def _end_visit(self, recorder: "Recorder", visit: Visit) -> None:
        self._told.remove(visit)
        self._settle(recorder, visit, visit.given_up())

    def _next(self, recorder: "Recorder") -> "list[Notice]":
        """Of the newest run that somebody is still to be told of: whom nobody is telling anything."""
        from capkeep.records import notices

        busy = self._down.union(*(visit.channels for visit in self._told))
        free = []
        idle = notices.Notices(recorder).pending(idle_at=time.time())
        for notice in sorted(idle, key=lambda n: n.started, reverse=True):
            if (notice.run, notice.channel) in self._tried or self._too_soon(notice):
                continue
            if why := self._outlived(recorder, notice):
                notices.settle(recorder, notice, notices.State.DROPPED, why)
            elif notice.channel not in busy:
                free.append(notice)
        return [n for n in free if n.run == free[0].run]

    def _too_soon(self, notice: "Notice") -> bool:
        """The pause before the next attempt is as long as all before it."""
        if not self._seldom or self._plan is None:
            return False
        pause = self._plan.watch.every_seconds * 2.0 ** (notice.attempts - 1)
        return notice.attempts > 0 and 0 <= time.time() - notice.started < pause

    def _tell_of_the_dead(self, recorder: "Recorder") -> None:
        """Note what was not noted because a runner, or the watch, was killed before."""
        from capkeep.records.life import is_alive
        from capkeep.records.notices import Notices

        assert self._plan is not None
        known = Notices(recorder)
        places = self._plan.places
        # Of what was before, a channel that is new was never to be told.
        since = max(time.time() - OLDEST, os.stat(places.plan).st_mtime)
        for run in reversed(recorder.last_runs(limit=RECENT)):
            silent = run.outcome in WELL or run.started < since or known.knows(run.id)
            if silent or is_alive(places.records, run):
                continue
            steps = recorder.steps(run.id)
            repository = steps[0].repository if steps else ""
            # Healthchecks has been told of a newer run already.
            channels = [
                n
                for n in concerned(self._plan, run, repository)
                if n.kind is not NotifyKind.HEALTHCHECKS
            ]
            self._note(recorder, run, repository, channels)

    def _settle(
        self, recorder: "Recorder", visit: Visit, answers: Iterator[tuple[str, bool, str]]
    ) -> None:
        from capkeep.records import notices

        for name, ok, text in answers:
            state = notices.State.DELIVERED if ok else notices.State.PENDING
            notices.settle(recorder, notices.Notice(visit.run, name), state, text)
            self._down |= set() if ok else {name}
            self._unwritten = True  # who could not be told

    def _outlived(self, recorder: "Recorder", notice: "Notice") -> str:
        """Why nobody needs to be told of that run any more; "" if somebody does."""
        assert self._plan is not None
        channel = next((n for n in self._plan.notify if n.name == notice.channel), None)
        if channel is None:
            return "its channel is gone"
        if time.time() - notice.started > OLDEST:
            return f"too old; last: {notice.text}"
        newest = recorder.last_runs(notice.job, 1)
        if channel.kind is NotifyKind.HEALTHCHECKS and newest and newest[0].id != notice.run:
            return "a newer run was told of"
        return ""

    def _again(self, recorder: "Recorder", waiting: "list[Notice]") -> None:
        from capkeep.records import notices

        assert self._plan is not None
        self._tried |= {(n.run, n.channel) for n in waiting}
        run = recorder.run(waiting[0].run)
        names = {n.channel for n in waiting}
        channels = [n for n in self._plan.notify if n.name in names]
        if run is not None and channels:
            notices.take(recorder, waiting, self._busy_until(channels))
            self._send(recorder, run, channels)

    def _write_metrics(self) -> None:
        """As long as a run has ended since they were written."""
        if self._unwritten and self._plan is not None and self._plan.metrics:
            from capkeep.run.marks import write_metrics

            self._unwritten = False
            write_metrics(self._plan)


def concerned(plan: Plan, run: Run, repository: str) -> list[Notify]:
    """The channels that a run is about."""
    if run.action in QUIET or run.action.endswith(DRY):
        return []
    if run.job:
        return [n for n in plan.notify if run.job in n.jobs]
    if run.action == AFTER_PULLS:
        pulled = {job.name for job in plan.jobs if job.target}
        return [n for n in plan.notify if pulled & {*n.jobs}]
    return [n for n in plan.notify if repository in n.repositories]


def alike(run: Run, repository: str) -> str:
    """Equal for runs that ended in the same way, whatever the numbers in their texts."""
    text = "".join("0" if c.isdigit() else c for c in run.text)
    kept = text.replace("00", "0")[:500] if run.outcome is not Outcome.COMPLETE else ""
    return f"{'' if run.job else repository}\n{run.outcome}\n{run.failure or ''}\n{kept}"


def is_due(records: "Records", channel: Notify, run: Run, repository: str) -> bool:
    """Whether a channel is told of an ended run. A partial one is a failure to every channel."""
    if channel.when is When.ALWAYS:
        return True
    if channel.when is When.FAILURE:
        return run.outcome is not Outcome.COMPLETE
    from capkeep.records.notices import Notices

    place = "" if run.job else repository
    before = Notices(records).alike_before(channel.name, run, place)
    if before is None:
        return run.outcome is not Outcome.COMPLETE
    return before != alike(run, repository)


def _log(plan: Plan, run_id: str) -> int:
    """The log as people read it, in memory, open for reading from its beginning."""
    from capkeep.records.logs import read_log
    from capkeep.report.history import log_line

    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    try:
        size = 0
        with open(fd, "wb", closefd=False) as file, suppress(OSError):
            for message in read_log(plan.places.log, run_id):
                line = log_line(message).encode(errors="backslashreplace") + b"\n"
                size += len(line)
                if size > LOG_BYTES:
                    file.write(f"… the rest: capkeep log {run_id}\n".encode())
                    break
                file.write(line)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def _alone(records: str) -> Iterator[bool]:
    """Whether no other process holds this meanwhile (flock(2)); the kernel frees it. Raises OSError."""
    fd = os.open(f"{records}/telling", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


@contextmanager
def _by_itself() -> Iterator[None]:
    """No backup fails for the sake of what is done in here, nor does anything else that follows it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        print(f"capkeep: what follows a run: {type(error).__name__}: {error}", file=sys.stderr)
