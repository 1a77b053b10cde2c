"""The doctor verb: which ways this host has to give the reader its one capability."""

import argparse
import sys
from typing import TYPE_CHECKING

from capkeep.cli.places import mode, resolve
from capkeep.errors import UsageError

if TYPE_CHECKING:
    from capkeep.host.ways_seen import Way
    from capkeep.plan.model import Mode, Places, Plan


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    verb = commands.add_parser(
        "doctor",
        help="which ways this host has to read all files without root, and why others do not work",
        epilog="Exit code: 0 if the way that is used here works, else 1. Nothing is changed; what only"
        " root can try is named.",
    )
    verb.add_argument("--target", metavar="NAME", default="",
                      help="ask a target of the configuration, over your own ssh")  # fmt: skip
    verb.add_argument("--login", metavar="USER@HOST", default="",
                      help="your login there (default: root, who alone can try all)")  # fmt: skip
    verb.add_argument("--jump", metavar="USER@HOST:PORT", default="",
                      help="your login on the way (default: as it is configured)")  # fmt: skip
    verb.set_defaults(handler=lambda args: _far(args) if args.target else _doctor(args))


def _far(args: argparse.Namespace) -> int:
    from capkeep.config.load import load
    from capkeep.host import enroll, far_script, far_seen
    from capkeep.report.doctor import exit_code, far_as_plain, far_lines
    from capkeep.report.style import never_fail, style_for

    target = enroll.target_of(load(resolve(args).config), args.target)
    there = enroll.way(target, args.login, args.jump)
    found = far_seen.read(enroll.told_there(there, far_script.script(target.user)), target.user)
    never_fail(sys.stdout)
    if args.json:
        import json

        print(json.dumps(far_as_plain(target.name, found)))
    else:
        print("\n".join(far_lines(target.name, found, style_for(sys.stdout))))
    return exit_code(found.ways)


def _doctor(args: argparse.Namespace) -> int:
    if args.login or args.jump:
        raise UsageError("there is nobody to log in to", hint="--target NAME")
    from capkeep.host import granting, grants
    from capkeep.report.doctor import as_plain, exit_code, lines
    from capkeep.report.style import never_fail, style_for

    places, chosen = resolve(args), mode(args)
    plan = _plan(places)
    ways = granting.judge(grants.look(plan, chosen, "capkeep"), _used(plan, places, chosen))
    never_fail(sys.stdout)
    if args.json:
        import json

        print(json.dumps(as_plain(ways)))
    else:
        print("\n".join(lines(ways, style_for(sys.stdout))))
    return exit_code(ways)


def _plan(places: "Places") -> "Plan | None":
    """The plan, if there is one that can be read: a host is also looked at before `apply`."""
    from capkeep.errors import CapkeepError
    from capkeep.plan.load import load_plan

    try:
        return load_plan(places)
    except (CapkeepError, PermissionError):
        return None


def _used(plan: "Plan | None", places: "Places", chosen: "Mode") -> "Way":
    """The way of the plan, or of the one that `apply` would make."""
    from capkeep.host import systemd
    from capkeep.host.ways_seen import Way
    from capkeep.plan.model import Mode, Starter

    if chosen is Mode.USER:
        return Way.USER
    if plan and plan.starter is Starter.LAUNCHER:
        return Way.LAUNCHER
    units = plan.starter is Starter.SYSTEMD if plan else places.is_system and systemd.is_here()
    return Way.SYSTEMD if units else Way.DOORS
