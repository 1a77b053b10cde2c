"""`capkeep import`: a configuration out of another program's, and what it does not do."""

import argparse
import contextlib
import json
import os

from capkeep.errors import EXIT_COMPLETE, EXIT_PARTIAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from capkeep.takeover.model import SecretText, Taken


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb."""
    verb = commands.add_parser(
        "import",
        help="write a configuration out of one of borgmatic, resticprofile, restic or borg",
        description="Write the configuration that does what another program's does, and list what"
        " could not be carried over.",
        epilog="Exit codes: 0 all was carried over, 3 something was not, or is to be done by hand.",
    )
    verb.add_argument(
        "files", nargs="*", metavar="FILE",
        help="a configuration of borgmatic or resticprofile, a .service that starts restic, its"
        " .timer; with --restic or --borg a file of their environment",
    )  # fmt: skip
    engine = verb.add_mutually_exclusive_group()
    for name in ("restic", "borg"):
        engine.add_argument(
            f"--{name}", dest="engine", action="store_const", const=name,
            help=f"read the environment of {name}: FILE, or else this program's own",
        )  # fmt: skip
    verb.add_argument("--output", metavar="FILE", help="write there, not to standard output")
    verb.add_argument("--overwrite", action="store_true", help="even if FILE is there already")
    verb.add_argument(
        "--write-secrets", metavar="DIR", help="put passwords that stand in the file into DIR"
    )
    verb.set_defaults(handler=take_over)


def take_over(args: argparse.Namespace) -> int:
    """Exit code 0 if the configuration does the same as it stands, else 3."""
    from capkeep.cli.places import resolve
    from capkeep.errors import UsageError
    from capkeep.takeover.reading import read_environment, read_files
    from capkeep.takeover.toml import written

    if not args.files and not args.engine:
        raise UsageError("name a file, or --restic or --borg", hint="capkeep import --help")
    directory = os.path.abspath(args.write_secrets or f"{resolve(args).config}/secrets")
    if args.engine:
        taken = read_environment(args.engine, args.files, os.environ, directory)
    else:
        taken = read_files([os.path.abspath(f) for f in args.files], directory)
    taken = _secrets(taken, directory, write=bool(args.write_secrets))
    text = written(taken, args.files or [f"the environment of {args.engine}"])
    if args.output:
        _write(args.output, text, overwrite=args.overwrite)
    _tell(args, taken, text)
    return EXIT_COMPLETE if taken.whole else EXIT_PARTIAL


def _secrets(taken: "Taken", directory: str, *, write: bool) -> "Taken":
    """Writes secrets to files, or has it said how people do."""
    from capkeep.takeover.model import Kind, Remark

    if not taken.secrets:
        return taken
    if write:
        _write_secrets(directory, taken.secrets)
        return taken
    said = "secrets stand in what was read; they are to be put into files, and are not written here"
    paths = ", ".join(s.path for s in taken.secrets)
    hint = f"--write-secrets {directory} does that; or write each one into its file, mode 0600: {paths}"
    remark = Remark(Kind.BY_HAND, "", 0, "secrets", said, hint)
    return taken._replace(remarks=(*taken.remarks, remark))


def _write_secrets(directory: str, secrets: "Sequence[SecretText]") -> None:
    """One file each, root's or one's own alone. Raises RefusedError for a file that holds another."""
    from capkeep.config.sources import open_at_once
    from capkeep.errors import RefusedError

    os.makedirs(directory, mode=0o700, exist_ok=True)
    new = []
    for secret in secrets:
        try:
            with open(secret.path, "rb", opener=open_at_once) as held:
                same = held.read() == secret.text.encode()
        except FileNotFoundError:
            new.append(secret)
            continue
        if not same:
            raise RefusedError(
                f"{secret.path} is there already, with another secret",
                hint="nothing was written: move it away, or choose another directory",
            )
    for secret in new:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(secret.path, flags, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(secret.text.encode())
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(secret.path)  # the half of a secret would keep the next attempt away
            raise


def _write(path: str, text: str, *, overwrite: bool) -> None:
    """The file as a whole; one that is there stays unless it was said otherwise."""
    from capkeep.errors import RefusedError
    from capkeep.host.files import Owner, write_atomic

    path = os.path.abspath(path)
    if os.path.lexists(path) and not overwrite:
        raise RefusedError(f"{path} is there already", hint="--overwrite replaces it")
    owner = Owner(os.geteuid(), os.getegid())
    # Commands of others stand in it as remarks, and not every secret looks like one.
    write_atomic(path, text.encode(), owner=owner, mode=0o600)


def _tell(args: argparse.Namespace, taken: "Taken", text: str) -> None:
    import sys

    from capkeep.takeover.model import Kind

    if args.json:
        found = {
            "toml": text,
            "output": args.output,
            "remarks": [r._asdict() for r in taken.remarks],
            "secrets": [
                {"file": s.path, "written": bool(args.write_secrets)} for s in taken.secrets
            ],
        }
        print(json.dumps(found, indent=2))
        return
    if not args.output:
        print(text, end="")
    words = {
        Kind.LEFT: "not carried over", Kind.BY_HAND: "to be done by hand",
        Kind.NOTE: "carried over in another way, or without a meaning here",
    }  # fmt: skip
    for kind, said in words.items():
        found_remarks = [r for r in taken.remarks if r.kind is kind]
        if found_remarks:
            print(f"\n{said}:", file=sys.stderr)
        for remark in found_remarks:
            print(f"  {remark.sentence()}", file=sys.stderr)
