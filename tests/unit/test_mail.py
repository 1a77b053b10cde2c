"""Mail to servers and programs that do what they should not."""

import base64
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.plan.model import Notify, NotifyKind, When
from capkeep.rooms.mail import compose, hand_over
from capkeep.rooms.notifier import Round
from capkeep.rooms.outside import Delivery, What
from capkeep.rooms.protocol import Channel

MAIL = Notify("mail", NotifyKind.MAIL, When.ALWAYS, (), (), log=False, retry_seconds=0,
              to=("a@example.org",), tls="none")  # fmt: skip
TOLD = Delivery(What.TEST, {"text": "a test"}, b"", "host", {})


@contextlib.contextmanager
def talkative(first: bytes, then: bytes, times: int) -> Iterator[Notify]:
    """A server that says something, and something else again and again."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as sock, contextlib.suppress(OSError):
                sock.sendall(first)
                for _ in range(times):
                    sock.sendall(then)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield MAIL._replace(host="127.0.0.1", port=server.getsockname()[1])
        thread.join(10)


def told_of(channel: Notify, secrets: dict[str, str]) -> str:
    """What the notifier's caller hears of a channel."""
    ours, theirs = socket.socketpair()
    with Channel(ours) as caller, Channel(theirs) as room:
        before = signal.getsignal(signal.SIGALRM)
        try:
            Round(room, TOLD._replace(secrets=secrets)).go([channel])
        finally:
            signal.signal(signal.SIGALRM, before)
        said = caller.receive()
    assert said is not None
    return str(said["text"])


def test_a_server_that_repeats_the_login_does_not_put_it_into_the_record() -> None:
    word = "a long password of the postman's"
    sent = base64.b64encode(f"\0ann\0{word}".encode()).decode()
    refusal = b"535 " + b"x" * 280 + f" AUTH PLAIN {sent}\r\n".encode()
    with talkative(b"220 hello\r\n250-host\r\n250 AUTH PLAIN\r\n", refusal, 1) as channel:
        said = told_of(channel._replace(user="ann"), {"mail.password": word})
    assert said.startswith("535 xxx")
    assert sent[:4] not in said
    assert "…" in said


@pytest.mark.parametrize("first", [b"", b"220 hello\r\n"])
def test_a_reply_without_end_is_not_listened_to(first: bytes) -> None:
    with (
        talkative(first, b"250-and\r\n" * 10_000, 10) as channel,
        pytest.raises(OSError, match="longer than"),
    ):
        hand_over(channel, TOLD, compose(channel, TOLD))


@pytest.mark.parametrize("code, expected", [(0, "took it"), (69, "ended with 69: first xxx")])
def test_a_program_may_say_as_much_as_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: str
) -> None:
    monkeypatch.setattr("capkeep.rooms.mail.PROGRAM_SECONDS", 10)
    program = tmp_path / "sendmail"
    words = "head -c 200000 /dev/zero | tr '\\0' x"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/mail\necho first\n{words}\nexit {code}\n")
    program.chmod(0o755)
    channel = MAIL._replace(program=str(program))
    try:
        said = hand_over(channel, TOLD, compose(channel, TOLD))
    except OSError as error:
        said = str(error)
    assert expected in said
    assert "a test" in (tmp_path / "mail").read_text()
