"""Messages over a socket, whoever is on the other side."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.rooms.protocol import MAX_LINE, Channel, Message, ProtocolError, decode, encode


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, Channel]]:
    near, far = socket.socketpair()
    far.settimeout(10)
    with near, Channel(far) as channel:
        yield near, channel


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=5),
       st.integers(1, 40))  # fmt: skip
def test_messages_arrive_whatever_pieces_they_come_in(said: list[Message], size: int) -> None:
    data = b"".join(map(encode, said))
    with pair() as (near, channel):
        heard: list[Message] = []
        for start in range(0, len(data), size):
            near.sendall(data[start : start + size])
            channel.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while (message := channel.receive()) is not None:
                    heard.append(message)
        near.close()
        assert heard == said
        assert not channel.pending()
        assert channel.receive() is None


def test_a_name_of_any_bytes_arrives_as_it_was() -> None:
    name = os.fsdecode(bytes(range(1, 256)))
    assert decode(encode({"path": name}).rstrip(b"\n")) == {"path": name}
    assert encode({"path": "line\nbreak"}).count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [b"", b"x", b"[]", b"1", b'"a"', b"null", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000,
     b'{"a":' * 50_000],
)  # fmt: skip
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


def test_a_message_without_end_is_refused_and_not_kept() -> None:
    with pair() as (near, channel):

        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near.sendall(b"x" * 65536)

        thread = threading.Thread(target=flood)
        thread.start()
        with pytest.raises(ProtocolError, match="longer"):
            channel.receive()
        channel.close()
        thread.join(10)


def test_single_bytes_cost_no_more_than_themselves() -> None:
    with pair() as (near, channel):
        channel.sock.setblocking(False)
        start = time.process_time()
        for _ in range(100_000):
            near.send(b"x")
            with contextlib.suppress(BlockingIOError):
                channel.receive()
        assert time.process_time() - start < 8


def test_an_end_inside_a_message_is_an_error_and_between_messages_it_is_not() -> None:
    with pair() as (near, channel):
        near.sendall(b'{"a":1}\n{"b"')
        near.close()
        assert channel.receive() == {"a": 1}
        with pytest.raises(ProtocolError):
            channel.receive()
    with pair() as (near, channel):
        near.sendall(b'{"a":1}\n')
        near.close()
        assert list(channel) == [{"a": 1}]


def test_what_is_buffered_is_told() -> None:
    with pair() as (near, channel):
        near.sendall(b"{}\n" * 3)
        assert channel.receive() == {}
        assert channel.pending()
        channel.receive()
        channel.receive()
        assert not channel.pending()


def test_a_message_may_be_as_long_as_the_limit() -> None:
    long = {"text": "x" * (MAX_LINE - 1000)}
    with pair() as (near, channel):
        thread = threading.Thread(target=near.sendall, args=(json.dumps(long).encode() + b"\n",))
        thread.start()
        assert channel.receive() == long
        thread.join(10)
