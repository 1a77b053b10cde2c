"""Stands on a target in the answerer's place, and does what the argument names.

It speaks the connection's frames by itself (docs/architecture.md), and knows nothing of capkeep's
code. It is no part of a test: a test puts it there as `python3 hostile_target.py NAME`.
"""

import json
import os
import select
import struct
import sys
import time

HELLO = b"capkeep pull 1\n"
OPEN, DATA, END, RESET, CREDIT, PING = range(1, 7)
TALK, WIRE, FIRST = 0, 1, 2
PAYLOAD = 1 << 16
SECONDS = 2.0  # for whoever floods
EVIL = "\x1b[2J\x1b]0;owned\x07\x1b[31mowned\r\x9b31m\u202e"


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload


def tell(**message: object) -> None:
    """Words of the conversation, as much as may be sent at a time."""
    line = json.dumps(message).encode() + b"\n"
    for at in range(0, len(line), PAYLOAD):
        write(frame(DATA, TALK, line[at : at + PAYLOAD]))


def exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def hear() -> "tuple[int, int, bytes]":
    kind, channel, length = struct.unpack(">BHI", exactly(7))
    return kind, channel, exactly(length)


def asked() -> "dict[str, object]":
    """Both hellos, and what the server asks for."""
    write(HELLO)
    exactly(len(HELLO))
    line = b""
    while not line.endswith(b"\n"):
        kind, channel, payload = hear()
        if (kind, channel) == (DATA, TALK):
            line += payload
    request: dict[str, object] = json.loads(line)
    return request


def drain(seconds: float) -> None:
    """Listen, as long as the server is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([0], [], [], 0.2)[0]:
            hear()


CAPABILITY = ["CAP_DAC_READ_SEARCH"]
FACTS = {
    "pid": 7, "uids": [995] * 4, "gids": [995] * 4, "groups": [995], "inheritable": CAPABILITY,
    "permitted": CAPABILITY, "effective": CAPABILITY, "bounding": CAPABILITY, "ambient": CAPABILITY,
    "no_new_privs": True, "seccomp": 2, "seccomp_filters": 35, "landlock": 7,
    "namespaces": [["mnt", 1], ["net", 2]], "separated": ["ipc", "mnt", "net", "uts"],
    "interfaces": ["lo"], "writable": ["/proc"], "dumpable": False, "proc": [],
}  # fmt: skip


def begin(**more: object) -> None:
    """What an honest room says first, as far as it is needed."""
    for process in ("room", "engine"):
        tell(event="proof", process=process, facts=FACTS, weaker=[], accepted=[])
    include = sys.argv[2:]
    tell(event="kept", include=include, exclude=[], one_file_system=False, canary=True, **more)
    for path in include:
        tell(event="source", path=path, exists=True, kind="dir", empty=False, mount_point=False)


def done(**more: object) -> None:
    """A result as after a good backup."""
    summary = {"snapshot": "0123abcd", "total_files": 400, "bytes_processed": 4_000_000}
    said = {"exit_code": 0, "failure": None, "text": "", "engine": "restic 0.14.0",
            "engine_words": "", "summary": summary, "canary_seen": True} | more  # fmt: skip
    tell(event="result", **said)


def flood(data: bytes) -> None:
    """The same again and again, whatever the other side thinks of it."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        write(data)


def say_good_without_backup() -> None:
    begin()
    done(snapshot="0123abcd")
    drain(5)


def say_good_in_the_counts_alone() -> None:
    begin()
    done()
    drain(5)


def name_an_option_as_snapshot() -> None:
    begin()
    option = "--password-command=touch /srv/owned"
    done(summary={"snapshot": option, "total_files": 1, "bytes_processed": 1}, snapshot=option)
    drain(5)


def escape_from_the_terminal() -> None:
    begin()
    tell(event="message", text=EVIL)
    tell(event="warning", text=EVIL)
    tell(event="unreadable", path=f"/srv/data/{EVIL}\n2026 forged line", cause=EVIL, detail=EVIL)
    tell(event="left-out", path=f"/srv/{EVIL}", detail=EVIL)
    tell(
        event="progress",
        files=1,
        total_files=2,
        bytes=1,
        total_bytes=2,
        current=[EVIL],
        seconds_left=1,
    )
    done(exit_code=1, failure="engine", text=EVIL, hint=EVIL, engine=EVIL, engine_words=EVIL * 10)
    drain(5)


def open_many() -> None:
    begin()
    for number in range(FIRST, FIRST + 1000):
        write(frame(OPEN, number))
    drain(5)


def send_without_credit() -> None:
    begin()
    write(frame(OPEN, FIRST))
    flood(frame(DATA, FIRST, b"x" * PAYLOAD))


def say_a_huge_line() -> None:
    flood(frame(DATA, TALK, b"x" * PAYLOAD))


def announce_a_huge_frame() -> None:
    write(struct.pack(">BHI", DATA, TALK, 0xFFFFFFFF))
    flood(b"x" * PAYLOAD)


def flood_with_events() -> None:
    begin()
    credit, end = 1 << 18, time.monotonic() + SECONDS
    line = json.dumps(
        {
            "event": "unreadable",
            "path": "/srv/data/" + "x" * 3000,
            "cause": "io",
            "detail": "y" * 3000,
        }
    )
    data = line.encode() + b"\n"
    while time.monotonic() < end:
        while credit >= len(data):
            write(frame(DATA, TALK, data))
            credit -= len(data)
        kind, channel, payload = hear()
        if (kind, channel) == (CREDIT, TALK):
            credit += struct.unpack(">I", payload)[0]
    done()
    drain(5)


def flood_with_pings() -> None:
    begin()
    flood(frame(PING, 0) * 1000)


def give_credit_for_ever() -> None:
    begin()
    flood(frame(CREDIT, WIRE, struct.pack(">I", 0xFFFFFFFF)))


def greet_with_a_banner() -> None:
    flood(f"{EVIL} All activity may be monitored.\n".encode() * 100)


def show_a_false_proof() -> None:
    begin()
    tell(event="proof", process="vault", facts={"uid": 0}, weaker=[], accepted=[])
    tell(event="proof", process="room", facts={"uid": "0; rm -rf /"}, weaker="none", accepted={})
    done()
    drain(5)


def show_files_of_others() -> None:
    begin()
    tell(event="manifest", nonce="ab", check="cd", begin=0, end=1,
         files=[["/root/.ssh/id_ed25519", 1, 1, True, "ab"]])  # fmt: skip
    done()
    drain(5)


if __name__ == "__main__":
    wish = globals()[sys.argv[1]]
    if wish not in (announce_a_huge_frame, greet_with_a_banner):
        asked()
    elif wish is announce_a_huge_frame:
        write(HELLO)
    wish()
