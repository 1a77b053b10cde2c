"""A room's own request to its vault, as the vault sees it and whatever the vault says."""

import os
from collections.abc import Iterator

import pytest

from capkeep.rooms.rest import client, frames
from capkeep.rooms.rest.client import ask
from capkeep.rooms.rest.frames import Code, Kind
from capkeep.rooms.rest.hpack import Decoder, encode
from capkeep.rooms.rest.requests import parse_request


class Vault:
    """The far end of both pipes."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = os.pipe()
        self._answers, self._say = os.pipe()

    def close(self) -> None:
        for fd in (self.incoming, self.outgoing, self._answers, self._say):
            if fd >= 0:
                os.close(fd)

    def hang_up(self) -> None:
        os.close(self._say)
        self._say = -1

    def say(self, *pieces: bytes) -> None:
        os.write(self._say, b"".join(pieces))

    def asked(self) -> tuple[int, str]:
        return ask(self._answers, self.outgoing, "POST", f"/keys/{'a' * 64}", b"the key")


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault()
    yield made
    made.close()


def head(status: int, *, last: bool = False) -> bytes:
    flags = frames.END_HEADERS | (frames.END_STREAM if last else 0)
    return frames.frame(Kind.HEADERS, flags, 1, encode(status, "text/plain", 0))


def test_it_is_one_request_that_a_vault_understands(vault: Vault) -> None:
    vault.say(frames.settings({}), frames.window_update(0, 10), head(200, last=True))
    assert vault.asked() == (200, "")
    said = os.read(vault.incoming, 1 << 16)
    assert said.startswith(frames.PREFACE)
    rest, found = said[len(frames.PREFACE) :], []
    while rest:
        begin = frames.parse_head(rest[: frames.HEAD_SIZE])
        end = frames.HEAD_SIZE + begin.length
        found.append((Kind(begin.kind), rest[frames.HEAD_SIZE : end]))
        rest = rest[end:]
    assert [kind for kind, _ in found] == [Kind.SETTINGS, Kind.HEADERS, Kind.DATA]
    request = parse_request(Decoder().decode(found[1][1]), ended=False)
    assert (request.method, request.target, request.length) == ("POST", f"/keys/{'a' * 64}", 7)
    assert found[2][1] == b"the key"


def test_a_refusal_comes_with_its_words(vault: Vault) -> None:
    vault.say(head(403), frames.frame(Kind.DATA, 0, 1, b"keys are made "))
    vault.say(frames.frame(Kind.DATA, frames.END_STREAM, 1, b"by the keeper\n"))
    assert vault.asked() == (403, "keys are made by the keeper")


@pytest.mark.parametrize(
    "said",
    [
        frames.goaway(0, Code.PROTOCOL_ERROR, "no"),
        frames.reset(1, Code.CANCEL),
        frames.frame(Kind.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff\xff"),
        frames.frame(Kind.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1),
        frames.frame_head(Kind.DATA, 0, 1, frames.FRAME_LIMIT),
        b"\0\0",
    ],
)
def test_nonsense_is_no_answer(vault: Vault, said: bytes) -> None:
    vault.say(said)
    vault.hang_up()
    with pytest.raises(ConnectionError):
        vault.asked()


def test_silence_has_an_end(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SECONDS", 0.1)
    with pytest.raises(TimeoutError):
        vault.asked()
