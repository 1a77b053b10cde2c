"""What a snapshot holds (ls, find, diff) and getting it back (restore): for root, everything.

Members of the group come to see and get what they could read themselves (cli/given.py).
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from capkeep.cli.places import resolve
from capkeep.errors import EXIT_CODES, EXIT_COMPLETE, Failure, RefusedError, UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from capkeep.host.start import Target
    from capkeep.plan.model import Plan, Repository, RoomKind
    from capkeep.rooms.protocol import Message


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    ls = add_verb(commands, "ls", "list what a snapshot holds", _ls)
    ls.add_argument("snapshot", metavar="SNAPSHOT", help="an id, or latest")
    ls.add_argument("paths", nargs="*", metavar="PATH", help="only below these")
    ls.add_argument("--long", "-l", action="store_true", help="owner, mode, size and time too")
    find = add_verb(commands, "find", "find files in all snapshots by name or path", _find)
    find.add_argument("patterns", nargs="+", metavar="PATTERN")
    find.add_argument("--snapshot", default="", help="only in this snapshot")
    diff = add_verb(commands, "diff", "what changed between two snapshots", _diff)
    diff.add_argument("first", metavar="SNAPSHOT")
    diff.add_argument("second", metavar="SNAPSHOT")
    restore = add_verb(commands, "restore", "bring files back, with everything they had", _restore)
    restore.add_argument("snapshot", metavar="SNAPSHOT", help="an id, or latest")
    restore.add_argument("paths", nargs="*", metavar="PATH", help="only these; default: all")
    place = restore.add_mutually_exclusive_group(required=True)
    place.add_argument("--to", metavar="DIR", default="",
                       help="where to: /etc/x comes back as DIR/etc/x")  # fmt: skip
    place.add_argument("--in-place", action="store_true", help="to where it was")
    restore.add_argument("--overwrite", action="store_true", help="replace files that are there")
    restore.add_argument("--delete", action="store_true",
                         help="and remove what is there and not in the snapshot")  # fmt: skip
    restore.add_argument("--dry-run", action="store_true", help="list each change, make none")
    restore.add_argument("--no-safety-snapshot", action="store_true",
                         help="in place: back up nothing before it is replaced")  # fmt: skip


def add_verb(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    handler: "Callable[[argparse.Namespace], int]",
) -> argparse.ArgumentParser:
    """A verb that works on one repository."""
    verb = commands.add_parser(name, help=summary)
    verb.add_argument("--repository", "-r", default="", help="needed where there are several")
    add_password(verb)
    verb.set_defaults(handler=handler)
    return verb


def add_password(verb: argparse.ArgumentParser) -> None:
    """What opens a repository whose password its target keeps, for one command."""
    verb.add_argument(
        "--password-file", metavar="FILE", default="",
        help="holds the password that the target keeps, where this host has none; it is not stored",
    )  # fmt: skip


def brought(args: argparse.Namespace, repository: "Repository") -> str:
    """The password that is brought along; "" where the room has one. Raises RefusedError, UsageError."""
    from capkeep.cli.keys import password_in
    from capkeep.plan.model import closed

    if not repository.target_keeps_password:
        if args.password_file:
            said = (
                f"repository {repository.name} is opened with the password that is configured here"
            )
            raise UsageError(said, hint="leave --password-file out")
        return ""
    if not args.password_file:
        text, hint = closed(repository.name)
        raise RefusedError(text, hint=hint)
    return password_in(args.password_file)


def plan_for(args: argparse.Namespace, what: str, why: str) -> "Plan":
    """The plan, for root, or in user mode for the user. Raises RefusedError."""
    from capkeep.plan.load import load_plan

    if os.geteuid() != 0 and not args.user:
        raise RefusedError(f"only root may {what}", hint=f"{why}; use sudo")
    return load_plan(resolve(args))


def repository_name(plan: "Plan", name: str) -> str:
    """The repository of that name, or the only one. Raises UsageError."""
    names = [r.name for r in plan.repositories]
    if name and name not in names:
        raise UsageError(f"there is no repository {name}", hint=f"known: {', '.join(names)}")
    if not name and len(names) != 1:
        raise UsageError("which repository?", hint=f"--repository {' or '.join(names)}")
    return name or names[0]


def converse_with(
    args: argparse.Namespace,
    kind: "RoomKind",
    request: "Message",
    on_event: "Callable[[Message], None]",
    target: "Target | None" = None,
    on_ready: "Callable[[socket.socket, Message], None] | None" = None,
) -> "Message":
    """What a room of the repository that is meant answers. Raises CapkeepError."""
    from capkeep.host.direct import converse

    why = "whoever can read any snapshot can read any file of this machine"
    plan = plan_for(args, "look into snapshots", why)
    name = repository_name(plan, args.repository)
    room = next(r for r in plan.rooms if r.kind is kind and r.repository == name)
    password = brought(args, plan.repository(name))
    if target:
        grant = room.grant._replace(write=(*room.grant.write, target.path))
        room = room._replace(grant=grant)
    return converse(plan, room, request, on_event, target, on_ready, password=password)


def finish(result: "Message") -> int:
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
    from capkeep.cli import given
    from capkeep.plan.model import RoomKind
    from capkeep.report.listing import show

    request: Message = {"action": action, "options": options}
    long = bool(getattr(args, "long", False))

    def on_event(message: "Message") -> None:
        if message.get("event") == "entry":
            show(message, as_json=args.json, long=long)
        elif message.get("event") == "warning" and given.is_for(args) and not args.json:
            print(f"capkeep: {message.get('text')}", file=sys.stderr)

    if given.is_for(args) and action != "diff":
        return finish(given.look(args, request, on_event))
    return finish(converse_with(args, RoomKind.VIEWER, request, on_event))


def _ls(args: argparse.Namespace) -> int:
    return _view(args, "ls", {"snapshot": args.snapshot, "paths": args.paths})


def _find(args: argparse.Namespace) -> int:
    return _view(args, "find", {"patterns": args.patterns, "snapshot": args.snapshot})


def _diff(args: argparse.Namespace) -> int:
    return _view(args, "diff", {"first": args.first, "second": args.second})


def _restore(args: argparse.Namespace) -> int:
    from capkeep.cli import given
    from capkeep.host.start import Target
    from capkeep.plan.model import RoomKind
    from capkeep.report.restore import RestoreReport

    if given.is_for(args):
        return _restore_own(args)
    if args.delete and not (args.overwrite or args.dry_run):
        raise UsageError("--delete goes with --overwrite", hint="--dry-run shows what it would do")
    snapshot, target = args.snapshot, os.path.abspath(args.to)
    if args.in_place:
        from capkeep.cli import in_place

        plan = plan_for(args, "restore in place", "it replaces anybody's files")
        name = repository_name(plan, args.repository)
        in_place.refuse_repository(plan, plan.repository(name))
        target = in_place.place_of(args, plan)
        if args.overwrite and not args.dry_run:
            snapshot = in_place.saved_before(args, plan, name)
    elif target == "/":
        raise RefusedError(
            "restoring over the running system is refused",
            hint="restore to a directory of its own, or one path --in-place",
        )
    relative = [p for p in args.paths if not p.startswith("/")]
    if relative:
        raise UsageError(
            f"{relative[0]} is not an absolute path", hint="as in the snapshot: /etc/x"
        )
    request: Message = {
        "action": "restore",
        "options": {"snapshot": snapshot, "paths": args.paths, "target": target,
                    "overwrite": args.overwrite, "in_place": args.in_place,
                    "delete": args.delete, "dry_run": args.dry_run},
    }  # fmt: skip
    report = RestoreReport(as_json=args.json)
    held = Target(target, open_target(target))
    try:
        result = converse_with(args, RoomKind.RESTORER, request, report.event, held)
    finally:
        os.close(held.fd)
    report.end(result)
    return finish(result)


def _restore_own(args: argparse.Namespace) -> int:
    """For a member of the group: what he could read himself."""
    from capkeep.cli import given
    from capkeep.host.unpack import Unpacker
    from capkeep.report.given import GivenReport

    if args.delete or args.dry_run:
        raise UsageError("--delete and --dry-run are root's")
    if not args.paths:
        raise UsageError("name what you want back", hint="`capkeep ls latest` shows what there is")
    target = "/" if args.in_place else os.path.abspath(args.to)
    request: Message = {
        "action": "give", "options": {"snapshot": args.snapshot, "paths": args.paths},
    }  # fmt: skip
    report = GivenReport(as_json=args.json)
    top = open_target(target)
    try:
        unpacker = Unpacker(top, in_place=args.in_place, overwrite=args.overwrite)
        result = given.restore(args, request, unpacker, report.event)
    finally:
        os.close(top)
    code = finish(result)
    return report.end(result, unpacker, target) or code


def open_target(target: str) -> int:
    """A handle on a directory, which is made if it is not there. Raises RefusedError."""
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
