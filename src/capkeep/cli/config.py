"""`capkeep config`: check the configuration, show what holds, print a schema or an example."""

import argparse
import json

from capkeep.errors import EXIT_COMPLETE, EXIT_CONFIG


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verbs."""
    parser = commands.add_parser("config", help="check and show the configuration")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, handler, text in (
        ("check", check, "tell every mistake, each with its line and what to write"),
        ("show", show, "print what holds, drop-ins and defaults put together, and where it is set"),
        ("schema", schema, "print the JSON Schema, for editors"),
        ("example", example, "print an annotated configuration to begin with"),
    ):
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb.set_defaults(handler=handler)


def check(args: argparse.Namespace) -> int:
    """All mistakes, or what there is. Exit code 5 if there are mistakes."""
    from capkeep.cli.places import resolve
    from capkeep.config.load import load
    from capkeep.config.mistakes import MistakesError

    directory = resolve(args).config
    try:
        config = load(directory, user_mode=args.user)
    except MistakesError as error:
        if not args.json:
            raise
        mistakes = [m._asdict() for m in error.mistakes]
        print(json.dumps({"mistakes": mistakes, "remarks": []}, indent=2))
        return EXIT_CONFIG
    if args.json:
        remarks = [m._asdict() for m in config.remarks]
        print(json.dumps({"mistakes": [], "remarks": remarks}, indent=2))
        return EXIT_COMPLETE
    for remark in config.remarks:
        print(remark.sentence())
    jobs, repositories = len(config.jobs), len(config.repositories)
    print(f"{directory}: no mistakes; {_count(jobs, 'job')}, {_count(repositories, 'repository')}")
    return EXIT_COMPLETE


def _count(number: int, word: str) -> str:
    if number == 1:
        return f"1 {word}"
    return f"{number} {word.removesuffix('y')}ies" if word.endswith("y") else f"{number} {word}s"


def show(args: argparse.Namespace) -> int:
    """Every setting that holds, with its file and line; of a secret only where it comes from."""
    from capkeep.cli.places import resolve
    from capkeep.config.load import load
    from capkeep.config.settings import as_toml

    config = load(resolve(args).config, user_mode=args.user)
    if args.json:
        settings = {
            key: {
                "value": setting.value,
                "file": setting.place.file if setting.place else None,
                "line": setting.place.line if setting.place else None,
            }
            for key, setting in config.settings.items()
        }
        print(json.dumps(settings, indent=2))
    else:
        print(as_toml(config), end="")
    return EXIT_COMPLETE


def schema(args: argparse.Namespace) -> int:  # noqa: ARG001 - every handler takes them
    """The JSON Schema of the configuration's files."""
    from capkeep.config.schema import schema as json_schema

    print(json.dumps(json_schema(), indent=2))
    return EXIT_COMPLETE


def example(args: argparse.Namespace) -> int:
    """An annotated configuration."""
    from capkeep.config.example import EXAMPLE

    print(json.dumps({"capkeep.toml": EXAMPLE}) if args.json else EXAMPLE, end="")
    return EXIT_COMPLETE
