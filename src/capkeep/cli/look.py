"""Verbs for root: what a snapshot holds (ls, find, diff) and getting it back (restore)."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from capkeep.cli.places import resolve
from capkeep.errors import EXIT_CODES, EXIT_COMPLETE, Failure, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capkeep.host.start import Target
    from capkeep.plan.model import Plan, RoomKind
    from capkeep.rooms.protocol import Message


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    ls = _verb(commands, "ls", "list what a snapshot holds", _ls)
    ls.add_argument("snapshot", metavar="SNAPSHOT", help="an id, or latest")
    ls.add_argument("paths", nargs="*", metavar="PATH", help="only below these")
    ls.add_argument("--long", "-l", action="store_true", help="owner, mode, size and time too")
    find = _verb(commands, "find", "find files in all snapshots by name or path", _find)
    find.add_argument("patterns", nargs="+", metavar="PATTERN")
    find.add_argument("--snapshot", default="", help="only in this snapshot")
    diff = _verb(commands, "diff", "what changed between two snapshots", _diff)
    diff.add_argument("first", metavar="SNAPSHOT")
    diff.add_argument("second", metavar="SNAPSHOT")
    restore = _verb(commands, "restore", "bring files back, with everything they had", _restore)
    restore.add_argument("snapshot", metavar="SNAPSHOT", help="an id, or latest")
    restore.add_argument("paths", nargs="*", metavar="PATH", help="only these; default: all")
    restore.add_argument("--to", required=True, metavar="DIR",
                         help="where to: /etc/x comes back as DIR/etc/x")  # fmt: skip
    restore.add_argument("--overwrite", action="store_true", help="replace files that are in DIR")


def _verb(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    handler: "Callable[[argparse.Namespace], int]",
) -> argparse.ArgumentParser:
    verb = commands.add_parser(name, help=summary + " (root only)")
    verb.add_argument("--repository", "-r", default="", help="needed where there are several")
    verb.set_defaults(handler=handler)
    return verb


def _plan_for(args: argparse.Namespace) -> "Plan":
    from capkeep.plan.load import load_plan

    if os.geteuid() != 0 and not args.user:
        raise RefusedError(
            "only root may look into snapshots",
            hint="whoever can read any snapshot can read any file of this machine; use sudo",
        )
    return load_plan(resolve(args))


def _repository(plan: "Plan", name: str) -> str:
    names = [r.name for r in plan.repositories]
    if name and name not in names:
        raise UsageError(f"there is no repository {name}", hint=f"known: {', '.join(names)}")
    if not name and len(names) != 1:
        raise UsageError("which repository?", hint=f"--repository {' or '.join(names)}")
    return name or names[0]


def _ask(
    args: argparse.Namespace,
    kind: "RoomKind",
    request: "Message",
    on_event: "Callable[[Message], None]",
    target: "Target | None" = None,
) -> "Message":
    from capkeep.host.direct import converse

    plan = _plan_for(args)
    name = _repository(plan, args.repository)
    room = next(r for r in plan.rooms if r.kind is kind and r.repository == name)
    if target:
        grant = room.grant._replace(write=(*room.grant.write, target.path))
        room = room._replace(grant=grant)
    return converse(plan, room, request, on_event, target)


def _finish(result: "Message") -> int:
    """The exit code of a result; says what failed, the engine's own words below."""
    failure = result.get("failure")
    if failure is None:
        return EXIT_COMPLETE
    from capkeep.report.text import clean

    print(f"capkeep: {clean(str(result.get('text')))}", file=sys.stderr)
    if result.get("hint"):
        print(f"  hint: {clean(str(result['hint']))}", file=sys.stderr)
    for line in str(result.get("engine_words") or "").splitlines():
        print(f"    {clean(line)}", file=sys.stderr)
    return EXIT_CODES[Failure(str(failure))]


def _view(args: argparse.Namespace, action: str, options: "Message") -> int:
    from capkeep.plan.model import RoomKind
    from capkeep.report.listing import show

    request: Message = {"action": action, "options": options}
    long = bool(getattr(args, "long", False))

    def on_event(message: "Message") -> None:
        if message.get("event") == "entry":
            show(message, as_json=args.json, long=long)

    return _finish(_ask(args, RoomKind.VIEWER, request, on_event))


def _ls(args: argparse.Namespace) -> int:
    return _view(args, "ls", {"snapshot": args.snapshot, "paths": args.paths})


def _find(args: argparse.Namespace) -> int:
    return _view(args, "find", {"patterns": args.patterns, "snapshot": args.snapshot})


def _diff(args: argparse.Namespace) -> int:
    return _view(args, "diff", {"first": args.first, "second": args.second})


def _restore(args: argparse.Namespace) -> int:
    from capkeep.host.start import Target
    from capkeep.plan.model import RoomKind
    from capkeep.report.restore import RestoreReport

    target = os.path.abspath(args.to)
    if target == "/":
        raise RefusedError(
            "restoring over the running system is refused",
            hint="restore to a directory of its own and copy from there what you need",
        )
    relative = [p for p in args.paths if not p.startswith("/")]
    if relative:
        raise UsageError(
            f"{relative[0]} is not an absolute path", hint="as in the snapshot: /etc/x"
        )
    request: Message = {
        "action": "restore",
        "options": {"snapshot": args.snapshot, "paths": args.paths, "target": target,
                    "overwrite": args.overwrite},
    }  # fmt: skip
    report = RestoreReport(as_json=args.json)
    held = Target(target, _open_target(target))
    try:
        result = _ask(args, RoomKind.RESTORER, request, report.event, held)
    finally:
        os.close(held.fd)
    report.end(result)
    return _finish(result)


def _open_target(target: str) -> int:
    from capkeep.kernel.ways import open_way

    try:
        return open_way(target, make=0o700, links=False)
    except NotADirectoryError as error:
        raise RefusedError(
            f"{target} is not a directory, or leads through a symbolic link",
            hint=f"name the directory itself: {os.path.realpath(target)}",
        ) from error
    except OSError as error:
        raise RefusedError(f"{target} cannot be written: {error.strerror}") from error
