"""Verbs of scheduled runs: schedule starts them, due is one of them, watch finds those that are missing."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from capkeep.cli.places import refuse_other_opener, resolve
from capkeep.errors import EXIT_COMPLETE, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capkeep.host.scheduler import Event


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    schedule = commands.add_parser(
        "schedule",
        help="start scheduled runs where systemd does not, in the foreground",
        epilog="SIGTERM ends it: runs under way are stopped and recorded so; a second one ends it"
        " at once.",
    )
    schedule.set_defaults(handler=_schedule)
    due = commands.add_parser("due", help="run what is due for a job, as its timer does")
    due.add_argument("job", metavar="JOB")
    due.add_argument("--kind", default="backup", help="which of its schedules (default: backup)")
    due.set_defaults(handler=_due)
    watch = commands.add_parser("watch", help="find scheduled runs that did not happen, once")
    watch.set_defaults(handler=_watch)


def _schedule(args: argparse.Namespace) -> int:
    from capkeep.host.scheduler import Scheduler
    from capkeep.plan.load import load_plan

    places = resolve(args)
    refuse_other_opener(load_plan(places))
    options = [*(["--json"] if args.json else []), *(["--user"] if args.user else [])]
    options += ["--prefix", os.path.abspath(args.prefix)] if args.prefix else []
    with Scheduler(places, options, _teller(as_json=args.json)) as scheduler:
        scheduler.install()
        scheduler.serve()
    return EXIT_COMPLETE


def _teller(*, as_json: bool) -> "Callable[[Event], None]":
    """One line for each event."""
    import json

    from capkeep.report.text import clean

    def tell(event: "Event") -> None:
        if as_json:
            line = json.dumps({**event, "time": time.time()}, separators=(",", ":"))
        else:
            line = clean(_sentence(event))
        print(line, flush=True)

    return tell


def _sentence(event: "Event") -> str:
    who = f"{event['job']} {event['kind']}: " if "job" in event else ""
    what = {
        "start": "begins",
        "still-running": f"is due and still runs; {event.get('text')}",
        "stopping": "is asked to stop",
        "end": f"has ended with exit code {event.get('exit_code')}",
    }.get(str(event["event"]), str(event.get("text", event["event"])))
    at = event.get("at")
    if isinstance(at, int | float):
        what = "next at " + time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))
    return f"schedule: {who}{what}"


def _due(args: argparse.Namespace) -> int:
    from capkeep.cli.run import ask
    from capkeep.host.power import obstacle
    from capkeep.plan.load import load_plan
    from capkeep.plan.timetable import is_remote, whole

    plan = load_plan(resolve(args))
    tables = {(t.job, t.kind): t for t in whole(plan)}
    table = tables.get((args.job, args.kind))
    if table is None:
        known = ", ".join(f"{job} ({kind})" for job, kind in tables) or "none"
        raise UsageError(
            f"job {args.job} has no schedule of kind {args.kind}", hint=f"schedules: {known}"
        )
    metered_too = table.on_metered or not is_remote(plan, plan.job(table.job))
    why = obstacle(battery_too=table.on_battery, metered_too=metered_too)
    if not why:
        return ask(args, table.request, until_copies=True)
    if not args.json:
        print(f"{args.job}: {args.kind} is left out: {why}")
    request = {"action": "leave-out", "jobs": [args.job], "kind": args.kind, "why": why}
    return ask(args, request)


def _watch(args: argparse.Namespace) -> int:
    import json

    from capkeep.cli.run import ask
    from capkeep.plan.load import load_plan
    from capkeep.run.errand import AFTER_PULLS
    from capkeep.run.last_pull import is_due
    from capkeep.run.watch import watch

    places = resolve(args)
    plan = load_plan(places)
    runner = plan.runner.grant
    if os.geteuid() != runner.uid:
        raise RefusedError(
            f"only {runner.user} writes the record",
            hint=f"`systemctl start {plan.name}-watch` or `capkeep schedule` looks",
        )
    for run in watch(places):
        if args.json:
            print(json.dumps({**run._asdict(), "event": "missed"}), file=sys.stdout, flush=True)
    if is_due(plan, os.stat(places.plan).st_mtime):
        return ask(args, {"action": AFTER_PULLS})
    return EXIT_COMPLETE
