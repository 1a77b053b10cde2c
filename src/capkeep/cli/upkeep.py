"""Verbs that care for what was kept: retention, drill and copy. The runner does the work."""

import argparse

from capkeep.cli.run import ask
from capkeep.rooms.protocol import Message


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    verb = commands.add_parser(
        "retention", help="remove the snapshots that need not stay, as the configuration says"
    )
    verb.add_argument(
        "jobs", nargs="*", metavar="JOB", help="default: every job that has a retention"
    )
    verb.add_argument("--dry-run", action="store_true",
                      help="remove nothing; show what stays, and why")  # fmt: skip
    verb.set_defaults(handler=_retention)
    drill = commands.add_parser(
        "drill",
        help="restore a part of a snapshot for a moment, and compare it with what it should be",
    )
    drill.add_argument("jobs", nargs="*", metavar="JOB", help="default: every job that has drills")
    drill.add_argument("--seed", metavar="TEXT", default="",
                       help="choose as that drill did: the record tells the seed of each")  # fmt: skip
    drill.add_argument("--all", action="store_true", help="every file instead of a sample")
    drill.set_defaults(handler=_drill)
    copy = commands.add_parser(
        "copy", help="copy snapshots into further repositories, as the configuration says"
    )
    copy.add_argument("jobs", nargs="*", metavar="JOB", help="default: every job that has copies")
    copy.add_argument("--dry-run", action="store_true", help="copy nothing; name what would be")
    copy.set_defaults(handler=_copy)


def _retention(args: argparse.Namespace) -> int:
    request: Message = {"action": "retention", "jobs": args.jobs, "dry_run": args.dry_run}
    if args.json or not args.dry_run:
        return ask(args, request)
    from capkeep.report.retention import decision_lines

    told: list[Message] = []

    def collect(message: Message) -> None:
        if message.get("event") in ("run", "step", "decision", "part", "warning"):
            told.append(message)

    code = ask(args, request, collect)
    print("\n".join(decision_lines(told)))
    return code


def _copy(args: argparse.Namespace) -> int:
    return ask(args, {"action": "copy", "jobs": args.jobs, "dry_run": args.dry_run})


def _drill(args: argparse.Namespace) -> int:
    return ask(args, {"action": "drill", "jobs": args.jobs, "seed": args.seed, "all": args.all})
