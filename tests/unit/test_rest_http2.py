"""Frames and fields are taken apart strictly, bodies arrive whole, and nobody may take for ever."""

import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import starmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.errors import Failure
from capkeep.rooms.handover import JUNK_LIMIT, Handover, is_handover
from capkeep.rooms.rest import frames
from capkeep.rooms.rest.ends import Times
from capkeep.rooms.rest.frames import Code, Kind, Setting
from capkeep.rooms.rest.hpack import Decoder, Field, PackingError, encode
from capkeep.rooms.rest.http2 import MAX_STREAMS, Pair
from capkeep.rooms.rest.incoming import USELESS_LIMIT
from capkeep.rooms.rest.names import KINDS, Name, Target, parse_target
from capkeep.rooms.rest.requests import Refusal, Request, parse_request
from capkeep.rooms.rest.server import MAX_OPEN, Server
from capkeep.rooms.rest.streams import STREAM_WINDOW, Exchange
from capkeep.rooms.service import StoreError
from tests.rooms.h2 import (
    HELLO,
    Client,
    data,
    hand_over,
    headers,
    literal,
    pseudo,
    request,
    split,
)

HASH = "0123456789abcdef" * 4
QUICK = Times(hello=0.3, head=0.3, stall=0.3)
PATIENT = Times(hello=10, head=10, stall=20)
TEXT = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)


# -- packed fields


def test_the_examples_of_the_standard_are_unpacked() -> None:
    """RFC 7541, C.3 and C.4: three requests, plain and Huffman-coded, one table for each three."""
    plain = (
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    )
    packed = (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    )
    host = (b":authority", b"www.example.com")
    wanted: list[list[Field]] = [
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), host],
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), host,
         (b"cache-control", b"no-cache")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), host,
         (b"custom-key", b"custom-value")],
    ]  # fmt: skip
    for blocks in (plain, packed):
        decoder = Decoder()
        assert [decoder.decode(bytes.fromhex(b)) for b in blocks] == wanted


def test_a_table_that_is_full_forgets_the_oldest() -> None:
    """RFC 7541, C.5, has a table of 256 bytes; ours is made smaller in the same way."""
    decoder = Decoder()
    decoder.decode(b"\x3f\xe1\x01")  # 256
    for n in range(8):
        decoder.decode(b"\x40" + literal(f"name-{n}", "v" * 20)[1:])
    assert decoder.decode(b"\xbe") == [(b"name-7", b"v" * 20)]
    with pytest.raises(PackingError):
        decoder.decode(bytes([0x80 | 62 + 4]))
    with pytest.raises(PackingError):
        Decoder().decode(b"\x3f\xe2\x1f")  # 4097


@given(st.lists(st.tuples(TEXT, TEXT), max_size=8))
def test_plain_fields_come_out_as_they_went_in(fields: list[tuple[str, str]]) -> None:
    block = b"".join(literal(n, v) for n, v in fields)
    assert Decoder().decode(block) == [(n.encode(), v.encode()) for n, v in fields]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_no_block_fails_in_another_way(blocks: list[bytes]) -> None:
    decoder = Decoder()
    with suppress(PackingError):
        for block in blocks:
            decoder.decode(block)


@pytest.mark.parametrize(
    "block",
    [
        b"\x80", b"\xff\x80\x80\x80\x80\x80\x01", b"\xff\xff\xff\xff\x7f", b"\x82\x20", b"\x00",
        b"\x00\x01", b"\x00\x05abc", b"\x00\x01a\x01\n", b"\x00\x01a\x01\xc3", b"\x00\x01a\x81\x00",
        b"\x00\x01a\x81\xff", b"\x00\x01a\x84\xff\xff\xff\xff", literal("a", "x" * 9000),
    ],
)  # fmt: skip
def test_broken_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(PackingError):
        Decoder().decode(block)


def test_a_small_block_that_unpacks_to_much_is_refused() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40" + literal("a", "x" * 3000)[1:])
    with pytest.raises(PackingError):
        decoder.decode(b"\xbe" * 100)


def test_answers_are_understood() -> None:
    block = encode(206, "application/octet-stream", 10, "bytes 0-9/100")
    assert dict(Decoder().decode(block)) == {
        b":status": b"206", b"content-type": b"application/octet-stream",
        b"content-length": b"10", b"content-range": b"bytes 0-9/100",
    }  # fmt: skip


# -- requests


def fields(*more: tuple[str, str], method: str = "GET", target: str = "/config") -> list[Field]:
    return [(n.encode(), v.encode()) for n, v in [*pseudo(method, target), *more]]


def test_what_restic_sends_is_understood() -> None:
    accept = "application/vnd.x.restic.rest.v2"
    given = fields(
        ("user-agent", "Go-http-client/2.0"), ("content-length", "123"), ("accept", accept),
        ("accept-encoding", "gzip"), method="POST", target=f"/data/{HASH}",
    )  # fmt: skip
    wanted = Request("POST", f"/data/{HASH}", 123, accept=accept)
    assert parse_request(given, ended=False) == wanted
    asked = parse_request(fields(("range", "bytes=5-9")), ended=True)
    assert asked == Request("GET", "/config", range=(5, 9))
    made = parse_request(fields(method="POST", target="/?create=true"), ended=False)
    assert (made.length, made.sized) == (0, False)


@given(
    st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=30)), max_size=6), st.booleans()
)
def test_no_fields_make_parsing_fail_in_another_way(more: list[Field], ended: bool) -> None:
    for found in (more, [*fields(), *more], [*more, *fields()]):
        with suppress(Refusal):
            parse_request(found, ended=ended)


@given(st.text(max_size=90))
def test_targets_are_those_of_a_repository_and_no_others(text: str) -> None:
    found = parse_target(text)
    known = {"/config", "/?create=true", *(f"/{kind}/" for kind in KINDS)}
    assert (found is not None) == (text in known)


def test_targets() -> None:
    assert parse_target("/config") == Target(name=Name("config"))
    assert parse_target("/?create=true") == Target(create=True)
    assert parse_target("/locks/") == Target(listing="locks")
    assert parse_target(f"/data/{HASH}") == Target(name=Name("data", HASH))
    for text in (f"/data/{HASH}\n", f"/config/{HASH}", f"/data/{HASH.upper()}", "/data", ""):
        assert parse_target(text) is None


# -- connections


class Echo:
    """Stands in for the policy: answers with the hash of what it was sent, or with much."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.gate = threading.Event()
        self.gate.set()
        self.stored = 0

    def handle(self, exchange: Exchange) -> None:
        request = exchange.request
        self.seen.append(request)
        self.gate.wait(20)
        if request.target.startswith("/much"):
            exchange.answer(200, b"x" * int(request.target[5:]))
            return
        digest = hashlib.sha256()
        if request.target == "/poured":
            exchange.pour(lambda pipe, count: _hashed(digest.update, pipe, count))
        else:
            for piece in exchange.body():
                digest.update(piece)
        exchange.answer(200, digest.hexdigest().encode())


def _hashed(update: Callable[[bytes], None], pipe: int, count: int) -> int:
    part = os.read(pipe, count)
    update(part)
    return len(part)


def _is_end(head: frames.Head, content: bytes) -> bool:
    return head.kind == Kind.GOAWAY and len(content) == head.length


class Bench:
    """A pair that is served, and a way to speak to it."""

    def __init__(self, times: Times) -> None:
        self.echo = Echo()
        self.near, far = socket.socketpair()
        self.handover = Handover(far)
        self.times = times
        self.threads: list[threading.Thread] = []
        self.pairs: list[Pair] = []

    def accept(self) -> threading.Thread:
        ends = self.handover.take()
        assert ends is not None
        pair = Pair(*ends, self.echo, self.times)  # type: ignore[arg-type]
        thread = threading.Thread(target=pair.run)
        thread.start()
        self.threads.append(thread)
        self.pairs.append(pair)
        return thread

    def client(self, **more: int) -> Client:
        found = Client(self.near, **more)
        self.accept()
        return found

    def say(self, content: bytes) -> list[tuple[frames.Head, bytes]]:
        """Send bytes and keep listening; the frames that come until it hangs up or is quiet."""
        return self._listen(content, lambda *frame: False, quiet=0.5)

    def code(self, content: bytes) -> Code | None:
        """With which words the connection was ended; None if it was not.

        Requests that wait at the gate stay there until then: however slow the machine is.
        """
        ends = [c for h, c in self._listen(content, _is_end, quiet=20) if _is_end(h, c)]
        return Code(struct.unpack(">I", ends[0][4:8])[0]) if ends else None

    def _listen(
        self, content: bytes, is_last: Callable[[frames.Head, bytes], bool], quiet: float
    ) -> list[tuple[frames.Head, bytes]]:
        """Send bytes; the frames up to the last, or until it hangs up or is quiet for so long."""
        out, into = hand_over(self.near)
        thread = self.accept()
        with suppress(BrokenPipeError):
            left = memoryview(content)
            while left:
                left = left[os.write(out, left) :]
        answer = b""
        poll = select.poll()
        poll.register(into, select.POLLIN)
        while poll.poll(quiet * 1000):
            part = os.read(into, 65536)
            answer += part
            if not part or any(starmap(is_last, split(answer))):
                break
        self.echo.gate.set()
        os.close(out)
        os.close(into)
        thread.join(10)
        assert not thread.is_alive()
        return split(answer)

    def close(self) -> None:
        self.echo.gate.set()
        self.near.close()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        for pair in self.pairs:
            pair.forget()
        self.handover.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench(PATIENT)
    yield found
    found.close()


@pytest.fixture
def quick() -> Iterator[Bench]:
    found = Bench(QUICK)
    yield found
    found.close()


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


@pytest.mark.parametrize("target", ["/read", "/poured"])
@pytest.mark.parametrize("size", [1, 16384, 65_536, STREAM_WINDOW, 5_000_000])
def test_a_body_arrives_whole(bench: Bench, target: str, size: int) -> None:
    content = os.urandom(size)
    with bench.client() as client:
        for _ in range(2):
            assert client.ask("POST", target, content) == (200, sha(content))


def test_answers_stay_within_the_windows(bench: Bench) -> None:
    with bench.client(window=70_000) as client:
        assert client.ask("GET", "/much3000000") == (200, b"x" * 3_000_000)
        assert client.ask("GET", "/much0") == (200, b"")


def test_many_requests_are_served_at_a_time(bench: Bench) -> None:
    bench.echo.gate.clear()
    with bench.client() as client:
        streams = [client.begin("GET", f"/{n}") for n in range(MAX_STREAMS)]
        deadline = time.monotonic() + 10
        while len(bench.echo.seen) < MAX_STREAMS:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        bench.echo.gate.set()
        assert {client.answer(s)[0] for s in streams} == {200}


def test_a_body_that_is_not_taken_stops_its_stream_alone(bench: Bench) -> None:
    bench.echo.gate.clear()
    content = os.urandom(2_000_000)
    with bench.client() as client:
        slow = client.begin("POST", "/slow", len(content))
        client.upload(slow, content[:STREAM_WINDOW], end=False)
        assert client.windows[slow] == 0
        bench.echo.gate.set()
        assert client.ask("POST", "/other", b"hello") == (200, sha(b"hello"))
        client.upload(slow, content[STREAM_WINDOW:])
        assert client.answer(slow) == (200, sha(content))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3000), max_size=8), st.integers(1, 400), st.integers(0, 200), st.booleans()
)  # fmt: skip
def test_bodies_are_the_same_however_they_are_cut(
    sizes: list[int], step: int, padding: int, continued: bool
) -> None:
    bench = Bench(PATIENT)
    try:
        parts = [os.urandom(n) for n in sizes]
        whole = b"".join(parts)
        block = b"".join(
            literal(n, v) for n, v in [*pseudo("POST", "/x"), ("content-length", str(len(whole)))]
        )
        cuts = [block[i : i + 20] for i in range(0, len(block), 20)] if continued else [block]
        said = HELLO
        for n, cut in enumerate(cuts):
            flags = frames.END_HEADERS if n == len(cuts) - 1 else 0
            said += frames.frame(Kind.CONTINUATION if n else Kind.HEADERS, flags, 1, cut)
        for part in parts:
            padded = bytes([padding]) + part + bytes(padding)
            said += frames.frame(Kind.DATA, frames.PADDED, 1, padded)
        said += frames.frame(Kind.DATA, frames.END_STREAM, 1)
        out, into = hand_over(bench.near)
        bench.accept()
        for i in range(0, len(said), step * 7):
            os.write(out, said[i : i + step * 7])
        answer = b""
        while sha(whole) not in answer:
            part = os.read(into, 65536)
            assert part, split(answer)
            answer += part
        os.close(out)
        os.close(into)
    finally:
        bench.close()


EMPTY = frames.frame(Kind.SETTINGS, 0, 0)
ONE = request("GET", "/x")
MISTAKES: dict[str, tuple[bytes, Code]] = {
    "HTTP/1.1": (b"GET /config HTTP/1.1\r\nHost: vault\r\n\r\n", Code.PROTOCOL_ERROR),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + bytes(512), Code.PROTOCOL_ERROR),
    "no settings first": (frames.PREFACE + ONE, Code.PROTOCOL_ERROR),
    "settings of a wrong size": (HELLO + frames.frame(Kind.SETTINGS, 0, 0, b"x" * 7), Code.FRAME_SIZE_ERROR),
    "settings of a stream": (HELLO + frames.frame(Kind.SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
    "settings without end": (HELLO + frames.frame(Kind.SETTINGS, 0, 0, b"\0\7\0\0\0\0" * 100), Code.ENHANCE_YOUR_CALM),
    "a window too large": (HELLO + frames.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 31}), Code.FLOW_CONTROL_ERROR),
    "frames too small": (HELLO + frames.settings({Setting.MAX_FRAME_SIZE: 100}), Code.PROTOCOL_ERROR),
    "pushing, perhaps": (HELLO + frames.settings({Setting.ENABLE_PUSH: 2}), Code.PROTOCOL_ERROR),
    "an even stream": (HELLO + request("GET", "/x", stream=2), Code.PROTOCOL_ERROR),
    "stream 0": (HELLO + request("GET", "/x", stream=0), Code.PROTOCOL_ERROR),
    "a stream again": (HELLO + ONE + ONE, Code.PROTOCOL_ERROR),
    "an earlier stream": (HELLO + request("GET", "/x", stream=5) + request("GET", "/x", stream=3), Code.PROTOCOL_ERROR),
    "data of no stream": (HELLO + data(0, b"x"), Code.PROTOCOL_ERROR),
    "data of a stream to come": (HELLO + data(7, b"x"), Code.PROTOCOL_ERROR),
    "more than announced": (HELLO + headers(1, [*pseudo("POST", "/x"), ("content-length", "1")], end=False) + data(1, b"xy"), Code.PROTOCOL_ERROR),
    "less than announced": (HELLO + headers(1, [*pseudo("POST", "/x"), ("content-length", "3")], end=False) + data(1, b"xy"), Code.PROTOCOL_ERROR),
    "an unannounced body": (HELLO + headers(1, pseudo("POST", "/x"), end=False) + data(1, b"x"), Code.PROTOCOL_ERROR),
    "more than the window": (HELLO + headers(1, [*pseudo("POST", "/x"), ("content-length", "9999999")], end=False)
                             + b"".join(data(1, bytes(1 << 18), end=False) for _ in range(40)), Code.FLOW_CONTROL_ERROR),
    "only padding": (HELLO + headers(1, [*pseudo("POST", "/x"), ("content-length", "9")], end=False)
                     + frames.frame(Kind.DATA, frames.PADDED, 1, b"\5abc"), Code.PROTOCOL_ERROR),
    "a frame over 1 MiB": (HELLO + frames.frame_head(Kind.DATA, 0, 1, (1 << 20) + 1), Code.FRAME_SIZE_ERROR),
    "a push": (HELLO + frames.frame(Kind.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), Code.PROTOCOL_ERROR),
    "a stray continuation": (HELLO + frames.frame(Kind.CONTINUATION, 4, 1), Code.PROTOCOL_ERROR),
    "another frame inside a header": (HELLO + headers(1, pseudo("GET", "/x"), flags=0) + EMPTY, Code.PROTOCOL_ERROR),
    "a header of another stream": (HELLO + headers(1, pseudo("GET", "/x"), flags=0) + frames.frame(Kind.CONTINUATION, 4, 3), Code.PROTOCOL_ERROR),
    "a header without end": (HELLO + headers(1, [], flags=0) + frames.frame(Kind.CONTINUATION, 0, 1, b"\x82" * 900) * 20, Code.ENHANCE_YOUR_CALM),
    "empty continuations": (HELLO + headers(1, [], flags=0) + frames.frame(Kind.CONTINUATION, 0, 1) * (USELESS_LIMIT + 1), Code.ENHANCE_YOUR_CALM),
    "a header that cannot be unpacked": (HELLO + frames.frame(Kind.HEADERS, 5, 1, b"\xff\xff\xff\xff\xff"), Code.COMPRESSION_ERROR),
    "a short ping": (HELLO + frames.frame(Kind.PING, 0, 0, b"x"), Code.FRAME_SIZE_ERROR),
    "a window that stays": (HELLO + ONE + frames.window_update(1, 0), Code.PROTOCOL_ERROR),
    "a window beyond all": (HELLO + frames.window_update(0, (1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
    "a window of a stream to come": (HELLO + frames.window_update(9, 1), Code.PROTOCOL_ERROR),
    "a reset of a stream to come": (HELLO + frames.reset(9, Code.CANCEL), Code.PROTOCOL_ERROR),
    "pings": (HELLO + frames.frame(Kind.PING, 0, 0, bytes(8)) * (USELESS_LIMIT + 1), Code.ENHANCE_YOUR_CALM),
    "settings again and again": (HELLO + EMPTY * (USELESS_LIMIT + 1), Code.ENHANCE_YOUR_CALM),
    "unknown frames": (HELLO + (frames.frame_head(Kind.DATA, 0, 0, 0)[:3] + b"\x77" + bytes(5)) * (USELESS_LIMIT + 1), Code.ENHANCE_YOUR_CALM),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_whoever_breaks_the_protocol_is_told_and_left(bench: Bench, name: str) -> None:
    said, code = MISTAKES[name]
    if "announced" not in name:
        bench.echo.gate.clear()
    assert bench.code(said) is code


def test_streams_opened_and_given_up_at_once_are_too_many_soon(bench: Bench) -> None:
    """CVE-2023-44487."""
    bench.echo.gate.clear()
    said = b"".join(
        request("GET", "/x", stream=2 * n + 1) + frames.reset(2 * n + 1, Code.CANCEL)
        for n in range(USELESS_LIMIT + 1)
    )
    assert bench.code(HELLO + said) is Code.ENHANCE_YOUR_CALM
    assert len(bench.echo.seen) <= 2 * MAX_STREAMS


def test_what_others_may_send_is_taken(bench: Bench) -> None:
    """Priorities, pings, unknown frames and settings, and a header with both paddings."""
    block = b"".join(literal(n, v) for n, v in pseudo("GET", "/x"))
    head = frames.frame(Kind.HEADERS, 0x2D, 1, b"\3" + bytes(5) + block + bytes(3))
    said = bench.say(
        HELLO + frames.frame(Kind.PRIORITY, 0, 3, bytes(5)) + frames.frame(Kind.PING, 0, 0, b"12345678")
        + frames.frame_head(Kind.DATA, 0, 0, 3)[:3] + b"\x77" + bytes(5) + b"abc"
        + frames.frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 0x99, 1)) + head
        + frames.frame(Kind.GOAWAY, 0, 0, bytes(8))
    )  # fmt: skip
    kinds = [h.kind for h, _ in said]
    assert (frames.Head(8, Kind.PING, frames.ACK, 0), b"12345678") in said
    assert Kind.GOAWAY not in kinds
    assert kinds.count(Kind.DATA) == 1


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400))
def test_noise_ends_a_pair_and_nothing_else(noise: bytes) -> None:
    bench = Bench(QUICK)
    try:
        bench.say(HELLO + noise)
    finally:
        bench.close()


# -- time


def test_a_pair_without_a_word_is_given_up(quick: Bench) -> None:
    begun = time.monotonic()
    client = Client.__new__(Client)
    client.out, client.into = hand_over(quick.near)
    quick.accept().join(5)
    assert time.monotonic() - begun < 3
    assert not quick.threads[0].is_alive()
    client.__exit__(None, None, None)


@pytest.mark.parametrize(
    "begun", [b"\0\0", headers(1, pseudo("GET", "/x"))[:-1], headers(1, [], flags=0)]
)
def test_a_header_that_trickles_in_is_given_up(quick: Bench, begun: bytes) -> None:
    out, into = hand_over(quick.near)
    thread = quick.accept()
    os.write(out, HELLO + begun)
    thread.join(5)
    assert not thread.is_alive()
    os.close(out)
    os.close(into)


def test_an_idle_pair_is_kept(quick: Bench) -> None:
    """restic scans for hours without a word, and cannot open another one."""
    with quick.client() as client:
        assert client.ask("GET", "/x")[0] == 200
        time.sleep(1)
        assert client.ask("GET", "/x")[0] == 200


def test_a_body_that_stalls_is_given_up(quick: Bench) -> None:
    with quick.client() as client:
        stream = client.begin("POST", "/x", 50)
        client.upload(stream, b"hello", end=False)
        assert client.answer(stream) == (0, b"")
        assert client.resets == {stream: Code.INTERNAL_ERROR}
        assert client.ask("GET", "/x")[0] == 200, "the others go on"


def test_a_reader_that_stalls_is_given_up(quick: Bench) -> None:
    out, into = hand_over(quick.near)
    thread = quick.accept()
    os.write(out, HELLO + frames.window_update(0, 1 << 30) + request("GET", "/much60000000"))
    os.write(out, frames.window_update(1, 1 << 30))
    begun = time.monotonic()
    while not quick.echo.seen:
        time.sleep(0.01)
    time.sleep(1)
    os.close(out)
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - begun < 5
    os.close(into)


# -- the handover


def offer(near: socket.socket, *fds: int) -> None:
    socket.send_fds(near, [b"p"], list(fds))


def test_only_a_pair_of_pipes_is_taken(tmp_path: os.PathLike[str]) -> None:
    near, far = socket.socketpair()
    handover = Handover(far)
    out, into = os.pipe()
    out2, into2 = os.pipe()
    fifo = f"{os.fspath(tmp_path)}/fifo"
    os.mkfifo(fifo)
    named = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    named_out = os.open(fifo, os.O_WRONLY)
    folder = os.open("/", os.O_RDONLY)
    file = os.open("/etc/passwd", os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDWR)
    path = os.open(f"/proc/self/fd/{out}", os.O_PATH)
    both = os.open(f"/proc/self/fd/{out}", os.O_RDWR)
    packets, packets_in = os.pipe2(os.O_DIRECT)
    mine = [
        out,
        into,
        out2,
        into2,
        named,
        named_out,
        folder,
        file,
        null,
        path,
        both,
        packets,
        packets_in,
    ]
    before = len(os.listdir("/proc/self/fd"))
    try:
        for fds in (
            (out,), (out, into), (into2, out), (out, out2), (into, into2), (out, into2, into),
            (named, into2), (out, named_out), (folder, into2), (out, file), (null, null),
            (near.fileno(), into2), (path, into2), (both, into2), (out, both), (out, packets_in),
            (out, into2) * 4, (out, into2) * 40,
        ):  # fmt: skip
            offer(near, *fds)
            assert handover.take() is None, fds
            assert len(os.listdir("/proc/self/fd")) == before, fds
        offer(near, out, into2)
        ends = handover.take()
        assert ends is not None
        ends.close()
        assert handover.take() is None, "nothing is there"
        near.send(b"junk")
        for _ in range(4):
            assert handover.take() is None
    finally:
        for fd in mine:
            os.close(fd)
    near.close()
    with pytest.raises(EOFError):
        handover.take()
    handover.close()


def test_endless_junk_is_not_listened_to() -> None:
    near, far = socket.socketpair()
    handover = Handover(far)
    near.send(b"x" * 1000)
    for _ in range(JUNK_LIMIT):
        assert handover.take() is None
    with pytest.raises(EOFError):
        handover.take()
    near.close()
    handover.close()


def test_what_may_be_a_handover() -> None:
    near, far = socket.socketpair()
    with near, far, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as loose:
        assert is_handover(far.fileno())
        assert not is_handover(tcp.fileno())
        assert not is_handover(loose.fileno())
        loose.bind(f"\0capkeep-{os.getpid()}-h2")
        loose.listen()
        assert not is_handover(loose.fileno())
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with one, other:
            assert not is_handover(one.fileno())
    out, into = os.pipe()
    assert not is_handover(out)
    os.close(out)
    os.close(into)


def test_a_session_has_only_so_many_pairs_at_a_time() -> None:
    near, far = socket.socketpair()
    handover = Handover(far)
    told: list[StoreError] = []
    server = Server(Echo(), told.append, PATIENT)  # type: ignore[arg-type]

    def client() -> Client:
        found = Client(near)
        ends = handover.take()
        assert ends is not None
        server.serve(ends)
        return found

    clients = [client() for _ in range(MAX_OPEN)]
    with client() as refused:
        assert refused.ask("GET", "/x") == (0, b"")
    (why,) = told
    assert (why.failure, "8 are at work already" in str(why)) == (Failure.REFUSED, True)
    for found in clients:
        assert found.ask("GET", "/x")[0] == 200
        found.__exit__(None, None, None)
    for _ in range(100):  # a drill of a large job has hundreds of calls
        while len(server._open) >= MAX_OPEN:
            time.sleep(0.001)
        with client() as found:
            assert found.ask("GET", "/x")[0] == 200
    assert len(told) == 1
    server.close()
    near.close()
    handover.close()
