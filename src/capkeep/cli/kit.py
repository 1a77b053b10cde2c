"""`capkeep kit`: all that an empty machine needs to bring the backups back. For root."""

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING

from capkeep import __version__
from capkeep.cli import output
from capkeep.cli.keys import new_password
from capkeep.cli.look import plan_for, repository_name
from capkeep.errors import EXIT_COMPLETE, UsageError
from capkeep.plan.model import closed

if TYPE_CHECKING:
    from capkeep.host.sealing import Sealing
    from capkeep.plan.model import Plan
    from capkeep.report.kit import Kit


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb."""
    verb = commands.add_parser(
        "kit",
        help="write down what brings the backups back on an empty machine (root only)",
        description="Print a shell script, to be kept elsewhere: where the repositories are, what opens"
        " them, the configuration, and what to do with it on an empty machine.",
    )
    verb.add_argument("repositories", nargs="*", metavar="REPOSITORY", help="default: all")
    output.add_options(verb)
    sealed = verb.add_mutually_exclusive_group()
    sealed.add_argument(
        "--passphrase", action="store_true", help="encrypt it; asks for a passphrase"
    )
    sealed.add_argument("--passphrase-file", metavar="FILE",
                        help="encrypt it with the passphrase in FILE; - is standard input")  # fmt: skip
    sealed.add_argument("--age", action="append", default=[], metavar="RECIPIENT",
                        help="encrypt it to age1… or a public ssh key; may be repeated")  # fmt: skip
    sealed.add_argument("--gpg", action="append", default=[], metavar="FINGERPRINT",
                        help="encrypt it to a key in root's keyring; may be repeated")  # fmt: skip
    verb.set_defaults(handler=_kit)


def _kit(args: argparse.Namespace) -> int:
    from capkeep.host.sealing import seal
    from capkeep.report.kit import script

    sealing = _sealing(args)
    if not any(sealing):
        output.refuse_output(args, "what opens the backups")
    elif args.output:
        output.refuse_output(args, "")
    plan = plan_for(
        args, "make a recovery kit", "whoever has one can read every file in the backups"
    )
    names = [repository_name(plan, name) for name in args.repositories]
    if not names:
        names = [r.name for r in plan.repositories if not r.target_keeps_password]
        for name in (r.name for r in plan.repositories if r.target_keeps_password):
            print(f"capkeep: not in the kit: {closed(name)[0]}", file=sys.stderr)
    kit = _gather(args, plan, names)
    text = script(kit).encode(errors="surrogateescape")
    output.put(args, seal(text, sealing))
    _note(plan, kit)
    return EXIT_COMPLETE


def _sealing(args: argparse.Namespace) -> "Sealing":
    """Raises UsageError."""
    from capkeep.host.sealing import Sealing

    for key in args.gpg:
        if not re.fullmatch(r"(0x)?[0-9A-Fa-f]{40}", key):
            raise UsageError(
                f"{key!r} is not a fingerprint of 40 digits",
                hint="gpg --list-keys prints it; anything shorter could be somebody else's",
            )
    wanted = args.passphrase or args.passphrase_file
    passphrase = new_password(args.passphrase_file or "", "passphrase") if wanted else ""
    return Sealing(passphrase, tuple(args.age), tuple(args.gpg))


def _gather(args: argparse.Namespace, plan: "Plan", names: list[str]) -> "Kit":
    """Every password is tried on its repository first. Raises StepError, SecretError."""
    from capkeep.engines import ENGINES
    from capkeep.host.keys import Keys
    from capkeep.report.kit import FILES, Kit

    sheets, mirrors = [], []
    for repository in map(plan.repository, names):
        if ENGINES[repository.engine].traits.password:
            with Keys(plan, repository.name) as keys:
                sheets.append(keys.sheet(with_credentials=True))
        else:
            mirrors.append(repository)
    options = [o for name in names for o in plan.repository(name).options]
    folder = plan.places.config
    prefix = ("--prefix", os.path.abspath(args.prefix)) if args.prefix else ()
    return Kit(
        hostname=os.uname().nodename, version=__version__,
        command=("capkeep", *(("--user",) if args.user else ()), *prefix), folder=folder,
        sheets=tuple(sheets), mirrors=tuple(mirrors),
        public=tuple({path: _text(path) for name, path in options if name in FILES}.items()),
        former=tuple((name, _text(f"{folder}/{name}")) for name in _configuration(folder)),
    )  # fmt: skip


def _configuration(folder: str) -> list[str]:
    """The files that are one configuration, as they are read (docs/reference/config.md)."""
    drop_ins: list[str] = []
    if os.path.isdir(f"{folder}/conf.d"):
        drop_ins = sorted(n for n in os.listdir(f"{folder}/conf.d") if n.endswith(".toml"))
    names = ["capkeep.toml", *(f"conf.d/{name}" for name in drop_ins)]
    return [name for name in names if os.path.isfile(f"{folder}/{name}")]


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _note(plan: "Plan", kit: "Kit") -> None:
    """Nobody needs to be reminded to export these keys any more."""
    from capkeep.host.keys import Keys

    for sheet in kit.sheets:
        with Keys(plan, sheet.repository.name) as keys:
            keys.note_export(sheet.key)
