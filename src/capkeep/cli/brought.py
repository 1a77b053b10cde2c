"""snapshots and check of a repository that no room here can open: root brings the password along."""

import argparse
import json
from typing import TYPE_CHECKING

from capkeep.cli.look import converse_with, finish
from capkeep.errors import EXIT_COMPLETE, UsageError
from capkeep.plan.model import RoomKind
from capkeep.report.snapshots import show_snapshots

if TYPE_CHECKING:
    from capkeep.rooms.protocol import Message


def snapshots(args: argparse.Namespace) -> int:
    """List them. Raises CapkeepError."""
    name = _only(args)
    found: list[object] = []

    def take(message: "Message") -> None:
        if message.get("event") == "snapshot":
            found.append(message.get("snapshot"))

    request: Message = {"action": "snapshots", "options": {}}
    code = finish(converse_with(_of(args, name), RoomKind.VIEWER, request, take))
    show_snapshots({name: found} if code == EXIT_COMPLETE else {}, as_json=args.json)
    return code


def check(args: argparse.Namespace) -> int:
    """Check it; nothing is recorded, as nobody here could do it again. Raises CapkeepError."""
    request: Message = {"action": "check", "options": {"read_data": args.read_data}}
    name = _only(args)
    result = converse_with(_of(args, name), RoomKind.VIEWER, request, lambda _message: None)
    if args.json:
        found = {key: result.get(key) for key in ("failure", "text")}
        print(json.dumps({"repository": name, **found}))
    elif result.get("failure") is None:
        print(f"{name}: {result.get('text')}")
    return finish(result)


def _only(args: argparse.Namespace) -> str:
    """The one repository that is meant. Raises UsageError."""
    if len(args.repositories) != 1:
        raise UsageError("--password-file goes with one repository", hint="name it")
    return str(args.repositories[0])


def _of(args: argparse.Namespace, repository: str) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "repository": repository})
