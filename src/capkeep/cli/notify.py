"""The verb about channels: notify test. The notifier's room does it, on the runner's behalf."""

import argparse
import json
import sys

from capkeep.cli.run import ask
from capkeep.rooms.protocol import Message


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    notify = commands.add_parser("notify", help="see whether those who are to be told can be")
    verbs = notify.add_subparsers(prog="capkeep notify", metavar="VERB", required=True)
    test = verbs.add_parser(
        "test", prog="capkeep notify test", help="send a harmless message through each channel",
        epilog="Exit code 0 if every channel took it, else 1.",
    )  # fmt: skip
    test.add_argument("channels", nargs="*", metavar="NAME", help="default: every channel")
    test.set_defaults(handler=_test)


def _test(args: argparse.Namespace) -> int:
    rows: list[Message] = []

    def show(message: Message) -> None:
        if message.get("event") == "told":
            rows.append(message)
            if not args.json:
                print(_line(message), flush=True)

    code = ask(args, {"action": "notify-test", "channels": args.channels}, show)
    if args.json:
        print(json.dumps(rows))
    elif not rows and not code:
        print("capkeep: no channel is configured: see [notify.NAME]", file=sys.stderr)
    return code


def _line(message: Message) -> str:
    from capkeep.report.text import clean

    outcome = "told" if message.get("ok") else "NOT TOLD"
    return f"{clean(str(message.get('channel')))}: {outcome}: {clean(str(message.get('text')))}"
