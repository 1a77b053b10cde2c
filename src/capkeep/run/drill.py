"""A drill in a run: the prover restores and compares, a reader says what the live files are.

Neither trusts the other, and the runner compares what both say. Contents come as sums whose key the
runner does not know, so it learns nothing of them.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Job, Room
from capkeep.records.drills import Made, count, made
from capkeep.records.model import Step
from capkeep.records.queries import Records
from capkeep.rooms.protocol import Message
from capkeep.run import verdict
from capkeep.run.ask import Visit
from capkeep.run.attempts import LockPatience
from capkeep.run.errand import Errand
from capkeep.run.heard import Heard
from capkeep.run.manifest import Manifest, Shelf, asked
from capkeep.run.manifest import compared as compared_with_read
from capkeep.run.step import Ledger, result_of, write_down

LIVE_MOST: Final = 20_000  # files that are compared with live ones
LIVE_AT_ONCE: Final = 500  # that a reader is asked for in one visit
TEXT_AT_ONCE: Final = 256 << 10  # characters of their paths
KEPT: Final = 100  # differences in the record; the log has all
SLACK_SECONDS: Final = 300
WIPE_SECONDS: Final = 600
BUSY_SECONDS: Final = 600  # that a busy room is waited for at least
EARLIER: Final = 0.1  # seconds; the clock of files ticks less often (ktime_get_coarse_real_ts64)
SECOND: Final = 10**9  # nanoseconds
COMPARED: Final = ("kind", "mode", "uid", "gid", "size", "mtime", "content", "attributes")


def errand(
    job: Job, room: Room, reader: Room, records: Records, shelf: Shelf, seed: str, *, whole: bool
) -> Errand:
    """A drill in one of the job's repositories: of its newest snapshot, or now and then an old one."""
    assert job.drill is not None, "only jobs with drills have them"
    known = made(records, job.name, room.repository)
    every = job.drill.old_every
    turn = count(records, job.name, room.repository) + 1
    old = bool(every) and turn % every == 0 and len(known) > 1 and not seed
    chosen, _, name = seed.partition("@")
    snapshot = name or (known[0].snapshot if known else "latest")
    older = known[1:] if old else ()
    options: Message = {
        "job": job.name, "all": whole, "nonce": os.urandom(16).hex(),
        "seed": chosen or os.urandom(4).hex(),
        "snapshot": snapshot, "moment": int(started_of(snapshot, known)),
        "older": [one.snapshot for one in older],
        "moments": [str(int(one.started)) for one in older],
    }  # fmt: skip
    request: Message = {"action": "drill", "options": options}
    seconds = job.drill.timeout_seconds + SLACK_SECONDS
    return Errand("drill", room, request, seconds, live=reader, shelf=shelf)


def carry_out(ledger: Ledger, job: Job, errand: Errand) -> Step:
    """Do it and write it down; every failure becomes the step's outcome, none is raised."""
    step = ledger.recorder.begin_step(ledger.run, errand.kind, errand.room.repository)
    ledger.tell({"event": "step", "kind": step.kind, "repository": step.repository,
                 "room": errand.room.name})  # fmt: skip
    heard = Heard(None, errand.room, ledger.tell)
    heard.warn_of_missing("runner", ledger.proven)
    drill = _Drill(ledger, job, errand, heard)
    result = drill.done()
    if verdict.failure_of(result) in (Failure.INTERRUPTED, Failure.TIMEOUT):
        drill.wipe()  # whoever stops on request does it himself
    result = drill.judged(result)
    facts = drill.facts(result)
    ledger.recorder.add_detail(step, facts)
    found = verdict.plain(result)
    ledger.tell({"event": "part", "kind": "drill", "failure": found.failure, "text": found.text,
                 "facts": facts, "room": errand.room.name})  # fmt: skip
    return write_down(ledger, step, heard, result, found)


class _Drill:
    """One drill, from the question to what is known of it."""

    def __init__(self, ledger: Ledger, job: Job, errand: Errand, heard: Heard) -> None:
        self._ledger, self._job, self._errand, self._heard = ledger, job, errand, heard
        assert errand.live is not None, "a drill names a reader"
        self._live = errand.live
        self._reader = Heard(None, errand.live, ledger.tell)
        self._until = time.monotonic() + errand.seconds
        self._files: list[Message] = []
        self._differing: list[list[str]] = []
        self._live_differences = self._read_differences = self._found = 0
        self._manifest: Manifest | None = None
        self._read_same = 0
        self._foreign = 0  # files with ACLs that nobody could give
        self._counts = dict.fromkeys(("same", "changed", "gone", "unreadable", "left"), 0)

    def done(self) -> Message:
        """What the prover says, and whether a reader could be asked; raises nothing."""
        try:
            result = self.restored()
        except StepError as error:
            return result_of(error)
        try:
            if isinstance(result.get("facts"), dict):
                self.compare_live(result)
        except StepError as error:
            return {**result, **result_of(error)}
        return result

    def restored(self) -> Message:
        """What the prover says. Raises StepError."""
        request, options = self._errand.request, self._options()
        if options.get("older"):
            chosen = self._asked(self._errand.room, {**request, "action": "choose"}, self._take)
            found = chosen.get("facts")
            if verdict.failure_of(chosen) is not None:
                return chosen
            if not isinstance(found, dict):
                raise StepError(Failure.ENGINE, "the prover has chosen no snapshot")
            options |= {"snapshot": str(found.get("snapshot")), "moment": found.get("moment")}
        options |= self._read_of(str(options.get("snapshot")))
        return self._asked(self._errand.room, {**request, "options": options}, self._take)

    def _options(self) -> Message:
        options = self._errand.request["options"]
        return dict(options) if isinstance(options, dict) else {}

    def _read_of(self, snapshot: str) -> Message:
        """What the prover is asked beside all else: sums of files that a reader has read too."""
        drill, shelf = self._job.drill, self._errand.shelf
        self._manifest = shelf.of(snapshot) if shelf else None
        if self._manifest is None or drill is None:
            return {}
        options = self._options()
        whole = drill.whole or options.get("all") is True
        paths = asked(self._manifest, str(options.get("seed")), drill.sample, whole=whole)
        nonce, check = self._manifest.nonce, self._manifest.check
        return {"read": paths, "read_nonce": nonce, "read_check": check}

    def _asked(self, room: Room, request: Message, take: Callable[[Message], None]) -> Message:
        """A room's result; one that is busy with another job's drill is waited for. Raises StepError."""
        begun = False

        def listen(message: Message) -> None:
            nonlocal begun
            begun = True
            take(message)

        waits = max(BUSY_SECONDS, self._job.resources.lock_wait_seconds)
        patience = LockPatience(min(waits, max(0.0, self._until - time.monotonic())))
        while True:
            try:
                with Visit(room) as visit:
                    result = visit.ask(request, listen, self._ledger.caller, self._until)
            except StepError as error:
                result = result_of(error)
            failure = verdict.failure_of(result)
            busy = failure in (Failure.LOCKED, Failure.INTERRUPTED) and not begun
            text = f"{room.name} is busy" if busy else ""
            if not busy or not patience.wait(text, self._ledger.tell, self._ledger.caller):
                return result

    def _take(self, message: Message) -> None:
        event = message.get("event")
        if event == "restored":
            files = message.get("files")
            for file in files if isinstance(files, list) else ():
                if isinstance(file, dict) and "read" in file:
                    self._judge_read(file)
                if isinstance(file, dict) and len(self._files) < LIVE_MOST:
                    self._files.append(file)
                else:
                    self._counts["left"] += 1
            return
        if event == "difference":
            self._found += message.get("dump") is not True  # which says nothing of the repository
            self._note(str(message.get("path")), str(message.get("detail")))
        self._heard.take(message)

    def _note(self, path: str, detail: str) -> None:
        if len(self._differing) < KEPT:
            self._differing.append([path, detail])

    def compare_live(self, result: Message) -> None:
        """Ask the reader of this job for the same files. Raises StepError."""
        begun = self._begun(result)
        if not begun or not self._files:
            return
        before = int((begun - EARLIER) * 1e9)
        nonce = self._options()["nonce"]
        by_path = {str(file.get("path")): file for file in self._files}
        known = len(by_path)
        # An older snapshot may hold what is the job's no more, and no reader would tell of it.
        by_path = {path: file for path, file in by_path.items() if self._job.holds(path)}
        self._counts["left"] += known - len(by_path)
        for paths in _parts(by_path):
            self._ask_live(by_path, paths, {"nonce": nonce, "before": before})

    def _begun(self, result: Message) -> float:
        """When the backup began that made this snapshot; 0.0 where nobody knows."""
        facts = result.get("facts")
        name = str(facts.get("snapshot")) if isinstance(facts, dict) else ""
        known = made(self._ledger.recorder, self._job.name, self._errand.room.repository)
        return started_of(name, known)

    def _ask_live(self, by_path: Mapping[str, Message], paths: list[str], options: Message) -> None:
        before = options["before"]
        assert isinstance(before, int), "nanoseconds"

        def take(message: Message) -> None:
            files = message.get("files") if message.get("event") == "live" else None
            if files is None:
                self._reader.take(message)
            for live in files if isinstance(files, list) else ():
                if isinstance(live, dict) and str(live.get("path")) in by_path:
                    self._judge(by_path[str(live["path"])], live, before)

        request: Message = {"action": "sums", "options": {**options, "paths": paths}}
        result = self._asked(self._live, request, take)
        for process, proof in self._reader.proofs.items():
            self._heard.proofs[f"reader {process}"] = proof
        failure = verdict.failure_of(result)
        if failure is not None:
            raise StepError(failure, str(result.get("text")))

    def _judge(self, restored: Message, live: Message, before: int) -> None:
        kind, detail = compared(restored, live, before)
        live = _without_unset(restored, live)  # those are counted
        self._foreign += _without_foreign(restored, live) != live.get("attributes")
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if detail:
            self._live_differences += 1
            self._differs(str(restored.get("path")), detail)

    def _judge_read(self, restored: Message) -> None:
        """By what was read at backup time."""
        path = str(restored.get("path"))
        read = self._manifest.files.get(path) if self._manifest else None
        if read is None:
            return
        kind, detail = compared_with_read(restored, read)
        self._read_same += kind == "same"
        if detail:
            self._read_differences += 1
            self._differs(path, detail)

    def _differs(self, path: str, detail: str) -> None:
        self._found += 1
        self._note(path, detail)
        self._heard.take({"event": "difference", "path": path, "detail": detail})

    def wipe(self) -> None:
        """A prover that was killed could not: the next one starts with that, and this is the next."""
        request: Message = {"action": "wipe", "options": {"job": self._job.name}}
        self._until = time.monotonic() + WIPE_SECONDS
        result = self._asked(self._errand.room, request, lambda _: None)
        if verdict.failure_of(result) is not None:
            text = f"what was restored may still be there: {result.get('text')}"
            self._heard.take({"event": "warning", "text": text})

    def judged(self, result: Message) -> Message:
        """The result, with what the live files showed."""
        failure = verdict.failure_of(result)
        same = self._counts["same"]
        if failure not in (None, Failure.DAMAGED) and self._found:
            # What was found stays true, and must keep what is older from being removed.
            when = "" if failure is Failure.DUMP else " before the drill ended"
            text = f"{self._found} differences were found{when}: {result.get('text')}"
            return {**result, "failure": Failure.DAMAGED, "text": text}
        if failure is None and (text := self._what_differs()):
            return {**result, "failure": Failure.DAMAGED, "text": text}
        more = ""
        if same or self._counts["changed"]:
            more += f"; {same} are as the live files"
            changed = self._counts["changed"] + self._counts["gone"]
            more += f" ({changed} have changed since)" if changed else ""
        more += f"; {self._read_same} are as read at backup time" if self._read_same else ""
        if failure in (None, Failure.DUMP) and more:
            return {**result, "text": f"{result.get('text')}{more}"}
        return result

    def _what_differs(self) -> str:
        """What the prover alone could not find, in words."""
        sides = (
            (self._live_differences, self._counts["same"],
             "not as the live ones, which have not changed since"),
            (self._read_differences, self._read_same, "not as they were read at backup time"),
        )  # fmt: skip
        found = (f"{n} of {n + same} files are {words}" for n, same, words in sides if n)
        return "; ".join(found)

    def facts(self, result: Message) -> Message:
        """For the record."""
        said = result.get("facts")
        found: Message = dict(said) if isinstance(said, dict) else {}
        live = {k: v for k, v in self._counts.items() if v}
        if self._foreign:
            apart = found.get("apart")
            known: Message = dict(apart) if isinstance(apart, dict) else {}
            before = known.get("attributes")
            known["attributes"] = self._foreign + (before if isinstance(before, int) else 0)
            found["apart"] = known
        old = bool(self._options().get("older"))
        return {**found, "old": old, "live": live, "live_differing": self._live_differences,
                "manifest": self._read_same, "manifest_differing": self._read_differences,
                "differences": self._differing}  # fmt: skip


def _parts(paths: Iterable[str]) -> Iterable[list[str]]:
    """So many at once as a message can hold and a reader may be asked for."""
    part: list[str] = []
    size = 0
    for path in paths:
        length = len(json.dumps(path))  # what is not ASCII is written in six characters
        if part and (len(part) >= LIVE_AT_ONCE or size + length > TEXT_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(path)
        size += length
    if part:
        yield part


def started_of(snapshot: str, known: Iterable[Made]) -> float:
    """When the backup of that snapshot began: engines may tell the beginning of a name alone."""
    for one in known:
        if one.snapshot and (
            snapshot.startswith(one.snapshot) or (snapshot and one.snapshot.startswith(snapshot))
        ):
            return one.started
    return 0.0


def compared(restored: Message, live: Message, before: int) -> tuple[str, str]:
    """What becomes of a file that was restored, and the difference in words, if it is one.

    A live file has not changed since the backup began if its inode has not (ctime), and nothing has
    been put in its place: then its size and times are the same, or no directory above has changed.
    """
    if "missing" in live:
        return ("gone" if live.get("missing") == "gone" else "unreadable"), ""
    since = live.get("ctime")
    if not isinstance(since, int) or since > before:
        return "changed", ""
    live = _without_unset(restored, live)
    if restored.get("whole_seconds") is True and isinstance(moment := live.get("mtime"), int):
        live = {**live, "mtime": moment // SECOND * SECOND}
    same = ("kind", "size", "mtime")
    alike = all(restored[k] == live.get(k) for k in same if k in restored)
    above = live.get("above")
    if not alike and (not isinstance(above, int) or above > before):
        return "changed", ""
    live = {**live, "attributes": _without_foreign(restored, live)}
    words = [
        _words(name, restored.get(name), live.get(name))
        for name in COMPARED
        if name in restored and restored[name] != live.get(name)
    ]
    return ("different", "; ".join(words)) if words else ("same", "")


def _without_unset(restored: Message, live: Message) -> Message:
    """The live file but for attributes that the prover could not give, and has told of."""
    unset, had = restored.get("without"), live.get("attributes")
    if not (isinstance(unset, list) and isinstance(had, dict)):
        return live
    return {**live, "attributes": {k: v for k, v in had.items() if k not in unset}}


def _without_foreign(restored: Message, live: Message) -> object:
    """The live file's attributes but for ACLs that no namespace can give, and that are missing."""
    had, foreign, given = live.get("attributes"), live.get("foreign"), restored.get("attributes")
    if not (isinstance(had, dict) and isinstance(foreign, list) and isinstance(given, dict)):
        return had
    return {k: v for k, v in had.items() if k in given or k not in foreign}


def _words(name: str, restored: object, live: object) -> str:
    """Both sides, where they mean anything to people: sums of contents do not."""
    if name == "content":
        return "content differs"
    if name == "attributes":
        sides = [side if isinstance(side, dict) else {} for side in (restored, live)]
        names = sorted(
            k for k in sides[0].keys() | sides[1].keys() if sides[0].get(k) != sides[1].get(k)
        )
        where = (f"{name} {_side(name, *sides)}" for name in names)
        return "attributes: " + ", ".join(where)
    if name == "mode" and isinstance(restored, int) and isinstance(live, int):
        return f"mode {restored:04o}, live {live:04o}"
    return f"{name} {restored}, live {live}"


def _side(name: str, restored: Mapping[str, object], live: Mapping[str, object]) -> str:
    if name in restored:
        return "differs" if name in live else "is there, live not"
    return "is missing"
