"""Verbs that look at the record: status, history, log. They ask nobody and change nothing."""

import argparse
import json
import sys
import time

from capkeep.cli.places import resolve
from capkeep.errors import CapkeepError, UsageError
from capkeep.plan.places import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from capkeep.records.model import Run
    from capkeep.records.reader import RecordReader
    from capkeep.report.status import Overview
    from capkeep.report.style import Style
    from capkeep.report.times import NextTimes

HISTORY_LIMIT = 20


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    status = commands.add_parser(
        "status",
        help="how every job is",
        epilog="Exit code for monitoring: 0 every job is fresh, 3 nothing is worse than partial,"
        " 1 something failed, was missed, is late or has never run.",
    )
    status.add_argument("jobs", nargs="*", metavar="JOB", help="default: every job")
    status.add_argument(
        "--nagios", action="store_true",
        help="one line and the exit codes of a Nagios plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
    )  # fmt: skip
    status.set_defaults(handler=_status)
    history = commands.add_parser("history", help="past runs, the last one first")
    history.add_argument("job", nargs="?", metavar="JOB", help="default: every job")
    history.add_argument(
        "--limit", type=_positive, default=HISTORY_LIMIT, metavar="N",
        help=f"show at most N runs (default {HISTORY_LIMIT})",
    )  # fmt: skip
    history.set_defaults(handler=_history)
    log = commands.add_parser("log", help="all that was said in one run")
    log.add_argument(
        "which", nargs="?", metavar="RUN|JOB",
        help="a run's id or its beginning, or a job's name for its last run (default: the last run)",
    )  # fmt: skip
    log.add_argument("--proof", action="store_true", help="show each room's kernel facts in full")
    log.set_defaults(handler=_log)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _status(args: argparse.Namespace) -> int:
    if not args.nagios:
        return _show_status(args)
    from capkeep.report.nagios import answer, unknown

    try:
        places = resolve(args)
        code, line = answer(_overview(args, places, _raw_plan(places)))
    except (CapkeepError, OSError) as error:
        code, line = unknown(error)
    _write([line])
    return code


def _show_status(args: argparse.Namespace) -> int:
    from capkeep.plan.exported import unexported
    from capkeep.report.status import as_plain, overview_lines

    places = resolve(args)
    plan = _raw_plan(places)
    overview = _overview(args, places, plan)
    unsaved = unexported(plan, places)
    if args.json:
        _write([json.dumps({**as_plain(overview), "keys_not_exported": unsaved})])
    else:
        _write([*overview_lines(overview, _style()), *_reminder(unsaved)])
    return overview.exit_code()


def _overview(args: argparse.Namespace, places: Places, plan: object) -> "Overview":
    from capkeep.records.copies import copied
    from capkeep.records.drills import proven
    from capkeep.records.judge import judge, unwatched_verdict
    from capkeep.records.notices import Notices
    from capkeep.records.reader import RecordReader
    from capkeep.records.upkeep import upkeep_of
    from capkeep.report.status import JobReport, Overview

    raw = _raw_jobs(plan)
    planned = _promises(raw)
    with RecordReader(places.records) as records:
        known = {status.job: status for status in records.statuses()}
        checks = records.last_steps("check")
        undelivered = tuple(n for n in Notices(records).pending() if n.attempts)
        kept = upkeep_of(records, _rotations(raw or {}), time.time())
        drills = proven(records, time.time())
        copies = copied(records)
    # What the plan no longer has is history. Without a plan the record is all there is.
    places_now = _repositories(plan)
    if places_now is not None:
        checks = tuple(step for step in checks if step.repository in places_now)
        kept = tuple(one for one in kept if one.repository in places_now)
    if raw is not None:
        drills = tuple(one for one in drills if one.repository in _kept_in(raw.get(one.job)))
        copies = tuple(one for one in copies if one.repository in _copied_into(raw.get(one.job)))
    promises = dict.fromkeys(job for job in known if job) if planned is None else planned
    now = time.time()
    unwatched = _unwatched(places, raw or {})
    chosen = _chosen(args.jobs, list(promises), known)
    reports = []
    for job in chosen:
        max_age = promises.get(job) or 0
        verdict = judge(job, known.get(job), max_age, now)
        verdict = unwatched_verdict(verdict, unwatched.get(job))
        times = _next_times((raw or {}).get(job), now)
        reports.append(JobReport(verdict, max_age, known.get(job), times))
    if args.jobs:
        drills = tuple(one for one in drills if one.job in chosen)
        copies = tuple(one for one in copies if one.job in chosen)
        return Overview(tuple(reports), (), now, proven=drills, copies=copies)
    return Overview(tuple(reports), checks, now, undelivered, kept, drills, copies)


def _reminder(names: list[str]) -> list[str]:
    if not names:
        return []
    from capkeep.plan.exported import reminder

    style = _style()
    text, hint = reminder(names)
    return ["", style.bad(text), style.dim(f"  {hint}")]


def _chosen(asked: list[str], promised: list[str], known: "Mapping[str, object]") -> list[str]:
    if asked:
        from capkeep.values import of_all

        asked = [job for name in asked for job in of_all(name, promised)]
    for job in asked:
        if job not in promised and job not in known:
            raise UsageError(f"there is no job {job!r}", hint=_known_jobs(promised))
    return list(dict.fromkeys(asked)) or promised


def _known_jobs(names: list[str]) -> str:
    return f"known jobs: {', '.join(names)}" if names else "no job is known here yet"


def _promises(raw: "dict[str, dict[str, object]] | None") -> "dict[str, int | None] | None":
    """Each job of the plan and its max-age in seconds; None if there is no plan to be read."""
    if raw is None:
        return None
    ages = {name: job.get("max_age_seconds", 0) for name, job in raw.items()}
    return {name: age if isinstance(age, int) else 0 for name, age in ages.items()}


def _next_times(raw: "dict[str, object] | None", now: float) -> "tuple[NextTimes, ...]":
    """The next time of each schedule of a job; none for a plan of another version."""
    from capkeep.plan import codec
    from capkeep.plan.model import Job
    from capkeep.plan.timetable import timetables
    from capkeep.report.times import next_times

    try:
        return next_times(timetables(codec.from_plain(Job, raw)), now, 1) if raw else ()
    except codec.DecodeError:
        return ()


def _unwatched(places: Places, raw: "dict[str, dict[str, object]]") -> "dict[str, str]":
    """Jobs with a scheduled run that did not happen while nobody looked for such, and what to say."""
    own = ("check", "retention", "drill", "copies")
    tables = [t for job in raw.values() for t in (job, *map(job.get, own))]
    if not any(table.get("schedule") for table in tables if isinstance(table, dict)):
        return {}
    from capkeep.errors import CapkeepError
    from capkeep.run.watch import find_unwatched

    try:
        return find_unwatched(places)
    except (OSError, CapkeepError):
        return {}  # who may not read all of it sees the rest


def _raw_plan(places: Places) -> object:
    """The plan as it is written; None if there is none to be read.

    Decoding the whole of it would take longer than all the rest of `status`.
    """
    try:
        with open(places.plan, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _complain(error)
        return None


def _raw_jobs(plan: object) -> "dict[str, dict[str, object]] | None":
    """Each job of that plan; None without one."""
    if plan is None:
        return None
    try:
        return {str(job["name"]): dict(job) for job in plan["jobs"]}  # type: ignore[index]
    except (ValueError, TypeError, KeyError) as error:
        _complain(error)
        return None


def _repositories(plan: object) -> "frozenset[str] | None":
    """Their names; None if no plan says them."""
    found = plan.get("repositories") if isinstance(plan, dict) else None
    if not isinstance(found, list):
        return None
    return frozenset(str(one.get("name")) for one in found if isinstance(one, dict))


def _kept_in(job: "dict[str, object] | None") -> "list[object]":
    """Where a job of the plan is kept; nowhere if it is none."""
    found = job.get("repositories") if job else None
    return found if isinstance(found, list) else []


def _copied_into(job: "dict[str, object] | None") -> "list[object]":
    """Into which repositories a job of the plan is copied."""
    copies = job.get("copies") if job else None
    found = copies.get("targets") if isinstance(copies, dict) else None
    return found if isinstance(found, list) else []


def _complain(error: Exception) -> None:
    print(f"capkeep: the plan cannot be read: {error}", file=sys.stderr)


def _rotations(jobs: "dict[str, dict[str, object]]") -> "dict[str, int]":
    """Within how many seconds all data of a repository is to be read: the shortest of its jobs'."""
    found: dict[str, int] = {}
    for job in jobs.values():
        check, names = job.get("check"), job.get("repositories")
        within = check.get("rotate_seconds", 0) if isinstance(check, dict) else 0
        for name in names if within and isinstance(names, list) else ():
            found[str(name)] = min(within, found.get(str(name), within))
    return found


def _history(args: argparse.Namespace) -> int:
    from capkeep.records.reader import RecordReader
    from capkeep.report.history import history_lines
    from capkeep.report.status import plain_run, plain_step

    places = resolve(args)
    with RecordReader(places.records) as records:
        if args.job is not None and args.job not in records.jobs():
            planned = _raw_jobs(_raw_plan(places)) or {}
            if args.job not in planned:
                raise UsageError(
                    f"there is no job {args.job!r}", hint=_known_jobs([*records.jobs(), *planned])
                )
        runs = records.last_runs(args.job, args.limit)
        if args.json:
            plain = [
                {**(plain_run(run) or {}), "steps": [plain_step(s) for s in records.steps(run.id)]}
                for run in runs
            ]
            _write([json.dumps(plain)])
            return 0
    _write(history_lines(runs, _style(), time.time()))
    return 0


def _log(args: argparse.Namespace) -> int:
    from capkeep.records.logs import read_log
    from capkeep.records.reader import RecordReader
    from capkeep.report.history import log_line
    from capkeep.report.story import from_record
    from capkeep.report.summary import summary

    places = resolve(args)
    with RecordReader(places.records) as records:
        run = _find_run(records, args.which)
        story = from_record(records, run)
    try:
        if args.json:
            for message in read_log(places.log, run.id):
                print(json.dumps(message))
            return 0
        _write([*summary(story, _style(), full_proof=args.proof), ""])
        for message in read_log(places.log, run.id):
            print(log_line(message))
    except FileNotFoundError:
        print(f"capkeep: the log of run {run.id} is not kept any more", file=sys.stderr)
    except PermissionError as error:
        print(f"capkeep: you may not read {error.filename}", file=sys.stderr)
    return 0


def _find_run(records: "RecordReader", which: str | None) -> "Run":
    if which is None:
        runs = records.last_runs(limit=1)
    else:
        found = records.run(which)
        runs = (found,) if found else records.last_runs(which, 1)
    if not runs:
        raise UsageError(
            f"there is no run or job {which!r}" if which else "nothing has run yet",
            hint="`capkeep history` lists the runs",
        )
    return runs[0]


def _style() -> "Style":
    from capkeep.report.style import never_fail, style_for

    never_fail(sys.stdout)
    return style_for(sys.stdout)


def _write(lines: list[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
