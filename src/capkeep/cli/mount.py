"""The mount verb: a snapshot as files, for root, until Ctrl-C or umount."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from capkeep.cli.look import add_verb, converse_with, finish, open_target, plan_for, repository_name
from capkeep.errors import EXIT_COMPLETE, Failure, RefusedError, StepError

if TYPE_CHECKING:
    from capkeep.engines.base import Traits
    from capkeep.rooms.protocol import Message


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    mount = add_verb(commands, "mount", "show a snapshot as files, to read only", _mount)
    mount.add_argument("snapshot", metavar="SNAPSHOT", help="an id, or latest")
    mount.add_argument("directory", metavar="DIRECTORY", help="where: an empty one, or a new one")


def _mount(args: argparse.Namespace) -> int:
    from capkeep.host.shown import Shown, Unmounted
    from capkeep.plan.model import RoomKind

    alone = _traits(args).mounts_one
    directory = os.path.abspath(args.directory)
    request: Message = {"action": "mount", "options": {"snapshot": args.snapshot}}
    folder = open_target(directory)
    try:
        with Shown(folder, alone=alone) as shown:

            def on_event(_message: "Message") -> None:
                if shown.look():
                    text = f"snapshot {shown.snapshot[:8]} is at {directory}"
                    print(f"{text} until Ctrl-C or umount", file=sys.stderr, flush=True)

            try:
                result = converse_with(
                    args, RoomKind.VIEWER, request, on_event, on_ready=shown.begin
                )
                if shown.snapshot:
                    shown.settle(engine_failed=result.get("failure") is not None)
                return finish(result)
            except Unmounted:
                return EXIT_COMPLETE
            except StepError as error:
                if error.failure is Failure.STOPPED and shown.is_shown:
                    return EXIT_COMPLETE  # the one way to end it from here
                raise
    finally:
        os.close(folder)


def _traits(args: argparse.Namespace) -> "Traits":
    """The engine's. Raises RefusedError for who may not mount, and for an engine that cannot."""
    from capkeep.engines import ENGINES

    if os.geteuid() != 0 or args.user:
        raise RefusedError(
            "only root may mount a snapshot",
            hint="`capkeep restore SNAPSHOT PATH --to DIR` brings files back without root",
        )
    plan = plan_for(args, "mount a snapshot", "whoever sees any snapshot sees all files")
    repository = plan.repository(repository_name(plan, args.repository))
    traits = ENGINES[repository.engine].traits
    if not traits.mounts:
        raise RefusedError(
            f"{repository.engine} shows no snapshots as files, and {repository.name} is one of its",
            hint="`capkeep ls` and `capkeep restore SNAPSHOT PATH --to DIR` work with every engine",
        )
    return traits
