"""Verbs for root (or, with --user, for one's own): apply, plan, remove, doors."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from capkeep.cli.places import mode, resolve
from capkeep.errors import EXIT_COMPLETE, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capkeep.host.apply import Change


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    plan = commands.add_parser("plan", help="show what apply would change")
    plan.set_defaults(handler=_plan)
    apply = commands.add_parser("apply", help="compile the configuration and make this host so")
    apply.add_argument("--dry-run", action="store_true", help="the same as `capkeep plan`")
    apply.set_defaults(handler=lambda args: _plan(args) if args.dry_run else _apply(args))
    remove = commands.add_parser("remove", help="take back what apply made; repositories stay")
    remove.add_argument("--delete-records", action="store_true", help="also records and logs")
    remove.set_defaults(handler=_remove)
    doors = commands.add_parser("doors", help="open the rooms' doors where systemd does not")
    doors.add_argument("--exit-when-idle", type=float, default=0, metavar="SECONDS",
                       help="end when no room was in use for this long")  # fmt: skip
    doors.set_defaults(handler=_doors)


def _must_be_root(args: argparse.Namespace) -> None:
    if os.geteuid() != 0 and not args.user:
        raise RefusedError(
            "only root can do this", hint="use sudo, or --user for your own files without root"
        )


def _say(args: argparse.Namespace, verb: str, names: list[str]) -> None:
    if args.json:
        import json

        print(json.dumps({"verb": verb, "changes": names}))
        return
    for name in names:
        print(f"{verb} {name}")
    if not names:
        print("nothing to change")


def _plan(args: argparse.Namespace) -> int:
    from capkeep.host.compile import Compiler

    _must_be_root(args)
    compiler = Compiler(resolve(args), mode(args))
    names = [c.what for c in compiler.users() if c.needed()]
    if names:
        # Without its users a plan has no numbers yet; what follows from them is shown after.
        names.append("directories and the plan for these users")
    else:
        names = [c.what for c in compiler.changes() if c.needed()]
    _say(args, "would make", names)
    return EXIT_COMPLETE


def _apply(args: argparse.Namespace) -> int:
    from capkeep.host.apply import alone
    from capkeep.host.compile import Compiler

    _must_be_root(args)
    places = resolve(args)
    compiler = Compiler(places, mode(args))
    with alone(places, mode(args)):
        made = compiler.make_users() + _make(compiler.changes())
        compiler.finish()
    _say(args, "made", made)
    return EXIT_COMPLETE


def _make(changes: "Iterable[Change]") -> list[str]:
    made = []
    for change in changes:
        if change.needed():
            change.make()
            made.append(change.what)
    return made


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
        removed = _make(apply.remove(plan, delete_records=args.delete_records))
    _say(args, "removed", removed)
    return EXIT_COMPLETE


def _doors(args: argparse.Namespace) -> int:
    from capkeep.host.doors import Doors, StopFlag

    _must_be_root(args)
    places = resolve(args)
    flag = StopFlag()
    flag.install()
    with Doors(places, exit_when_idle=args.exit_when_idle) as doors:
        count = doors.open()
        print(f"{count} doors are open in {places.run}", file=sys.stderr, flush=True)
        doors.serve(flag)
    return EXIT_COMPLETE
