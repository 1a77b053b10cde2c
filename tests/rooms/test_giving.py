"""What is given comes whole over filesystems, engines and callers that are not as one would wish."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from capkeep.cli import given
from capkeep.errors import Failure, StepError
from capkeep.host.unpack import Unpacker
from capkeep.kernel.process import spawn
from capkeep.plan.model import Brief, Grant, Mode, Places, Room, RoomKind, Walls
from capkeep.rooms.base import EngineRoom, Stopped
from capkeep.rooms.engine import LINE_LIMIT, RunningEngine
from capkeep.rooms.parcel import END, Item, fitted, head, items
from capkeep.rooms.parcel import LINE_LIMIT as HEAD_LIMIT
from capkeep.rooms.protocol import Channel, ProtocolError, encode

LONG = LINE_LIMIT + (1 << 20)
PRINTS = ["/usr/bin/python3", "-c", f"print('x' * {LONG})"]

# Says EPERM to linkat(2) and, if asked, EINVAL to renameat2(2): as vfat does, and some behind FUSE.
UNLINKED = """
import ctypes, io, os, struct, sys
from capkeep.host.unpack import Unpacker
from capkeep.rooms.parcel import END, Item, head

link, rename = {"x86_64": (265, 316), "aarch64": (37, 276)}[os.uname().machine]
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, link), (0x06, 0, 0, 0x50000 | 1)]
if sys.argv[1] == "neither":
    rules += [(0x15, 0, 1, rename), (0x06, 0, 0, 0x50000 | 22)]
rules += [(0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter) == 0
try:
    os.link("there", "linked", src_dir_fd=os.open(".", os.O_RDONLY))
    sys.exit("hard links work")
except PermissionError:
    pass
item = Item("/new", "file", 0o640, os.geteuid(), os.getegid(), 10**18, size=3)
pipe = io.BytesIO(
    head(item) + b"new" + head(item._replace(path="/there")) + b"new"
    + head(item._replace(path="/link", kind="symlink", link="new", size=0))
    + head(item._replace(path="/taken", kind="symlink", link="new", size=0)) + END
)
unpacker = Unpacker(os.open(".", os.O_RDONLY), in_place=False, overwrite=False)
unpacker.take(pipe)
print(unpacker.count, sorted(problem.path for problem in unpacker.problems))
"""


@pytest.mark.parametrize("without", ["links", "neither"])
def test_where_there_are_no_hard_links_nothing_is_replaced_either(
    tmp_path: Path, without: str
) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "taken").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", UNLINKED, without], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": os.path.abspath("src")}, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "2 ['/taken', '/there']\n", done
    assert sorted(os.listdir(tmp_path)) == ["link", "new", "taken", "there"]
    assert (tmp_path / "new").read_text() == "new"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").readlink() == Path("new")
    assert [(tmp_path / name).read_text() for name in ("taken", "there")] == ["old", "old"]


def test_what_an_engine_prints_in_one_long_line_is_taken_in_parts() -> None:
    for in_parts in (True, False):
        out, sending = os.pipe()
        errors, complaining = os.pipe()
        child = spawn(PRINTS, env={}, stdout=sending, stderr=complaining)
        os.close(sending)
        os.close(complaining)
        running = RunningEngine(child, out, errors, {})
        size = 0

        def take(_stream: str, part: bytes) -> None:
            nonlocal size
            size += len(part)

        try:
            if in_parts:
                running.take_parts()
                code = running.run(take, on_tick=lambda: None, deadline=time.monotonic() + 60)
                assert (code, size) == (0, LONG + 1)
            else:  # as what is read line by line has to be
                with pytest.raises(StepError, match="a line over"):
                    running.run(take, on_tick=lambda: None, deadline=time.monotonic() + 60)
        finally:
            child.kill()
            os.close(out)
            os.close(errors)


NO_REPOSITORY = Brief(
    room=Room("hook", RoomKind.HOOK, Grant("me", 0, 0)), mode=Mode.USER, job=None, repository=None,
    places=Places("", "", "", "", ""), access=None, peer_uid=0, hostname="", host_namespaces=(),
    walls=Walls(()),
)  # fmt: skip


def test_a_caller_who_takes_nothing_is_left() -> None:
    near, far = socket.socketpair()
    with near, far:
        room = EngineRoom.__new__(EngineRoom)
        room.caller, room.patience, room.brief = Channel(near), 0.3, NO_REPOSITORY
        far.sendall(b'{"action":"ls"}\n')
        assert room.request() == {"action": "ls"}
        begun = time.monotonic()

        def tell() -> None:
            while time.monotonic() < begun + 30:
                room.tell({"event": "entry", "path": "/a/path"})

        with pytest.raises(Stopped):
            tell()
        assert 0.3 <= time.monotonic() - begun < 30


def test_attributes_that_are_too_much_together_do_not_break_what_is_given() -> None:
    many = tuple((f"user.{number}\udcff", b"\xff" * 65_536) for number in range(20))
    item = Item(
        "/" + "\udcff" * 4095, "file", 0o644, 1, 1, 0, link="\udcff" * 4095, attributes=many
    )
    assert len(head(item)) > HEAD_LIMIT
    with pytest.raises(ProtocolError):
        list(items(io.BytesIO(head(item) + END)))
    fit = fitted(item)
    assert 0 < len(fit.attributes) < len(many)
    assert len(head(fit)) < HEAD_LIMIT
    assert list(items(io.BytesIO(head(fit) + END))) == [fit]
    few = item._replace(attributes=many[:2])
    assert fitted(few) == few


@pytest.mark.parametrize(
    "said, room_says, failure",
    [
        (b"no file\n", "stopped", Failure.INTERRUPTED),  # we have left, and say why
        (b"no file\n", "", Failure.INTERRUPTED),  # a room that has no last word
        (b"", "damaged", Failure.DAMAGED),  # its own reason to end early
    ],
)
def test_what_cannot_be_taken_ends_at_once_and_says_why(
    tmp_path: Path, said: bytes, room_says: str, failure: Failure
) -> None:
    near, far = socket.socketpair()
    outlet, inlet = os.pipe()
    unpacker = Unpacker(os.open(tmp_path, os.O_RDONLY), in_place=False, overwrite=False)

    def room() -> None:
        os.write(inlet, said)
        with suppress(BrokenPipeError):
            while said:
                os.write(inlet, b"x" * 4096)
        os.close(inlet)
        if room_says:
            far.sendall(encode({"event": "result", "failure": room_says, "text": "its words"}))

    thread = threading.Thread(target=room)
    begun = time.monotonic()
    with near, far, open(outlet, "rb") as pipe:
        thread.start()
        if said:
            with pytest.raises(StepError, match="no file") as raised:
                given._taken(Channel(near), pipe, unpacker, lambda _: None)
            assert raised.value.failure is failure
        else:
            assert given._taken(Channel(near), pipe, unpacker, lambda _: None)["failure"] == failure
        thread.join(10)
    assert time.monotonic() - begun < 20
