"""Runs of several targets side by side, each asked for over a connection of its own.

What one of them says is shown when it has ended, so that no two are mixed up.
"""

import argparse
import contextlib
import io
import json
import math
import select
import signal
import sys
from types import FrameType
from typing import Final

from capkeep.cli.places import resolve
from capkeep.cli.run import connect
from capkeep.errors import EXIT_CODES, EXIT_FAILED, Failure
from capkeep.report.screen import PlainScreen
from capkeep.report.style import never_fail, style_for
from capkeep.report.terminal import PeopleDisplay
from capkeep.report.text import clean
from capkeep.rooms.protocol import Channel, Message

LOOK_SECONDS: Final = 1.0


class _Talk:
    """One run's conversation with its runner."""

    def __init__(self, args: argparse.Namespace, job: str, options: Message) -> None:
        self.job = job
        self.code: int | None = None  # known when it has ended
        self._json: bool = args.json
        self._said = io.StringIO()
        screen = PlainScreen(self._said)
        screen.interval = math.inf  # how it went is of no use when it has ended
        self._display = PeopleDisplay(screen, style_for(sys.stdout), full_proof=args.proof)
        self.channel = Channel(connect(resolve(args), args))
        with contextlib.suppress(OSError):  # turned away: why is to be heard
            self.channel.send({"action": "run", "jobs": [job], **options, "more": True})

    def stop(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(OSError):
            self.channel.send({"action": "stop"})

    def hear(self) -> None:
        """What is there now; at the end the code is known."""
        if not self.channel.hear(self._take) and self.code is None:
            self._end(EXIT_CODES[Failure.INTERRUPTED], "the runner ended without a result")

    def _take(self, message: Message) -> None:
        event, code = message.get("event"), message.get("exit_code")
        if event == "result":  # the doors have started no runner
            self._end(EXIT_CODES[Failure(str(message.get("failure")))], str(message.get("text")))
        elif event == "done":
            self.code = code if isinstance(code, int) else EXIT_FAILED
        elif self._json:
            print(json.dumps({"of": self.job, **message}, separators=(",", ":")), flush=True)
        else:
            self._display.handle(message)

    def _end(self, code: int, why: str) -> None:
        self.code = code
        self._said.write(f"{self.job}: {clean(why)}\n")

    def close(self) -> None:
        """Show what it said; safe to call again."""
        self._display.close()
        sys.stdout.write(self._said.getvalue())
        sys.stdout.flush()
        self._said = io.StringIO()
        self.channel.close()


def run_apart(
    args: argparse.Namespace, jobs: list[str], parallel: int, options: Message
) -> list[int]:
    """Run the jobs, `parallel` at a time; returns their exit codes. Ctrl-C asks all to stop."""
    never_fail(sys.stdout)
    waiting, under_way, codes = list(jobs), list[_Talk](), list[int]()

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping…", file=sys.stderr)
        waiting.clear()
        for talk in under_way:
            talk.stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        while waiting or under_way:
            while waiting and len(under_way) < parallel:
                job = waiting.pop(0)
                if not args.json:
                    print(f"{job} … ({len(jobs) - len(waiting)} of {len(jobs)})", flush=True)
                under_way.append(_Talk(args, job, options))
            by_channel = {talk.channel: talk for talk in under_way}
            for channel in select.select(list(by_channel), [], [], LOOK_SECONDS)[0]:
                by_channel[channel].hear()
            for talk in [t for t in under_way if t.code is not None]:
                under_way.remove(talk)
                talk.close()
                codes.append(EXIT_FAILED if talk.code is None else talk.code)
    finally:
        signal.signal(signal.SIGINT, before)
        for talk in under_way:
            talk.close()
    if len(codes) < len(jobs):
        codes.append(EXIT_CODES[Failure.STOPPED])
    return codes
