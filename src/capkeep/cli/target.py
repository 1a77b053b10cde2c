"""`capkeep target` and `capkeep enroll`: the hosts whose files jobs of this one take."""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from capkeep.cli.places import resolve
from capkeep.errors import (
    EXIT_CODES,
    EXIT_COMPLETE,
    EXIT_FAILED,
    Failure,
    RefusedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capkeep.host.reach import Reached
    from capkeep.host.scan import Seen, Written
    from capkeep.host.ssh_keys import PublicKey
    from capkeep.plan.model import Plan


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    target = commands.add_parser("target", help="the hosts that this one takes files of")
    verbs = target.add_subparsers(prog="capkeep target", metavar="COMMAND", required=True)
    listing = verbs.add_parser(
        "list", help="targets that jobs take files of, with their jobs and last runs"
    )
    listing.set_defaults(handler=_list)
    scan = verbs.add_parser(
        "scan",
        help="show a host's keys, to be compared and written into the configuration",
        epilog="Exit code: 16 where the host does not show the key that is written.",
    )
    scan.add_argument("host", metavar="NAME|HOST", help="a target, or a host's name or address")
    scan.add_argument("--port", type=int, default=0, help="of a host that is no target yet")
    scan.set_defaults(handler=_scan)
    check = verbs.add_parser("check", help="log in to targets and ask their readers (root only)")
    check.add_argument("names", nargs="*", metavar="NAME", help="default: every target")
    check.set_defaults(handler=_check)
    enroll = commands.add_parser(
        "enroll",
        help="have a target let this server come for its files (root only)",
        epilog="Writes the target's part of the configuration there and applies it, over your own ssh.",
    )
    enroll.add_argument("name", metavar="NAME", help="a target of the configuration")
    enroll.add_argument("--login", metavar="USER@HOST", default="",
                        help="your login there (default: root; others use sudo)")  # fmt: skip
    enroll.add_argument("--jump", metavar="USER@HOST:PORT", default="",
                        help="your login on the way (default: as it is configured)")  # fmt: skip
    enroll.add_argument("--print", action="store_true", dest="printed",
                        help="print the script, to be read and run there as root")  # fmt: skip
    enroll.add_argument("--dry-run", action="store_true", help="show what would be changed there")
    enroll.add_argument("--with-capkeep", action="store_true",
                        help="bring this server's capkeep along where there is none")  # fmt: skip
    enroll.add_argument("--start", choices=("systemd", "doors", "launcher"), default="",
                        help="who starts the rooms there (default: as it is written there, else systemd"
                        " where it runs, else launchers where they work)")  # fmt: skip
    enroll.add_argument("--remove", action="store_true", help="let this server come no more")
    enroll.set_defaults(handler=_enroll)


# -- list


def _list(args: argparse.Namespace) -> int:
    from capkeep.host.scan import written
    from capkeep.plan.load import load_plan
    from capkeep.records.judge import judge
    from capkeep.records.reader import RecordReader
    from capkeep.report.targets import TargetReport, as_plain, lines

    places = resolve(args)
    plan = load_plan(places)
    with RecordReader(places.records) as records:
        known = {status.job: status for status in records.statuses()}
    groups = {name: found.groups for name, found in written(places.config).items()}
    now = _now()
    reports = [
        TargetReport(
            target, groups.get(target.name, ()),
            tuple(
                judge(job.name, known.get(job.name), job.max_age_seconds, now)
                for job in plan.jobs
                if job.target == target.name
            ),
        )
        for target in plan.targets
    ]  # fmt: skip
    _write(json.dumps(as_plain(reports)) if args.json else "\n".join(lines(reports)))
    return EXIT_COMPLETE


def _now() -> float:
    import time

    return time.time()


def _write(text: str) -> None:
    from capkeep.report.style import never_fail

    never_fail(sys.stdout)
    print(text, flush=True)


# -- scan


def _scan(args: argparse.Namespace) -> int:
    from capkeep.host.scan import compare, is_alarming, shown, written

    known = written(resolve(args).config, user_mode=args.user)
    found = _meant(args, known)
    parts: list[tuple[str, str, tuple[Seen, ...]]] = []
    if found.jump:
        host, port = _way_host(found.jump)
        seen = compare(shown(host, port), found.jump_keys)
        parts.append(("jump-host-key", f"{host} port {port}", seen))
    keys = _behind(found) if found.jump else shown(found.host, found.port)
    seen = compare(keys, found.keys)
    parts.append(("host-key", f"{found.host} port {found.port}", seen))
    name = args.host if args.host in known else ""
    _say_keys(args, name, parts)
    if any(is_alarming(seen) for _, _, seen in parts):
        return EXIT_CODES[Failure.DENIED]
    return EXIT_COMPLETE


def _meant(args: argparse.Namespace, known: "Mapping[str, Written]") -> "Written":
    """The target of that name, else a host. Raises UsageError."""
    from capkeep.config.ssh import check_host
    from capkeep.host.scan import Written
    from capkeep.values import ValueMistake

    found = known.get(args.host, Written(args.host))
    found = found._replace(port=args.port or found.port)
    try:
        check_host(found.host)
    except ValueMistake as mistake:
        raise UsageError(mistake.problem, hint=mistake.hint) from mistake
    if not 0 < found.port < 1 << 16:
        raise UsageError(f"{found.port} is no port")
    return found


def _way_host(jump: str) -> tuple[str, int]:
    """Where the host on the way is. Raises UsageError."""
    from capkeep.config.ssh import parse_jump
    from capkeep.values import ValueMistake

    try:
        found = parse_jump(jump)
    except ValueMistake as mistake:
        raise UsageError(mistake.problem, hint=mistake.hint) from mistake
    return found.host, found.port


def _behind(found: "Written") -> "tuple[PublicKey, ...]":
    from capkeep.host.admin_ssh import Way
    from capkeep.host.scan import shown_behind

    login = f"capkeep-answerer@{found.host}"
    return shown_behind(Way(login, found.port, found.keys, found.jump, found.jump_keys))


def _say_keys(
    args: argparse.Namespace, name: str, parts: "list[tuple[str, str, tuple[Seen, ...]]]"
) -> None:
    from capkeep.report.style import style_for
    from capkeep.report.targets import key_lines, plain_keys

    if args.json:
        said = {setting: plain_keys(seen) for setting, _, seen in parts}
        _write(json.dumps({"target": name or None, "host": args.host, "keys": said}))
        return
    for setting, place, seen in parts:
        _write("\n".join(key_lines(setting, place, name or args.host, seen, style_for(sys.stdout))))


# -- check


def _check(args: argparse.Namespace) -> int:
    from capkeep.host.reach import reach
    from capkeep.plan.load import load_plan
    from capkeep.report.style import style_for
    from capkeep.report.targets import reached_lines

    _must_be_root("ask a target: the key to log in with is its room's alone")
    plan = load_plan(resolve(args))
    names = _chosen(plan, args.names)
    found: list[Reached] = []
    for one in reach(plan, names):
        found.append(one)
        if not args.json:
            _write("\n".join(reached_lines(one, style_for(sys.stdout))))
    if args.json:
        _write(json.dumps([one._asdict() for one in found]))
    failures = [one.failure for one in found if one.failure]
    if not failures:
        return EXIT_COMPLETE
    known = failures[0] in list(Failure)
    return EXIT_CODES[Failure(failures[0])] if known else EXIT_FAILED


def _chosen(plan: "Plan", names: "Iterable[str]") -> tuple[str, ...]:
    known = [target.name for target in plan.targets]
    for name in names:
        if name not in known:
            said = ", ".join(known) or "none that a job takes files of"
            raise UsageError(f"there is no target {name}", hint=f"known: {said}")
    if not known:
        hint = "write targets = … in a job, then `capkeep apply`"
        raise UsageError("no job takes files of another host", hint=hint)
    return tuple(names) or tuple(known)


def _must_be_root(what: str) -> None:
    if os.geteuid() != 0:
        raise RefusedError(f"only root can {what}", hint="use sudo")


# -- enroll


def _enroll(args: argparse.Namespace) -> int:
    import socket

    from capkeep import __version__
    from capkeep.config.load import load
    from capkeep.host import enroll

    _must_be_root("enrol a target: its key is a secret of this server's")
    config = load(resolve(args).config)
    target = enroll.target_of(config, args.name)
    key = enroll.public_key(target.identity, config.host.user_prefix)
    wanted = enroll.enrolment(config, target, key, socket.gethostname())
    if target.way == "sftp":
        from capkeep.host import enroll_sftp

        if args.with_capkeep or args.start or target.user != enroll_sftp.LOGIN:
            hint = f'take it away, and user from [targets.{args.name}] if it is not "{enroll_sftp.LOGIN}"'
            raise UsageError(
                f"{args.name} is to have no capkeep, and a login of its own", hint=hint
            )
        text = enroll_sftp.script(wanted, remove=args.remove, dry_run=args.dry_run)
    else:
        from capkeep.host.enroll_script import script

        text = script(
            wanted, __version__, carried=enroll.carried() if args.with_capkeep else None,
            remove=args.remove, dry_run=args.dry_run, start=args.start,
        )  # fmt: skip
    if args.printed:
        sys.stdout.write(text)
        return EXIT_COMPLETE
    return enroll.run_there(enroll.way(target, args.login, args.jump), text)
