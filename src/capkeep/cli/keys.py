"""`capkeep key`: the passwords that open a repository. For root, as for looking and restoring."""

import argparse
import sys
from typing import TYPE_CHECKING

from capkeep.cli import output
from capkeep.cli.look import plan_for, repository_name
from capkeep.errors import EXIT_COMPLETE, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capkeep.host.keys import Keys
    from capkeep.rooms.protocol import Message

PASSWORD_BYTES = 4096


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    key = commands.add_parser("key", help="the passwords that open a repository (root only)")
    verbs = key.add_subparsers(prog="capkeep key", metavar="COMMAND", required=True)
    _verb(verbs, "list", "list the keys", _list)
    export = _verb(verbs, "export", "write down what opens the repository elsewhere", _export)
    output.add_options(export)
    export.add_argument("--with-credentials", action="store_true",
                        help="also what logs in where the repository is")  # fmt: skip
    another = _verb(verbs, "add", "let another password open the repository too", _add)
    _password_option(another, "asked for, or read from standard input")
    remove = _verb(verbs, "remove", "let a key open the repository no more", _remove)
    remove.add_argument(
        "key", metavar="KEY", help="its id, or 8 digits of it; never the one in use"
    )
    rotate = _verb(verbs, "rotate", "exchange the password for a new one", _rotate)
    _password_option(rotate, "made up")


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    handler: "Callable[[argparse.Namespace], int]",
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary)
    verb.add_argument("repository", metavar="REPOSITORY")
    verb.set_defaults(handler=handler)
    return verb


def _password_option(verb: argparse.ArgumentParser, otherwise: str) -> None:
    verb.add_argument(
        "--password-file", metavar="FILE",
        help=f"holds the new password; - is standard input (default: it is {otherwise})",
    )  # fmt: skip


def _keys(args: argparse.Namespace) -> "Keys":
    from capkeep.host.keys import Keys

    plan = plan_for(args, "work on keys", "whoever has a key can read every file in the backup")
    return Keys(plan, repository_name(plan, args.repository))


def _list(args: argparse.Namespace) -> int:
    with _keys(args) as keys:
        _show(keys.ask("list"), as_json=args.json)
    return EXIT_COMPLETE


def _show(result: "Message", *, as_json: bool) -> None:
    import json

    from capkeep.report.text import clean, table

    found = result.get("keys")
    keys = [k for k in found if isinstance(k, dict)] if isinstance(found, list) else []
    if as_json:
        print(json.dumps(keys))
        return
    rows = [["key", "made", "by", ""]]
    for key in keys:
        by = f"{key.get('user')}@{key.get('host')}"
        used = "in use here" if key.get("current") else ""
        rows.append([clean(str(key.get("id")))[:8], clean(str(key.get("created")))[:19],
                     clean(by), used])  # fmt: skip
    print("\n".join(table(rows)))


def _add(args: argparse.Namespace) -> int:
    password = new_password(args.password_file or ("" if sys.stdin.isatty() else "-"))
    with _keys(args) as keys:
        result = keys.ask("add", password=password)
    _say(args, {"key": result.get("key")}, f"key {str(result.get('key'))[:8]} opens it too")
    return EXIT_COMPLETE


def _remove(args: argparse.Namespace) -> int:
    with _keys(args) as keys:
        keys.ask("remove", key=args.key)
    _say(args, {"removed": args.key}, f"key {args.key} opens nothing any more")
    return EXIT_COMPLETE


def _rotate(args: argparse.Namespace) -> int:
    password = new_password(args.password_file) if args.password_file else ""
    with _keys(args) as keys:
        key = keys.rotate(password)
        name = keys.repository.name
    _say(args, {"key": key}, f"repository {name} has a new key, {key[:8]}; the old one is gone")
    if not args.json:
        print(f"  export it again: capkeep key export {name} --output FILE")
    return EXIT_COMPLETE


def _say(args: argparse.Namespace, plain: "Message", text: str) -> None:
    import json

    print(json.dumps(plain) if args.json else text)


def _export(args: argparse.Namespace) -> int:
    from capkeep.report.key_sheet import as_json, as_text

    output.refuse_output(args, "the password")
    with _keys(args) as keys:
        sheet = keys.sheet(with_credentials=args.with_credentials)
        text = as_json(sheet) if args.json else as_text(sheet)
        output.put(args, text.encode(errors="surrogateescape"))
        keys.note_export(sheet.key)
    return EXIT_COMPLETE


def new_password(source: str, what: str = "password") -> str:
    """From a file, standard input ("-") or, without either, a person, who writes it twice."""
    from capkeep.values import secret_text

    if not source:
        import getpass

        text = getpass.getpass(f"new {what}: ")
        if text != getpass.getpass("once more: "):
            raise UsageError(f"these are two {what}s")
    elif source == "-":
        text = secret_text(sys.stdin.buffer.read(PASSWORD_BYTES + 1))
    else:
        return password_in(source, what)
    return _one_line(text, what)


def password_in(source: str, what: str = "password") -> str:
    """What a file holds. Raises UsageError."""
    from capkeep.values import secret_text

    try:
        with open(source, "rb") as file:
            return _one_line(secret_text(file.read(PASSWORD_BYTES + 1)), what)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error


def _one_line(text: str, what: str) -> str:
    if not text or "\n" in text or "\0" in text or len(text) > PASSWORD_BYTES:
        raise UsageError(f"a {what} is one line of at most 4096 characters, and not empty")
    return text
