"""Verbs for root (or, with --user, for one's own): apply, plan, remove, doors."""

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from capkeep.cli.places import mode, refuse_other_opener, resolve
from capkeep.errors import EXIT_COMPLETE, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capkeep.host.changes import Removal
    from capkeep.host.compile import Compiler
    from capkeep.host.finding import Finding


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    plan = commands.add_parser("plan", help="show what apply would change")
    _hand_over_option(plan)
    plan.set_defaults(handler=_plan)
    apply = commands.add_parser("apply", help="compile the configuration and make this host so")
    apply.add_argument("--dry-run", action="store_true", help="the same as `capkeep plan`")
    _hand_over_option(apply)
    apply.set_defaults(handler=lambda args: _plan(args) if args.dry_run else _apply(args))
    remove = commands.add_parser("remove", help="take back what apply made; repositories stay")
    remove.add_argument("--delete-records", action="store_true", help="also records and logs")
    remove.add_argument("--delete-data", action="store_true",
                        help="also records, logs, and every backup on this host's own disks")  # fmt: skip
    remove.set_defaults(handler=_remove)
    doors = commands.add_parser("doors", help="open the rooms' doors where systemd does not")
    doors.add_argument("--exit-when-idle", type=float, default=0, metavar="SECONDS",
                       help="end when no room was in use for this long")  # fmt: skip
    doors.set_defaults(handler=_doors)


def _hand_over_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--hand-over", action="store_true",
        help="give directories with repositories that belong to others to the rooms that serve them",
    )  # fmt: skip


def _must_be_root(args: argparse.Namespace) -> None:
    if os.geteuid() != 0 and not args.user:
        raise RefusedError(
            "only root can do this", hint="use sudo, or --user for your own files without root"
        )


def _say(
    args: argparse.Namespace,
    verb: str,
    names: list[str],
    differences: "Sequence[str]" = (),
    schedules: "Sequence[dict[str, object]]" = (),
) -> None:
    if args.json:
        import json

        said = {"verb": verb, "changes": names, "differences": differences}
        print(json.dumps(said | ({"schedules": schedules} if schedules else {})))
        return
    for name in names:
        print(f"{verb} {name}")
    if not names:
        print("nothing to change")
    from capkeep.report.style import style_for
    from capkeep.report.text import clean

    for line in "\n".join(differences).splitlines():
        print(style_for(sys.stdout).difference(clean(line)))


def _plan(args: argparse.Namespace) -> int:
    from capkeep.host.compile import Compiler
    from capkeep.report.times import next_times, plain_times, times_lines

    _must_be_root(args)
    compiler = Compiler(resolve(args), mode(args), hand_over=args.hand_over)
    changes = [c for c in compiler.users() if c.needed()]
    names = [c.what for c in changes]
    lacks_users = bool(names)
    if lacks_users:
        # Without its users a plan has no numbers yet; what follows from them is shown after.
        names.append("directories and the plan for these users")
    else:
        changes = [c for c in compiler.changes() if c.needed()]
        names = [c.what for c in changes]
        names += [f"removal of {removal.what}" for removal in compiler.obsolete()]
    differences = [d for d in (c.difference() for c in changes) if d]
    times = next_times(compiler.timetables(), time.time())
    _say(args, "would make", names, differences, plain_times(times))
    if not args.json:
        for line in times_lines(times):
            print(line)
    if not lacks_users:
        if not args.json:
            from capkeep.host.audit import who_has_keys

            for line in who_has_keys(compiler.draft()):
                print(line)
        _remark(args, compiler)
        _tell_strangers(args, compiler)
    return EXIT_COMPLETE


def _apply(args: argparse.Namespace) -> int:
    from capkeep.host.apply import alone
    from capkeep.host.compile import Compiler

    _must_be_root(args)
    places = resolve(args)
    compiler = Compiler(places, mode(args), hand_over=args.hand_over)
    _stop_by_unwinding()
    with alone(places, mode(args)) as changes:
        compiler.make(changes)
    removed = _taken(compiler.obsolete())
    _say(args, "made", [*changes.made, *(f"removal of {what}" for what in removed)])
    _remark(args, compiler)
    _tell_strangers(args, compiler)
    _tell_troubles(args, compiler)
    return EXIT_COMPLETE


def _tell_strangers(args: argparse.Namespace, compiler: "Compiler") -> None:
    """Say, to people, who else could start launchers: groups are not ours to change."""
    from capkeep.host.launchers import strangers

    _tell(() if args.json else strangers(compiler.plan))


def _tell_troubles(args: argparse.Namespace, compiler: "Compiler") -> None:
    """Say, to people, what keeps servers out that may come for files: sshd is not ours to change."""
    from capkeep.host.login_audit import troubles

    _tell(() if args.json else troubles(compiler.plan))


def _tell(findings: "Iterable[Finding]") -> None:
    from capkeep.report.text import clean

    for found in findings:
        print(f"{clean(found.what)}: {clean(found.text)}\n  mend: {clean(found.mend)}")


def _stop_by_unwinding() -> None:
    """Let what has been made be taken back, undisturbed, when we are ended from outside."""
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def stop(_number: int, _frame: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, stop)


def _taken(removals: "Iterable[Removal]") -> list[str]:
    """Make the removals that are needed; returns what they were."""
    removed = []
    for removal in removals:
        if removal.needed():
            removal.make()
            removed.append(removal.what)
    return removed


def _remark(args: argparse.Namespace, compiler: "Compiler") -> None:
    """Say what this host cannot give, to people."""
    if not args.json:
        for text in compiler.remarks():
            print(f"left out: {text}")


def _remove(args: argparse.Namespace) -> int:
    from capkeep.host import apply
    from capkeep.host.doors import take_lock
    from capkeep.plan.load import load_plan

    _must_be_root(args)
    places = resolve(args)
    load_plan(places)  # where nothing was applied nothing is touched
    with apply.alone(places, mode(args)):
        plan = load_plan(places)
        apply.make_run_directories(plan)
        take_lock(plan.places.run)  # held to the end: no run is under way, and none begins
        removed = _taken(
            apply.remove(plan, delete_records=args.delete_records, delete_data=args.delete_data)
        )
    _say(args, "removed", removed)
    return EXIT_COMPLETE


def _doors(args: argparse.Namespace) -> int:
    from capkeep.host.doors import Doors, StopFlag
    from capkeep.plan.load import load_plan

    places = resolve(args)
    refuse_other_opener(load_plan(places))
    flag = StopFlag()
    flag.install()
    with Doors(places, exit_when_idle=args.exit_when_idle) as doors:
        count = doors.open()
        print(f"{count} doors are open in {places.run}", file=sys.stderr, flush=True)
        doors.serve(flag)
    return EXIT_COMPLETE
