"""The audit verb: whether this host is as planned, and what each room can really do."""

import argparse
import os
import sys

from capkeep.cli.places import mode, resolve
from capkeep.errors import RefusedError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    verb = commands.add_parser(
        "audit",
        help="what has drifted from the plan, and what each room can really do (root only)",
        epilog="Exit code for monitoring: 0 nothing was found, 7 something is to be mended; each"
        " finding names the command that mends it.",
    )
    verb.set_defaults(handler=_audit)


def _audit(args: argparse.Namespace) -> int:
    if os.geteuid() != 0 and not args.user:
        raise RefusedError(
            "only root can look at every room", hint="use sudo, or --user for your own rooms"
        )
    from capkeep.host.audit import audit
    from capkeep.report.audit import as_plain, exit_code, lines
    from capkeep.report.style import never_fail, style_for

    found = audit(resolve(args), mode(args))
    never_fail(sys.stdout)
    if args.json:
        import json

        print(json.dumps(as_plain(found)))
    else:
        print("\n".join(lines(found, style_for(sys.stdout))))
    return exit_code(found)
