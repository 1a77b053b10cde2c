"""The dumper: writes out what one server holds, as that server's user, into a directory of its own.

A dump that fails, or whose files are not whole, never takes the place of the last good one.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel import seccomp
from capkeep.plan.model import Dump
from capkeep.rooms.base import EngineRoom, Stopped, option, serve
from capkeep.rooms.dumps import KINDS
from capkeep.rooms.dumps.base import Kind, Noted, Tools
from capkeep.rooms.dumps.staging import Staging, described
from capkeep.rooms.pipe import await_unread, take_pipe
from capkeep.rooms.protocol import Message

MANIFEST: Final = "manifest.json"
NAMED: Final = 5  # files in the record's one sentence; the log has all


def main() -> int:
    """A dumper's whole life."""
    actions = {"dump": dump, "list": names, "stream": stream, "probe": probe}
    return serve(actions, seccomp.Profile.RUNNER)


def _own(room: EngineRoom) -> Dump:
    assert room.brief.dump is not None, "a dumper has a dump"
    return room.brief.dump


def dump(room: EngineRoom, _request: Message) -> Message:
    """Make the dump, look whether it is whole, and put it in its place."""
    what = _own(room)
    kind, tools = KINDS[what.kind](), Tools(room, what)
    staging = Staging(room.writable()[0])
    taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        with named_after(what):
            room.alive()  # is there space at all
            staging.begin()
            tools.folder = staging.folder
            server = kind.server(what, tools)
            noted = _written(room, kind, tools, staging, what)
            _describe(staging, what, server, taken, noted)
            staging.keep()
    finally:
        staging.drop()
    total = sum(n.bytes for n in noted)
    return {
        "exit_code": 0, "failure": None, "text": _sentence(noted), "engine_words": "",
        "engine": server, "summary": {"total_files": len(noted), "bytes_processed": total},
    }  # fmt: skip


def names(room: EngineRoom, _request: Message) -> Message:
    """The files of which the dump would consist now, to be streamed one after the other."""
    what = _own(room)
    kind, tools = KINDS[what.kind](), Tools(room, what)
    with named_after(what):
        server = kind.server(what, tools)
        files = [piece.file for piece in kind.pieces(what, tools)]
    return {
        "exit_code": 0, "failure": None, "text": f"{len(files)} files to stream", "files": files,
        "engine": server, "engine_words": "", "summary": {},
    }  # fmt: skip


def stream(room: EngineRoom, request: Message) -> Message:
    """Write one of these files into a pipe that the caller hands over."""
    what = _own(room)
    wanted = option(request, "file", default="")
    kind, tools = KINDS[what.kind](), Tools(room, what)
    if not what.stream:
        raise StepError(Failure.REFUSED, "this dump is not to be streamed")
    with named_after(what):
        found = (piece for piece in kind.pieces(what, tools) if piece.file == wanted)
        piece = next(found, None)
        if piece is None:
            raise StepError(Failure.ENGINE, f"{wanted} is not there any more")
        target = take_pipe(room)
        try:
            noted = tools.stream(piece, target)
        except Stopped:
            await_unread(target)  # the caller may be gone with its copy: an end would look whole
            raise
        finally:
            os.close(target)
    room.tell({"event": "dumped", "dump": what.name, **noted.told()})
    return {
        "exit_code": 0, "failure": None, "text": _sentence([noted]), "engine_words": "",
        "summary": {},
    }  # fmt: skip


@contextmanager
def named_after(what: Dump) -> Iterator[None]:
    """Errors say which dump it was."""
    try:
        yield
    except StepError as error:
        raise StepError(
            error.failure, f"dump {what.name}: {error}", hint=error.hint,
            engine_words=error.engine_words,
        ) from error  # fmt: skip


def _written(
    room: EngineRoom, kind: Kind, tools: Tools, staging: Staging, what: Dump
) -> list[Noted]:
    """Every piece, written and found whole. Raises StepError, OSError."""
    noted = []
    for piece in kind.pieces(what, tools):
        output = staging.make(piece.file)  # a program that writes itself finds it as private
        try:
            tools.write(piece, -1 if piece.writes_itself else output)
        finally:
            os.close(output)
        found = kind.check(what, tools, piece, f"{staging.folder}/{piece.file}")
        room.tell({"event": "dumped", "dump": what.name, **found.told()})
        noted.append(found)
    return noted


def _describe(staging: Staging, what: Dump, server: str, taken: str, noted: list[Noted]) -> None:
    items: list[dict[str, object]] = [n._asdict() for n in noted]
    with open(staging.make(MANIFEST), "w", encoding="ascii") as file:
        json.dump(described(what, server, taken, items), file, indent=1)
        file.write("\n")


def _sentence(noted: list[Noted]) -> str:
    named = [f"{n.database or n.file} {n.bytes} bytes" for n in noted[:NAMED]]
    more = f" and {len(noted) - NAMED} more" if len(noted) > NAMED else ""
    return f"{', '.join(named)}{more}" if noted else "nothing to dump"


def probe(room: EngineRoom, _request: Message) -> Message:
    """Prove a process that is asked for its version and nothing else."""
    what = _own(room)
    said = Tools(room, what).ask("its program", KINDS[what.kind]().version(what)).decode()
    return {
        "exit_code": 0, "failure": None, "text": said.strip().partition("\n")[0], "hint": "",
        "engine_words": "", "summary": {},
    }  # fmt: skip
