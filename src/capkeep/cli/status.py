"""Verbs that look at the record: status, history, log. They ask nobody and change nothing."""

import argparse
import json
import sys
import time

from capkeep.cli.places import resolve
from capkeep.errors import UsageError
from capkeep.plan.places import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from capkeep.records.model import Run
    from capkeep.records.reader import RecordReader
    from capkeep.report.style import Style

HISTORY_LIMIT = 20


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    status = commands.add_parser(
        "status",
        help="how every job is",
        epilog="Exit code for monitoring: 0 every job is fresh, 3 nothing is worse than partial,"
        " 1 something failed, is late or has never run.",
    )
    status.add_argument("jobs", nargs="*", metavar="JOB", help="default: every job")
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
    from capkeep.records.judge import judge
    from capkeep.records.reader import RecordReader
    from capkeep.report.status import JobReport, Overview, as_plain, overview_lines

    places = resolve(args)
    planned = _planned_jobs(places)
    with RecordReader(places.records) as records:
        known = {status.job: status for status in records.statuses()}
        checks = records.last_steps("check")
    # Jobs that the plan no longer has are history. Without a plan the record is all there is.
    promises = dict.fromkeys(job for job in known if job) if planned is None else planned
    now = time.time()
    chosen = _chosen(args.jobs, list(promises), known)
    reports = []
    for job in chosen:
        max_age = promises.get(job) or 0
        verdict = judge(job, known.get(job), max_age, now)
        reports.append(JobReport(verdict, max_age, known.get(job)))
    overview = Overview(tuple(reports), () if args.jobs else checks, now)
    if args.json:
        _write([json.dumps(as_plain(overview))])
    else:
        _write(overview_lines(overview, _style()))
    return overview.exit_code()


def _chosen(asked: list[str], promised: list[str], known: "Mapping[str, object]") -> list[str]:
    for job in asked:
        if job not in promised and job not in known:
            raise UsageError(f"there is no job {job!r}", hint=_known_jobs(promised))
    return list(dict.fromkeys(asked)) or promised


def _known_jobs(names: list[str]) -> str:
    return f"known jobs: {', '.join(names)}" if names else "no job is known here yet"


def _planned_jobs(places: Places) -> "dict[str, int | None] | None":
    """Each job of the plan and its max-age in seconds; None if there is no plan to be read.

    Decoding the whole plan would take longer than all the rest of `status`.
    """
    try:
        with open(places.plan, "rb") as file:
            plan = json.loads(file.read())
        return {str(job["name"]): int(job.get("max_age_seconds", 0)) for job in plan["jobs"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"capkeep: the plan cannot be read: {error}", file=sys.stderr)
        return None


def _history(args: argparse.Namespace) -> int:
    from capkeep.records.reader import RecordReader
    from capkeep.report.history import history_lines
    from capkeep.report.status import plain_run, plain_step

    places = resolve(args)
    with RecordReader(places.records) as records:
        if args.job is not None and args.job not in records.jobs():
            planned = _planned_jobs(places) or {}
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
