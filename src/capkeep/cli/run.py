"""Verbs that the runner carries out: run, check, init, snapshots. This side only asks and shows."""

import argparse
import contextlib
import os
import signal
import socket
import stat
import sys
import time
from types import FrameType

from capkeep.cli import early
from capkeep.cli.places import refuse_other_opener, resolve
from capkeep.errors import (
    EXIT_CODES,
    EXIT_FAILED,
    CapkeepError,
    Failure,
    RefusedError,
    StepError,
    UsageError,
)
from capkeep.plan.places import Places
from capkeep.rooms.protocol import Channel, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOORS_OPEN_SECONDS = 15
IDLE_SECONDS = 3
NICENESS = 10


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the command line."""
    run = commands.add_parser("run", help="back up now, and show how it goes")
    run.add_argument("jobs", nargs="*", metavar="JOB", help="default: every job")
    run.add_argument("--dry-run", action="store_true", help="read everything, store nothing")
    run.add_argument("--accept-shrink", action="store_true",
                     help="the sources are meant to be much smaller than the last time")  # fmt: skip
    run.add_argument("--proof", action="store_true", help="show each room's kernel facts in full")
    run.set_defaults(handler=_run)
    check = commands.add_parser("check", help="check repositories, in the keeper's room")
    check.add_argument("repositories", nargs="*", metavar="REPOSITORY", help="default: all")
    check.add_argument("--read-data", metavar="PART", default="",
                       help="also read data: a percentage (10%%), a size (5G) or n/t (1/30)")  # fmt: skip
    check.add_argument("--job", metavar="JOB", action="append", default=[], dest="jobs",
                       help="check this job's repositories, as its table `check` says")  # fmt: skip
    _password_option(check)
    check.set_defaults(handler=_check)
    init = commands.add_parser("init", help="make the repositories that are not there yet")
    init.add_argument("repositories", nargs="*", metavar="REPOSITORY", help="default: all")
    init.set_defaults(handler=_init)
    snapshots = commands.add_parser("snapshots", help="list snapshots")
    snapshots.add_argument("repositories", nargs="*", metavar="REPOSITORY", help="default: all")
    _password_option(snapshots)
    snapshots.set_defaults(handler=_snapshots)


def _password_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--password-file", metavar="FILE", default="",
        help="holds the password that a target keeps, of the one repository meant (root only)",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    options: Message = {"dry_run": args.dry_run, "accept_shrink": args.accept_shrink}
    request: Message = {"action": "run", "jobs": args.jobs, **options, "apart": True}
    apart: list[Message] = []
    code = ask(args, request, apart=apart)
    for message in apart:
        from capkeep.cli.apart import run_apart
        from capkeep.run.errand import AFTER_PULLS
        from capkeep.run.vocabulary import worst

        jobs, parallel = message.get("jobs"), message.get("parallel")
        assert isinstance(jobs, list), "our own runner's"
        assert isinstance(parallel, int), "our own runner's"
        code = worst([code, *run_apart(args, jobs, parallel, options)])
        if not args.dry_run:
            code = worst([code, ask(args, {"action": AFTER_PULLS})])
    _remind(args)
    return code


def _remind(args: argparse.Namespace) -> None:
    """Of keys that nobody has outside of this machine: the loudest moment is now."""
    from capkeep.plan.exported import never_exported, reminder

    if names := never_exported(resolve(args)):
        text, hint = reminder(names)
        print(f"capkeep: {text}\n  hint: {hint}", file=sys.stderr)


def _check(args: argparse.Namespace) -> int:
    if args.jobs and (args.repositories or args.read_data):
        raise UsageError("a job says itself which repositories are checked, and how")
    if args.password_file:
        from capkeep.cli.brought import check

        return check(args)
    if args.jobs:
        return ask(args, {"action": "check", "jobs": args.jobs})
    request: Message = {"action": "check", "repositories": args.repositories}
    return ask(args, request | {"read_data": args.read_data})


def _init(args: argparse.Namespace) -> int:
    code = ask(args, {"action": "init", "repositories": args.repositories})
    _remind(args)
    return code


def _snapshots(args: argparse.Namespace) -> int:
    from capkeep.report.snapshots import show_snapshots

    if args.password_file:
        from capkeep.cli.brought import snapshots

        return snapshots(args)

    coming: list[object] = []
    found: dict[str, list[object]] = {}

    def collect(message: Message) -> None:
        if message.get("event") == "snapshot":
            coming.append(message.get("snapshot"))
        elif message.get("event") in ("listed", "end"):
            if message.get("event") == "listed":  # and not cut off
                found[str(message.get("repository"))] = coming.copy()
            coming.clear()

    code = ask(args, {"action": "snapshots", "repositories": args.repositories}, collect)
    show_snapshots(found, as_json=args.json)
    return code


class _Collector:
    """A display that keeps what is wanted and shows the rest only when it is an error."""

    def __init__(self, collect: "Callable[[Message], None]") -> None:
        self._collect = collect

    def handle(self, message: Message) -> None:
        """Take one message."""
        self._collect(message)
        if message.get("event") == "end" and message.get("exit_code"):
            print(f"capkeep: {message.get('text')}", file=sys.stderr)
            if message.get("engine_words"):
                print(message["engine_words"], file=sys.stderr)

    def close(self) -> None:
        """Nothing to end."""


def ask(
    args: argparse.Namespace, request: Message, collect: "Callable[[Message], None] | None" = None,
    *, until_copies: bool = False, apart: "list[Message] | None" = None,
) -> int:  # fmt: skip
    """Converse with the runner; Ctrl-C asks it to stop, a second one leaves at once.

    With `until_copies` the backup alone is waited for: what is copied after it goes on without us.
    `apart` takes what is to be asked for by connections of its own (`run.vocabulary`).
    """
    with Channel(connect(resolve(args), args)) as channel:
        _send(channel, request)
        # Imported only now, and politely: the rooms start meanwhile, and need the processors.
        with contextlib.suppress(PermissionError):  # started by a unit that may not
            os.nice(NICENESS)
        from capkeep.report.terminal import display

        shown = _Collector(collect) if collect else display(
            as_json=args.json, full_proof=getattr(args, "proof", False)
        )  # fmt: skip
        code: int | None = None
        made: int | None = None  # of the backup that has ended
        try:
            for message in _until_gone(channel):
                if message.get("event") == "result":
                    raise _turned_away(message)
                if message.get("event") == "apart" and apart is not None:
                    apart.append(message)
                    continue
                if until_copies and made is not None and message.get("action") == "copy":
                    code = made
                    break
                shown.handle(message)
                found = message.get("exit_code")
                if message.get("event") == "end":
                    made = found if isinstance(found, int) else EXIT_FAILED
                if message.get("event") == "done":
                    code = found if isinstance(found, int) else EXIT_FAILED
                    break
        finally:
            shown.close()
    if code is None:
        print("capkeep: the runner ended without a result", file=sys.stderr)
        print("  hint: `capkeep status` shows what became of the run", file=sys.stderr)
        return EXIT_CODES[Failure.INTERRUPTED]
    return code


def _turned_away(message: Message) -> StepError:
    """What the doors say when they start no runner."""
    failure = Failure(str(message.get("failure")))
    hint = "you have several runs under way; `capkeep status` shows them"
    return StepError(
        failure, str(message.get("text")), hint=hint if failure is Failure.LOCKED else ""
    )


def _until_gone(channel: Channel) -> "Iterator[Message]":
    """What the runner says, until it has said all or is gone."""
    try:
        yield from channel
    except ConnectionError:
        return


def _send(channel: Channel, request: Message) -> None:
    """Ask; there is no moment at which Ctrl-C would leave a run behind that nobody has stopped."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        # Who is turned away at the door finds it shut, and the reason lying there.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            channel.send(request)
        _stop_on_interrupt(channel)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _stop_on_interrupt(channel: Channel) -> None:
    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping…", file=sys.stderr)
        with contextlib.suppress(OSError):  # it has ended by itself meanwhile
            channel.send({"action": "stop"})

    signal.signal(signal.SIGINT, on_interrupt)


def connect(places: Places, args: argparse.Namespace) -> socket.socket:
    """A connection to the runner; opens the doors for a while where nobody has.

    Raises RefusedError, each cause with its own hint.
    """
    path = places.runner_socket
    knocked = early.opened(path)
    if knocked is not None:
        return knocked
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except PermissionError as error:
        sock.close()
        raise RefusedError(
            f"you may not ask for a run ({path})",
            hint=_who_may(path),
        ) from error
    except (FileNotFoundError, ConnectionRefusedError):
        try:
            _open_doors(places, args)
        except BaseException:
            sock.close()
            raise
        _connect_soon(sock, path)
    return sock


def _who_may(path: str) -> str:
    """What somebody does who may not ask there."""
    members = (
        "only members of the group that [host] group names may; an administrator adds you with:"
        " usermod -aG capkeep YOU, and you log in again"
    )
    try:
        state = os.stat(path)
    except OSError:
        return members
    # A door for its owner alone is that of a host on which one user starts all rooms.
    alone = not state.st_mode & stat.S_IRWXG
    return f"only its owner may: sudo -u '#{state.st_uid}' capkeep run" if alone else members


def _nobody() -> RefusedError:
    """For those who may not open them."""
    return RefusedError(
        "nobody opens the doors to the rooms on this host",
        hint="root runs `capkeep doors` (or `capkeep run`, which opens them for a while)",
    )


def _open_doors(places: Places, args: argparse.Namespace) -> None:
    """Start the doors in the background; they close by themselves when nothing happens."""
    from capkeep.host.apply import make_run_directories
    from capkeep.host.files import open_log
    from capkeep.kernel.process import python, spawn
    from capkeep.plan.load import load_plan
    from capkeep.plan.model import Starter

    own = os.geteuid() == 0 or args.user
    try:
        plan = load_plan(places)
    except CapkeepError:
        if own:
            raise
        raise _nobody() from None
    if not own and os.geteuid() != plan.opener:
        raise _nobody()
    if plan.starter is Starter.SYSTEMD:
        raise RefusedError(
            f"systemd does not listen on {places.runner_socket}",
            hint=f"systemctl start {plan.name}-runner.socket; `capkeep audit` tells what is wrong",
        )
    refuse_other_opener(plan)
    where = ["--user"] if args.user else []
    where += ["--prefix", os.path.abspath(args.prefix)] if args.prefix else []
    make_run_directories(plan)
    log = open_log(places.doors_log)
    try:
        spawn(
            [plan.interpreter, *python(plan.package, "capkeep.__main__"), *where,
             "doors", "--exit-when-idle", str(IDLE_SECONDS)],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": os.path.expanduser("~"),
                 **{k: v for k, v in os.environ.items() if k.startswith("XDG_")}},
            stderr=log,
            survive_parent=True,
        )  # fmt: skip
    finally:
        os.close(log)


def _connect_soon(sock: socket.socket, path: str) -> None:
    deadline = time.monotonic() + DOORS_OPEN_SECONDS
    while True:
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() > deadline:
                sock.close()
                raise RefusedError(
                    "the doors do not open", hint=f"see {os.path.dirname(path)}/doors.log"
                ) from error
            time.sleep(0.02)
        else:
            return
