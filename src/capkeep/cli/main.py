"""The command line: global options, the verbs' modules, nothing else.

Only the module of the verb that was asked for is imported, and it imports what it needs when it
runs, so that `capkeep --version` and `status` start as fast as Python's own argparse does.
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from capkeep import __version__

VERBS = {
    "capkeep.cli.run": ("run", "check", "init", "snapshots"),
    "capkeep.cli.upkeep": ("retention", "drill", "copy"),
    "capkeep.cli.status": ("status", "history", "log"),
    "capkeep.cli.notify": ("notify",),
    "capkeep.cli.look": ("ls", "find", "diff", "restore"),
    "capkeep.cli.mount": ("mount",),
    "capkeep.cli.keys": ("key",),
    "capkeep.cli.kit": ("kit",),
    "capkeep.cli.manage": ("plan", "apply", "remove", "doors"),
    "capkeep.cli.schedule": ("schedule", "due", "watch"),
    "capkeep.cli.audit": ("audit",),
    "capkeep.cli.doctor": ("doctor",),
    "capkeep.cli.target": ("target", "enroll"),
    "capkeep.cli.config": ("config",),
    "capkeep.cli.takeover": ("import",),
    "capkeep.cli.completion": ("completion",),
}


class _Formatter(argparse.HelpFormatter):
    """As wide as argparse's own, which imports shutil, bz2 and lzma to ask how wide that is.

    It asks for each argument that is added, so that every command would wait 5 ms.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """COLUMNS, else the terminal's, else 80 (shutil.get_terminal_size)."""
    with contextlib.suppress(ValueError, OSError):
        return int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns or 80
    return 80


class _Parser(argparse.ArgumentParser):
    """The parser of the command line and of each verb."""

    def __init__(
        self,
        prog: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        color: bool = True,  # noqa: ARG002, FBT001, FBT002 - Python 3.14 hands it on to each verb
    ) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=_Formatter
        )


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The whole command line, or the part of it that a verb needs."""
    chosen = [module for module, verbs in VERBS.items() if verb in verbs] or list(VERBS)
    top = _Parser(
        prog="capkeep",
        description="Whole-system backups that never run as root, and that prove it.",
        epilog="Exit codes: 0 complete, 1 failed, 2 usage, 3 partial, 4 refused, 5 configuration;"
        " the rest are in docs/reference/exit-codes.md.",
    )
    top.add_argument("--version", action="version", version=f"capkeep {__version__}")
    top.add_argument("--prefix", metavar="DIR", help="keep everything below DIR/{etc,state,…}")
    top.add_argument("--user", action="store_true", help="your own files, without root anywhere")
    top.add_argument("--json", action="store_true", help="print JSON for machines")
    # Without `prog` argparse imports shutil, bz2 and lzma to lay out a usage line for it.
    commands = top.add_subparsers(prog="capkeep", metavar="COMMAND", required=True)
    for module in chosen:
        importlib.import_module(module).add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and do; returns the exit code. Raises CapkeepError."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments == ["--version"]:  # the one answer that needs no parser
        print(f"capkeep {__version__}")
        return 0
    ordered, verb = _globals_first(arguments)
    args = parser(verb).parse_args(ordered)
    code = args.handler(args)
    assert isinstance(code, int)
    return code


def _globals_first(arguments: list[str]) -> tuple[list[str], str]:
    """Let `--json`, `--user` and `--prefix DIR` stand behind the verb too; also finds the verb."""
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
    return first + rest, rest[0] if rest else ""
