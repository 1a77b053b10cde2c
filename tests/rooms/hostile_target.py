"""A target that lies, in as many ways as it is asked for: what sshd starts in the answerer's place.

usage: hostile_target.py PACKAGE KIND
"""

import os
import select
import sys

sys.path.append(sys.argv[1])

from capkeep.kernel.facts import read_facts
from capkeep.plan import codec
from capkeep.rooms.protocol import encode
from capkeep.rooms.pull.frames import (
    CHANNELS,
    FIRST,
    HEAD,
    PAYLOAD,
    PIPE_WINDOW,
    TALK,
    WIRE,
    Data,
    Session,
    Type,
)

session = Session(opens=True)
asked = bytearray()


def move(seconds: float = 5.0) -> None:
    """Send what waits, and hear what comes."""
    while session.outgoing:
        del session.outgoing[: os.write(1, session.outgoing[:65536])]
    if select.select([0], [], [], seconds)[0]:
        data = os.read(0, 1 << 16)
        if not data:
            raise SystemExit(0)
        if sys.argv[2] == "credit" and asked:
            return  # it does not care
        for event in session.feed(data):
            if isinstance(event, Data):
                session.took(event.channel, len(event.data))
                asked.extend(event.data if event.channel == TALK else b"")


def say(*messages: dict[str, object]) -> None:
    words = b"".join(map(encode, messages))
    while words:
        part = words[: session.room(TALK)]
        session.send(TALK, part)
        words = words[len(part) :]
        move(0.0 if part else 5.0)


def raw(kind: int, channel: int, payload: bytes) -> None:
    session.outgoing += HEAD.pack(kind, channel, len(payload)) + payload


def proofs() -> list[dict[str, object]]:
    facts = codec.to_plain(read_facts(None, ()))
    said = {"event": "proof", "facts": facts, "weaker": [], "accepted": []}
    return [{**said, "process": "room"}, {**said, "process": "engine"}]


def kept() -> dict[str, object]:
    source, canary = sys.argv[3], True
    return {"event": "kept", "include": [source], "exclude": [], "one_file_system": False,
            "canary": canary}  # fmt: skip


def result(**more: object) -> dict[str, object]:
    return {"event": "result", "exit_code": 0, "failure": None, "canary_seen": True,
            "snapshot": "", "summary": {}, **more}  # fmt: skip


def main(kind: str) -> None:
    if kind == "banner":
        os.write(1, b"Welcome to web1!\n")
        return
    while b"\n" not in asked:
        move()
    if kind == "credit":
        raw(Type.OPEN, FIRST, b"")
        for _ in range(3 * PIPE_WINDOW // PAYLOAD):
            raw(Type.DATA, FIRST, bytes(PAYLOAD))
    elif kind == "nine":
        for number in range(CHANNELS + 1):
            raw(Type.OPEN, FIRST + number, b"")
    elif kind == "type":
        raw(77, TALK, b"")
    elif kind == "wire":
        session.send(WIRE, b'{"commit":true}\n')
    elif kind == "line":
        say({"event": "message", "text": "x" * (3 << 20)})
    elif kind == "json":
        session.send(TALK, b"[" * 100_000 + b"\n")
    elif kind == "hurry":
        say({"event": "source", "path": "/etc"})
    elif kind == "other":
        say({**kept(), "include": ["/somewhere/else"]})
    elif kind == "unproven":
        say(kept(), result())
    elif kind == "made-up":
        say(*proofs(), kept(), result(snapshot="ab" * 32))
    elif kind == "nameless":
        say(*proofs(), kept(), result())
    elif kind == "foreign":
        say(kept(), {"event": "live", "files": [{"path": "/etc/shadow", "missing": "gone"}]})
    elif kind == "mute":
        session.end(TALK)
    elif kind == "leaves":
        return
    while True:
        move(60.0)


main(sys.argv[2])
