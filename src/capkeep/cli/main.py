"""The command line: global options, the verbs' modules, nothing else.

Every verb's module is imported only to add its arguments, and imports what it needs when it runs,
so that `capkeep --version` and `status` start as fast as Python's own argparse does.
"""

import argparse
import sys
from collections.abc import Sequence

from capkeep import __version__


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from capkeep.cli import config, look, manage, run, status

    top = argparse.ArgumentParser(
        prog="capkeep",
        description="Whole-system backups that never run as root, and that prove it.",
        epilog="Exit codes: 0 complete, 1 failed, 2 usage, 3 partial, 4 refused, 5 configuration;"
        " the rest are in docs/reference/exit-codes.md.",
    )
    top.add_argument("--version", action="version", version=f"capkeep {__version__}")
    top.add_argument("--prefix", metavar="DIR", help="keep everything below DIR/{etc,state,…}")
    top.add_argument("--user", action="store_true", help="your own files, without root anywhere")
    top.add_argument("--json", action="store_true", help="print JSON for machines")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for module in (run, status, look, manage, config):
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and do; returns the exit code. Raises CapkeepError."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments == ["--version"]:  # the one answer that needs no parser
        print(f"capkeep {__version__}")
        return 0
    args = parser().parse_args(_globals_first(arguments))
    code = args.handler(args)
    assert isinstance(code, int)
    return code


def _globals_first(arguments: list[str]) -> list[str]:
    """Let `--json`, `--user` and `--prefix DIR` stand behind the verb too, as people type them."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in ("--json", "--user") or word.startswith("--prefix="):
            first.append(word)
        elif word == "--prefix":
            first += [word, *(w for w in [next(words, None)] if w is not None)]
        else:
            rest.append(word)
    return first + rest
