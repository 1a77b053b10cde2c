"""What a keeper does for a job after its backup: compare, check, and remove what need not stay.

One visit, and as much of it at a time as can be. The rules of retention are in the keeper's own part
of the plan: whoever asks it can say which snapshots are complete, and nothing about how many stay.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from capkeep.engines.base import Change, DiffTotals, Snapshot
from capkeep.engines.retention import Decision, Held, decide, held, newer_than_now, oldest_first
from capkeep.errors import Failure, StepError
from capkeep.kernel.clock import is_kept_right
from capkeep.plan.model import Job, job_tag, stream_tag
from capkeep.rooms import losses
from capkeep.rooms.base import EngineRoom, option, option_list
from capkeep.rooms.calls import Caller, done, pass_on
from capkeep.rooms.difference import Difference
from capkeep.rooms.listing import remember, remembered
from capkeep.rooms.protocol import Message, ProtocolError
from capkeep.rooms.together import Together

PARTS: Final = ("diff", "check", "retention")
PART_CHARACTERS: Final = frozenset("0123456789./%KMGTkmgt")
OUTPUT_LIMIT: Final = 64 << 20  # bytes of a list of snapshots
TAIL: Final = 40
LOCK_SECONDS: Final = 600  # an engine's lock counts for so long at least after its last refresh
AT_ONCE: Final = 1000  # snapshots that one visit removes at most


def read_data_of(request: Message) -> str:
    """How much data a check reads. Raises ProtocolError."""
    part = option(request, "read_data", default="")
    if part != "all" and not PART_CHARACTERS.issuperset(part):
        raise ProtocolError("read_data must be a percentage, a size or n/t")
    return part


def _snapshot_id(request: Message, name: str) -> str:
    text = option(request, name, default="")
    if len(text) > 64 or not text or set(text) - set("0123456789abcdef"):
        raise ProtocolError(f"{name} must be a snapshot's id")
    return text


def upkeep(room: EngineRoom, request: Message) -> Message:
    """The parts that are asked for; each is told when it has ended."""
    parts = option_list(request, "parts")
    if not parts or set(parts) - set(PARTS):
        raise ProtocolError(f"parts must be of {', '.join(PARTS)}")
    job = next((j for j in room.brief.jobs if j.name == option(request, "job", default="")), None)
    if job is None:
        raise ProtocolError("no such job keeps its snapshots here")
    caller = Caller(room)
    with Together(caller) as together:
        visit = _Visit(caller, together, job, request, parts)
        room.await_vault()
        visit.begin()
        together.run()
    engine = caller.name()
    visit.commit()
    return done(caller, "", parts=list(parts), engine=engine)


class _Visit:
    """The parts of one visit, under way."""

    def __init__(
        self, caller: Caller, together: Together, job: Job, request: Message, parts: tuple[str, ...]
    ) -> None:
        self._caller, self._together, self._job = caller, together, job
        self._parts = parts
        self._read_data = read_data_of(request)
        self._complete = frozenset(option_list(request, "complete"))
        self._suspect = option(request, "suspect", default=False)
        self._dry_run = option(request, "dry_run", default=False)
        self._pair = ("", "")
        if "diff" in parts:
            self._pair = (_snapshot_id(request, "first"), _snapshot_id(request, "second"))
        if "retention" in parts and job.retention is None:
            raise ProtocolError("the job keeps all of its snapshots")
        self._checking = "check" in parts
        self._quick = option(request, "quick", default=False)
        self._new = self._just_made(request)
        self._decisions: tuple[Decision, ...] | None = None
        self._started = False
        self._locked_out = False
        self._forgotten: float | None = None  # when the engine had decided what to remove
        self._facts: Message = {}
        self._words: dict[str, str] = {}  # what the engine calls snapshots, where not by their ids
        self._known = losses.recall(caller)
        self._recorded = option_list(request, "recorded")  # by the word of readers
        self._made = tuple(filter(losses.is_whole_id, self._recorded))
        self._lost: tuple[str, ...] | None = None  # when some were missing: those that are gone

    def _just_made(self, request: Message) -> tuple[Snapshot, ...]:
        """The snapshot that this visit follows, as the engine would list it.

        Its name is a vault's word, not the engine's, which could name another job's.
        """
        if not option(request, "made", default=""):
            return ()
        when = datetime.fromtimestamp(option(request, "made_at", default=0), UTC).astimezone()
        job, name = self._job, _snapshot_id(request, "made")
        paths = tuple(sorted(job.include))
        return (Snapshot(name, when.isoformat(), job.host, "", paths, job.tags),)

    def begin(self) -> None:
        """Start what waits for nothing.

        Where it is known what is to be removed, the engine that decides about the data is started
        beside the check: the vault holds removals back, and both see everything. Its lock keeps all
        others away for both.
        """
        if not self._caller.engine.traits.named_by_id:
            self._list_first()
            return
        names = self._caller.room.hold_removals()
        if names is not None:
            self._tell_vanished(names)
        known = None
        if "retention" in self._parts:
            known = remembered(self._caller, names, self._new)
            if known is not None:
                self._decide(known, beside=self._quick)
        beside = self._together.running
        if self._checking:
            self._check(lock=not beside)
        if "diff" in self._parts:
            self._diff()
        if "retention" in self._parts and known is None:
            self._list(self._decide, ("retention",))

    def _tell_vanished(self, names: frozenset[str]) -> None:
        """Fail where one of this host's snapshots is not there, and the keeper has not removed it.

        Nobody who may only add can do that here: somebody was at the repository's place itself.
        """
        made, listed = losses.short(self._recorded), losses.short(names)
        vanished = self._known.missing(listed, made)
        losses.note(self._caller, self._known, self._known.own(listed, made), vanished)
        if vanished and self._known.seen:  # a first visit knows no past
            self._fail_most_telling(losses.loss(losses.Outcome(lost=vanished)))
        if "diff" in self._parts and not {*losses.short(self._pair)} <= {*listed}:
            # An engine may look for it again and again, for a minute or more.
            self._parts = tuple(p for p in self._parts if p != "diff")
            self._failed("diff", StepError(Failure.DAMAGED, "one of the two snapshots is gone"))

    def _fail_most_telling(self, error: StepError) -> None:
        """The part that would have removed something fails, or else the one that looks closest."""
        part = next(p for p in ("retention", "check", "diff") if p in self._parts)
        self._failed(part, error)
        self._parts = tuple(p for p in self._parts if p != part)
        self._checking = self._checking and part != "check"

    def _list_first(self) -> None:
        """Start all the others when it is known what the engine calls the snapshots.

        And that all are there: what is not is brought back before anything is removed.
        """

        def begin(listed: tuple[Snapshot, ...]) -> None:
            self._words = {s.id: s.word for s in listed}
            missing = self._known.missing(self._words, self._made)
            if missing and self._lost is None:
                self._bring_back(missing, begin)
                return
            # A hostile reader may have written the list since it was put in order.
            hidden = tuple(one for one in missing if one not in (self._lost or ()))
            self._note(self._mine(self._lost or ()), hidden)
            if hidden and self._parts:
                self._fail_most_telling(losses.hidden(hidden))
            if "diff" in self._parts:
                self._diff()
            if self._checking:
                self._check(lock=True)
            if "retention" in self._parts:
                self._decide(listed)

        def damaged(error: StepError) -> bool:
            """Whether the list itself was destroyed, and is being made anew.

            An engine that meets nonsense there ends in ways that have no name.
            """
            missing = self._known.missing((), self._made)
            kinds = (Failure.DAMAGED, Failure.ENGINE)
            if error.failure not in kinds or not missing or self._lost is not None:
                return False
            return self._bring_back(missing, begin)

        self._list(begin, self._parts, damaged)

    def _mine(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Those that this host has made, whose loss is to be told."""
        return self._known.own(ids, self._made)

    def _note(self, gone: Iterable[str], hidden: tuple[str, ...] = ()) -> None:
        """Note what the engine lists, and what it should."""
        there = (*self._words, *hidden)
        mine = self._mine(there)
        others = set(there) - {*mine}
        losses.note(self._caller, self._known, mine, gone, sorted(others))

    def _bring_back(
        self,
        missing: tuple[str, ...],
        then: Callable[[tuple[Snapshot, ...]], None] | None,
        otherwise: StepError | None = None,
    ) -> bool:
        """Have the engine list these again, and tell of it; False where it cannot be needed.

        `then` goes on with the list as it is after that, `otherwise` is told if all was in order.
        """
        ids = losses.write_ids(self._caller, "missing", missing)
        command = self._caller.engine.bring_back(self._caller.call, ids)
        if command is None:
            return False
        said: list[bytes] = []
        tail: list[str] = []

        def take(stream: str, line: bytes) -> None:
            if stream == "stdout":
                said.append(line)
            elif len(tail) < TAIL:
                tail.append(line.decode(errors="replace"))

        def end(code: int) -> None:
            try:
                self._caller.raise_for(code, tuple(tail))
                became = losses.outcome(b"".join(said))
                self._lost = became.lost
            except (StepError, ValueError) as error:
                failed = error if isinstance(error, StepError) else StepError(
                    Failure.ENGINE, str(error)
                )  # fmt: skip
                for part in self._parts:
                    self._failed(part, failed)
                return
            became = became._replace(lost=self._mine(became.lost))
            told = losses.loss(became) if any(became) else otherwise
            if told is not None:
                self._fail_most_telling(told)
            if then is not None:
                self._list(then, self._parts)

        self._together.start(command, take, end)
        return True

    def _word(self, snapshot: str) -> str:
        return self._words.get(snapshot, snapshot)

    def _end(self, kind: str, text: str, facts: Message | None = None) -> None:
        """A part has done its work."""
        self._caller.room.tell({
            "event": "part", "kind": kind, "failure": None, "text": text, "exit_code": 0,
            "facts": facts or {},
        })  # fmt: skip

    def _failed(self, kind: str, error: StepError) -> None:
        """A part has not; the others go on."""
        self._caller.room.tell({
            "event": "part", "kind": kind, "failure": error.failure, "text": str(error),
            "hint": error.hint, "engine_words": error.engine_words, "exit_code": None, "facts": {},
        })  # fmt: skip

    # -- diff

    def _diff(self) -> None:
        engine, tail = self._caller.engine, list[str]()
        difference = Difference(self._caller.room.tell)

        def take(stream: str, line: bytes) -> None:
            found = engine.parse_diff_line(line) if stream == "stdout" else None
            if isinstance(found, Change):
                difference.add(found)
            elif isinstance(found, DiffTotals):
                difference.totals = found
            elif stream == "stderr" and len(tail) < TAIL:
                tail.append(line.decode(errors="replace"))

        def end(code: int) -> None:
            try:
                self._caller.raise_for(code, tuple(tail))
            except StepError as error:
                self._failed("diff", error)
                return
            difference.flush()
            facts = {"first": self._pair[0], "second": self._pair[1], **difference.facts()}
            self._end("diff", difference.sentence(), facts)

        # Only the keeper removes, and this is it; another host's is told of in the result.
        old, new = map(self._word, self._pair)
        command = engine.diff(self._caller.call, old, new, lock=False)
        self._together.start(command, take, end)

    # -- check

    def _check(self, *, lock: bool) -> None:
        engine = self._caller.engine
        reader = engine.read_check()

        def end(code: int) -> None:
            found = reader.result()
            try:
                if found.errors and self._locked_out:
                    raise StepError(Failure.LOCKED, "somebody else was changing the repository")
                if found.errors:
                    raise damaged(found.errors, found.broken_packs, found.words)
                self._caller.raise_for(code, reader.tail)
            except StepError as error:
                self._failed("check", error)
                return
            self._end("check", checked(self._read_data), {"read_data": self._read_data})
            self._checking = False
            if self._decisions is not None and not self._started:
                self._forget()

        command = engine.check(self._caller.call, read_data=self._read_data, lock=lock)
        self._together.start(command, pass_on(self._caller.room, reader), end)

    # -- retention

    def _list(
        self,
        then: Callable[[tuple[Snapshot, ...]], None],
        parts: tuple[str, ...],
        mend: Callable[[StepError], bool] | None = None,
    ) -> None:
        """Ask the engine for the snapshots; these parts fail with it, unless it can be mended."""
        lines: list[bytes] = []
        tail: list[str] = []

        def take(stream: str, line: bytes) -> None:
            if stream == "stdout" and sum(map(len, lines)) < OUTPUT_LIMIT:
                lines.append(line)
            elif len(tail) < TAIL:
                tail.append(line.decode(errors="replace"))

        def end(code: int) -> None:
            try:
                self._caller.raise_for(code, tuple(tail))
            except StepError as error:
                for part in parts if mend is None or not mend(error) else ():
                    self._failed(part, error)
                return
            try:
                listed = self._caller.engine.parse_snapshots(b"\n".join(lines))
                remember(self._caller, listed)
                then(listed)
            except ValueError as error:  # one snapshot of nonsense must not end the check
                text = f"the list of snapshots makes no sense: {error}"
                self._failed("retention", StepError(Failure.ENGINE, text))

        self._together.start(
            self._caller.engine.snapshots(self._caller.call, lock=False), take, end
        )

    def _decide(self, listing: tuple[Snapshot, ...], *, beside: bool = False) -> None:
        """What stays, and whether this is a time to remove anything; `beside` the check, or after."""
        job, rules = self._job, self._job.retention
        assert rules is not None, "asked before"
        own = held(
            (s for s in listing if job_tag(job.name) in s.tags and s.host == job.host),
            self._complete,
        )
        groups = (own, *_streamed(listing, job))
        decisions = tuple(one for group in groups for one in decide(group, rules.keep))
        if self._caller.engine.traits.oldest_go_first:
            decisions = oldest_first(decisions)
        for one in decisions:
            self._caller.room.tell({"event": "decision", **one._asdict()})
        newest = (newer_than_now(group, time.time()) for group in groups)
        ahead = next((one for one in newest if one is not None), None)
        if ahead is not None:
            self._hold(
                f"snapshot {ahead.id[:8]} is of {ahead.moment.isoformat(timespec='seconds')}, newer"
                " than now: is this host's clock right?"
            )
        elif not rules.trust_clock and not is_kept_right():
            self._hold(
                "nothing keeps this host's clock right (the kernel calls it unsynchronised), so the"
                " age of snapshots is not certain; start a time service, or write trust-clock = true"
            )
        elif self._suspect:
            self._hold(
                "the repository is suspect: its last check found errors, or a drill that none has"
                " passed since (`capkeep status` tells which)"
            )
        else:
            self._decisions = decisions
            if beside or not self._checking:
                self._forget()

    def _hold(self, why: str) -> None:
        """Nothing is removed, and that is said."""
        text = f"nothing was removed: {why}"
        self._caller.room.tell({"event": "warning", "text": text})
        self._facts = {"held": why}
        self._ended(text)

    def _forget(self) -> None:
        """Have the engine decide which data goes with the snapshots that need not stay."""
        decisions, rules = self._decisions, self._job.retention
        assert decisions is not None, "decided before"
        assert rules is not None, "asked before"
        self._started = True
        gone = [d.id for d in decisions if not d.keep][-AT_ONCE:]  # the oldest
        stay = sum(1 for d in decisions if d.keep)
        self._facts = {"kept": stay, "removed": gone, "held": "", "dry_run": self._dry_run}
        if not gone or self._dry_run:
            word = "would be removed" if self._dry_run else "were removed"
            self._ended(f"{stay} snapshots stay, {len(gone)} {word}")
            return
        tail: list[str] = []

        def take(_stream: str, line: bytes) -> None:
            tail.append(line.decode(errors="replace")[:2000])
            del tail[:-TAIL]

        def end(code: int) -> None:
            try:
                self._caller.raise_for(code, tuple(tail))
            except StepError as error:
                self._locked_out = error.failure is Failure.LOCKED
                if not self._put_in_order(error):
                    self._failed("retention", error)
            else:
                self._forgotten = _now()
                if then:
                    self._forgotten = None
                    self._look_again(gone, lambda: self._together.start(then.pop(), take, end))

        engine, call = self._caller.engine, self._caller.call
        apart = rules.prune and engine.traits.prunes_apart
        then = [engine.prune(call)] if apart else []
        words = tuple(map(self._word, gone))
        expected = ""
        if self._words:
            expected = losses.write_listed(self._caller, "expected", self._words, gone)
            self._note(gone)
        elif engine.traits.named_by_id:
            known = losses.recall(self._caller)
            losses.note(self._caller, known, known.present, losses.short(gone))
        command = engine.forget(call, words, prune=rules.prune and not apart, expected=expected)
        self._together.start(command, take, end)

    def _put_in_order(self, error: StepError) -> bool:
        """Whether the list is at fault for what was not removed, and is being mended.

        Such as where an archive has several names: the next visit finds it with its own.
        """
        if error.failure is not Failure.DAMAGED or not self._words or self._lost is not None:
            return False
        return self._bring_back(tuple(self._words), None, error)

    def _look_again(self, gone: list[str], then: Callable[[], None]) -> None:
        """Data goes only when the list still has all that stay."""
        stay = set(self._words) - set(gone)

        def compare(listed: tuple[Snapshot, ...]) -> None:
            missing = stay - {s.id for s in listed}
            if missing:
                self._failed("retention", losses.vanished(tuple(sorted(missing))))
                return
            then()

        if self._words:
            self._list(compare, ("retention",))
        else:
            then()

    def _ended(self, text: str) -> None:
        self._parts = tuple(p for p in self._parts if p != "retention")
        self._end("retention", text, self._facts)

    def commit(self) -> None:
        """At the end: what was held back is removed, or not at all."""
        if "retention" not in self._parts:
            return
        if self._checking:
            self._hold("the check before it failed")
        elif self._forgotten is None:
            return  # it failed, and that was said
        elif _now() - self._forgotten > LOCK_SECONDS:
            self._hold("the check took too long beside it; the next time it comes after the check")
        else:
            self._remove()

    def _remove(self) -> None:
        rules = self._job.retention
        assert rules is not None, "asked before"
        try:
            self._caller.room.commit()
        except StepError as error:
            self._failed("retention", _refused(error))
            return
        removed = self._facts["removed"]
        count = len(removed) if isinstance(removed, list) else 0
        data = "and their data" if rules.prune else "their data stays (prune = false)"
        self._ended(f"{self._facts['kept']} snapshots stay, {count} were removed, {data}")


def _now() -> float:
    """Seconds that others have waited as well: a machine that sleeps stops time.monotonic()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _refused(error: StepError) -> StepError:
    """Whoever refuses to remove mostly means it."""
    if error.failure is not Failure.DENIED:
        return error
    return StepError(
        error.failure, f"the repository's place refuses to remove anything: {error}",
        hint="an append-only server does that; give the repository keeper-credentials that may remove,"
        " or take the job's retention away and remove snapshots where the server is",
        engine_words=error.engine_words,
    )  # fmt: skip


def _streamed(listing: Iterable[Snapshot], job: Job) -> Iterator[tuple[Held, ...]]:
    """The snapshots of each file that the job's dumps stream; there are none of half a dump."""
    for name in job.dumps:
        tag = stream_tag(job.name, name)
        found = [s for s in listing if tag in s.tags and s.host == job.host]
        for paths in sorted({s.paths for s in found}):
            yield held((s for s in found if s.paths == paths), frozenset(s.id for s in found))


def damaged(errors: int, packs: tuple[str, ...], words: tuple[str, ...]) -> StepError:
    """A check that found errors."""
    return StepError(
        Failure.DAMAGED,
        f"the repository is damaged: {errors} errors, {len(packs)} broken packs",
        hint="keep it as it is until you know why; newer snapshots may still be whole",
        engine_words="\n".join(words),
    )


def checked(read_data: str) -> str:
    """The sentence for a check that found nothing."""
    return "no errors were found" + (f", {read_data} of the data was read" if read_data else "")
