"""What every room with an engine does when it is only asked to show itself."""

import time
from typing import Final

from capkeep.engines import ENGINES
from capkeep.engines.base import Call
from capkeep.errors import Failure
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.protocol import Message
from capkeep.rooms.scripts import TOOLS, interpreter_of

SECONDS: Final = 30
LINES: Final = 3  # of what the engine says of itself


def probe(room: EngineRoom, _request: Message) -> Message:
    """Prove the vault and an engine process, which is asked for its version and nothing else.

    It gets no password, and nothing is written: another caller's engine may be at work here.
    """
    repository = room.brief.repository
    assert repository is not None, "a room with an engine has a repository"
    cache = room.brief.room.grant.write[0]
    engine = ENGINES[repository.engine]
    command = engine.version(Call(
        program=repository.program, tools=TOOLS,
        interpreter=interpreter_of(repository.program) if engine.traits.script else (),
        repository=repository.location, relay=room.relay(),
        cache_dir=cache, tmp_dir=cache, password="",
    ))  # fmt: skip
    said: list[str] = []

    def take(_stream: str, line: bytes) -> None:
        if len(said) < LINES:
            said.append(line.decode(errors="replace"))

    room.await_vault()
    with room.engine(command.argv, dict(command.env)) as process:
        code = process.run(take, on_tick=lambda: None, deadline=time.monotonic() + SECONDS)
    room.finish_wire()
    return {
        "exit_code": code,
        "failure": Failure.ENGINE if code else None,
        "text": f"the engine ended with {code}" if code else " ".join(said),
        "hint": "",
        "engine_words": "\n".join(said),
        "summary": {},
    }
