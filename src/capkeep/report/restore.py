"""Show how a restore goes and what it could not bring back."""

import json
import sys

from capkeep.report.text import clean
from capkeep.rooms.protocol import Message

SHOWN = 20
SIGNS = {"added": "+", "changed": "~", "removed": "-"}


class RestoreReport:
    """Takes a restorer's events; `end` prints what was restored and what was not."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown = 0

    def event(self, message: Message) -> None:
        """One event: proofs and progress are kept quiet, differences and problems shown."""
        if self._as_json:
            print(json.dumps(message), flush=True)
            return
        kind = message.get("event")
        if kind == "change":
            sign = SIGNS.get(str(message.get("change")), "?")
            print(f"{sign} {clean(str(message.get('path')))}: {clean(str(message.get('detail')))}")
            return
        if kind not in ("difference", "unreadable", "warning", "conflict"):
            return
        self._shown += 1
        if self._shown <= SHOWN:
            what = clean(str(message.get("path") or ""))
            detail = clean(str(message.get("detail") or message.get("text") or ""))
            print(f"{kind}: {what} {detail}".rstrip(), file=sys.stderr)
        elif self._shown == SHOWN + 1:
            print("… and more; --json shows all of them", file=sys.stderr)

    def end(self, result: Message) -> None:
        """The last line: counts, and the verification's verdict."""
        if self._as_json:
            print(json.dumps({"event": "result", **result}), flush=True)
            return
        summary = result.get("summary")
        if result.get("failure") is None and isinstance(summary, dict) and "added" in summary:
            counts = ", ".join(f"{summary.get(kind)} {kind}" for kind in SIGNS)
            print(f"of {summary.get('entries')} entries: {counts}; nothing was changed")
        elif result.get("failure") is None and isinstance(summary, dict):
            print(
                f"restored {summary.get('entries')} entries, {summary.get('bytes')} bytes,"
                f" from snapshot {str(summary.get('snapshot'))[:8]} to {summary.get('target')}"
            )
            print("verified: type, owner, mode, size and time of every one of them")
            if left_out := summary.get("left_out"):
                print(f"not restored, if there were any: {clean(str(left_out))}")
