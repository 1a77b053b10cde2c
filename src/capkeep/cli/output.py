"""Where a text goes that opens somebody's backups: a new file of one's own, or a terminal."""

import argparse
import os
import sys

from capkeep.errors import RefusedError, UsageError


def add_options(verb: argparse.ArgumentParser) -> None:
    """`--output` and `--force`."""
    verb.add_argument("--output", metavar="FILE", help="a new file, for root alone")
    verb.add_argument("--force", action="store_true",
                      help="replace FILE; print even if nobody reads along")  # fmt: skip


def refuse_output(args: argparse.Namespace, what: str) -> None:
    """Raises RefusedError where others could read along (`what`), or something would be lost."""
    if not args.output:
        if not sys.stdout.isatty() and not args.force:
            raise RefusedError(
                f"{what} would go where others may read it: this is no terminal",
                hint="write it to a file of root's own with --output FILE, or say --force",
            )
    elif os.path.lexists(args.output) and not args.force:
        raise RefusedError(f"{args.output} is there already", hint="--force replaces it")


def put(args: argparse.Namespace, content: bytes) -> None:
    """Write it all, or nothing. Raises UsageError, OSError."""
    if not args.output:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    from capkeep.host.files import Owner, write_atomic

    path = os.path.abspath(args.output)
    if not os.path.isdir(os.path.dirname(path)):
        raise UsageError(f"there is no directory {os.path.dirname(path)}")
    write_atomic(path, content, owner=Owner(os.geteuid(), os.getegid()), mode=0o600)
    print(f"{args.output}: keep it where this machine's end is not its end", file=sys.stderr)
