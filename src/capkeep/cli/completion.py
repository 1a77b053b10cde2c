"""The completion verb: what a shell needs to know to complete the command line."""

import argparse


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    verb = commands.add_parser(
        "completion",
        help="print a completion script for your shell",
        epilog="bash: capkeep completion bash > /etc/bash_completion.d/capkeep",
    )
    verb.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    verb.set_defaults(handler=_completion)


def _completion(args: argparse.Namespace) -> int:
    import shtab

    from capkeep.cli.main import parser

    print(shtab.complete(parser(), args.shell))
    return 0
