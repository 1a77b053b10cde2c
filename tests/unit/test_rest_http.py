"""Requests are taken apart strictly, bodies arrive whole, and nobody may take for ever."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.rooms.rest.http import Connection, Gone, Refusal, Request, Times, parse_head
from capkeep.rooms.rest.names import KINDS, Name, Target, parse_target

HASH = "0123456789abcdef" * 4
QUICK = Times(head=0.3, idle=0.3, stall=0.3)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), timeout=5)
        accepted, _ = server.accept()
        with client, accepted:
            yield client, Connection(accepted, QUICK)


def test_what_restic_sends_is_understood() -> None:
    head = (
        b"POST /data/" + HASH.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"
        b"User-Agent: Go-http-client/1.1\r\nContent-Length: 123\r\n"
        b"Accept: application/vnd.x.restic.rest.v2\r\nAccept-Encoding: gzip"
    )
    accept = "application/vnd.x.restic.rest.v2"
    assert parse_head(head) == Request("POST", f"/data/{HASH}", 123, accept=accept)
    head = b"GET /config HTTP/1.1\r\nHost: h\r\nRange: bytes=5-9\r\nConnection: close"
    assert parse_head(head) == Request("GET", "/config", range=(5, 9), close=True)


@given(st.binary(max_size=300))
def test_no_bytes_make_parsing_fail_in_another_way(data: bytes) -> None:
    with suppress(Refusal):
        parse_head(data)
    with suppress(Refusal):
        parse_head(b"GET /config HTTP/1.1\r\nHost: h\r\n" + data)


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


def test_requests_follow_each_other_on_a_connection(
    pair: tuple[socket.socket, Connection],
) -> None:
    client, connection = pair
    client.sendall(
        b"POST /config HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
        b"POST /?create=true HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"HEAD /config HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    client.shutdown(socket.SHUT_WR)
    seen = [
        (request.method, b"".join(bytes(p) for p in connection.body()))
        for request in connection.requests()
    ]
    assert seen == [("POST", b"hello"), ("POST", b""), ("HEAD", b"")]


def test_a_header_that_trickles_in_is_given_up(pair: tuple[socket.socket, Connection]) -> None:
    client, connection = pair
    begun = time.monotonic()
    client.sendall(b"GET /config HT")
    with pytest.raises(Gone):
        next(connection.requests())
    assert time.monotonic() - begun < 2


def test_an_idle_connection_is_given_up(pair: tuple[socket.socket, Connection]) -> None:
    _, connection = pair
    with pytest.raises(Gone):
        next(connection.requests())


def test_a_body_that_stalls_is_given_up(pair: tuple[socket.socket, Connection]) -> None:
    client, connection = pair
    client.sendall(b"POST /config HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\nhello")
    next(connection.requests())
    begun = time.monotonic()
    with pytest.raises(Gone):
        list(connection.body())
    assert time.monotonic() - begun < 2


def test_a_reader_that_stalls_is_given_up(pair: tuple[socket.socket, Connection]) -> None:
    _, connection = pair
    begun = time.monotonic()
    with pytest.raises(Gone):
        connection.answer(200, bytes(64 << 20))
    assert time.monotonic() - begun < 5
