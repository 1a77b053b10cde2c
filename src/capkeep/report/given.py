"""Show what a member of the group has got back, and what not."""

import json
import sys

from capkeep.errors import EXIT_CODES, EXIT_COMPLETE, EXIT_PARTIAL, Failure
from capkeep.host.unpack import CONFLICT, Unpacker
from capkeep.report.text import clean
from capkeep.rooms.protocol import Message

SHOWN = 20


class GivenReport:
    """Takes a giver's events; `end` prints what came and what did not."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown = 0

    def event(self, message: Message) -> None:
        """One event: what is left out is named, the rest is kept quiet."""
        kind = message.get("event")
        if self._as_json:
            print(json.dumps(message), flush=True)
        elif kind in ("left-out", "warning"):
            what = str(message.get("path") or message.get("text") or "")
            self._line(f"you could not read it: {what}" if kind == "left-out" else what)

    def end(self, result: Message, unpacker: Unpacker, target: str) -> int:
        """The last line, and an exit code unless all is well or the result says what is not."""
        for problem in unpacker.problems:
            if self._as_json:
                print(json.dumps({"event": "not-written", **problem._asdict()}))
            else:
                self._line(f"not written: {problem.path} {problem.why}")
        if self._as_json:
            print(json.dumps({"event": "result", **result, "written": unpacker.count}), flush=True)
        if result.get("failure") is not None:
            return EXIT_COMPLETE
        summary = result.get("summary")
        found = summary if isinstance(summary, dict) else {}
        if not self._as_json:
            print(
                f"restored {unpacker.count} entries, {unpacker.bytes} bytes, from snapshot"
                f" {str(found.get('snapshot'))[:8]} to {target}; they are yours"
            )
        if found.get("left_out") and not self._as_json:
            self._line(f"{found['left_out']} entries were left out: you could not read them, or who"
                       " could is not certain")  # fmt: skip
        if any(problem.why == CONFLICT for problem in unpacker.problems):
            print("  hint: --overwrite replaces what is there already", file=sys.stderr)
            return EXIT_CODES[Failure.CONFLICT]
        lost = found.get("left_out") or found.get("attributes_left_out")
        return EXIT_PARTIAL if unpacker.problems or lost else EXIT_COMPLETE

    def _line(self, text: str) -> None:
        self._shown += 1
        if self._shown <= SHOWN:
            print(clean(text), file=sys.stderr)
        elif self._shown == SHOWN + 1:
            print("… and more; --json shows all of them", file=sys.stderr)
