"""Dumps that were restored are loaded, and compared with what their dumper has noted of them."""

import json
import os
import time
from collections.abc import Callable
from typing import Final

from capkeep.kernel.process import interpreter, python
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.calls import read_note
from capkeep.rooms.protocol import Message, is_file_name
from capkeep.rooms.trials import TRIALS

MANIFEST: Final = "manifest.json"
MANIFEST_LIMIT: Final = 64 << 20  # bytes
PROGRAM: Final = "capkeep.rooms.dumps.count"
KIND: Final = "sqlite"  # the only one that needs no server
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


class Loaded:
    """What became of the dumps of a drill."""

    def __init__(self, room: EngineRoom, until: float, scratch: str = "") -> None:
        self._room = room
        self._until = until  # of time.monotonic()
        self._scratch = scratch
        self.databases = self.tables = self.rows = 0  # that are as their dumper noted
        self.others = 0  # files of kinds that are not loaded
        self.seconds = 0.0  # that servers took, from their making to their end
        self.unproven: dict[str, str] = {}  # dumps that could not be looked at, and why

    def load(self, folder: str, path: str, differs: Callable[[str, str], None]) -> None:
        """A dump's directory, restored; `path` is what it is called in the snapshot."""
        try:
            # Whoever wrote the dump may have made anything of it, such as a FIFO.
            noted = json.loads(read_note(f"{folder}/{MANIFEST}", MANIFEST_LIMIT))
            files = [item for item in noted["files"] if is_file_name(str(item["file"]))]
            kind = str(noted["kind"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            differs(f"{path}/{MANIFEST}", f"says not what the dump is: {error}")
            return
        if os.path.islink(folder):
            differs(path, "is a link, and no directory of a dump")
            return
        if kind in TRIALS:
            self._try(kind, noted, folder, path, differs)
            return
        if kind != KIND:
            self.others += len(files)
            return
        for item in files:
            if detail := self._count(f"{folder}/{item['file']}", item):
                differs(f"{path}/{item['file']}", detail)

    def leave_out(self, path: str, why: str) -> None:
        """A dump that nobody can say anything of: neither right nor wrong."""
        self.unproven[path] = why
        self._room.tell({"event": "warning", "text": f"not proven: the dump at {path}: {why}"})

    def _try(
        self, kind: str, noted: Message, folder: str, path: str, differs: Callable[[str, str], None]
    ) -> None:
        """Load a dump into a server of its own. Raises StepError, Stopped, OSError."""
        from capkeep.rooms.ground import Ground, Unproven
        from capkeep.rooms.trials.noted import Unlike

        def tell(file: str, detail: str) -> None:
            differs(f"{path}/{file}", detail)

        begun = time.monotonic()
        try:
            with Ground(self._room, self._scratch, self._until) as ground:
                found = TRIALS[kind]()(ground, folder, noted, tell)
            for file, why in ground.unproven:
                self.leave_out(f"{path}/{file}", why)
            self.databases += found.databases
            self.tables += found.tables
            self.rows += found.rows
        except Unproven as reason:
            self.leave_out(path, str(reason))
        except Unlike as why:
            differs(path, f"cannot be compared with what the dumper noted: {why}")
        except (ValueError, TypeError, RecursionError):  # their words repeat what was answered
            differs(path, "cannot be compared with what the dumper noted")
        self.seconds += time.monotonic() - begun

    def _count(self, file: str, item: Message) -> str:
        """What is wrong with a database; "" if nothing is. Raises StepError, Stopped."""
        said: dict[str, list[str]] = {"stdout": [], "stderr": []}

        def take(stream: str, line: bytes) -> None:
            if len(said[stream]) < 5:
                said[stream].append(line.decode(errors="replace")[:200])

        argv = (interpreter(), *python(PACKAGE, PROGRAM), file)
        with self._room.engine(argv, ENVIRONMENT, tell=False) as process:
            code = process.run(
                take, on_tick=self._room.alive, deadline=max(time.monotonic(), self._until)
            )
        found = [int(n) for n in " ".join(said["stdout"]).split() if n.isdecimal()]
        if code or len(found) != 2:
            return (
                f"the database cannot be loaded: {' '.join(said['stderr']) or f'exit code {code}'}"
            )
        if found != [item.get("tables"), item.get("rows")]:
            return (
                f"{found[0]} tables, {found[1]} rows; the dumper noted"
                f" {item.get('tables')} and {item.get('rows')}"
            )
        self.databases += 1
        self.tables += found[0]
        self.rows += found[1]
        return ""

    def facts(self) -> Message:
        """In numbers; nothing where there was no dump."""
        counts = {"databases": self.databases, "tables": self.tables, "rows": self.rows,
                  "not_loaded": self.others, "load_seconds": round(self.seconds, 3),
                  "unproven": self.unproven}  # fmt: skip
        return {k: v for k, v in counts.items() if v}
