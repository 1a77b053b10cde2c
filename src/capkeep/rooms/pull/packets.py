"""What was asked through SFTP and is not answered yet; pure.

Of a packet only its length and its first five bytes are looked at: its type, and the number by which an
answer belongs to a request. draft-ietf-secsh-filexfer-02, 3 and 4: every request has one answer.
"""

from typing import Final, NamedTuple

from capkeep.rooms.protocol import ProtocolError

LENGTH: Final = 4  # bytes that tell a packet's length, without themselves
NAMED: Final = 5  # bytes after that: the type, and the number
GREETINGS: Final = (1, 2)  # INIT, and VERSION that answers it, have a version in the number's place
GREETING: Final = -1  # by what they belong together here


class Fed(NamedTuple):
    """The packets, by their numbers, whose beginnings and whose ends a part of a stream held."""

    begun: list[int]
    ended: list[int]


class Packets:
    """Finds packets in a stream that comes in parts."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0  # bytes of the one under way that are still to come
        self._number = GREETING

    def feed(self, data: bytes) -> Fed:
        """The next part. Raises ProtocolError for what is no packet."""
        fed = Fed([], [])
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                if not self._left:
                    fed.ended.append(self._number)
                continue
            more = data[at : at + LENGTH + NAMED - len(self._head)]
            self._head += more
            at += len(more)
            if len(self._head) == LENGTH + NAMED:
                self._begin()
                fed.begun.append(self._number)
                if not self._left:
                    fed.ended.append(self._number)
        return fed

    def _begin(self) -> None:
        self._left = int.from_bytes(self._head[:LENGTH], "big") - NAMED
        if self._left < 0:
            raise ProtocolError("a packet that is too short")
        greeting = self._head[LENGTH] in GREETINGS
        self._number = GREETING if greeting else int.from_bytes(self._head[LENGTH + 1 :], "big")
        self._head.clear()


class Tally:
    """Which answers are owed, and how long none has come; in seconds of a steady clock.

    A request counts from its beginning, an answer when the whole of it is there.
    """

    def __init__(self) -> None:
        self._asked, self._answered = Packets(), Packets()
        self._owed: set[int] = set()
        self._since = 0.0  # when the last answer had come, or something was asked after it
        self.greeted = False  # whether there was an answer

    def ask(self, data: bytes, now: float) -> None:
        """What is about to be sent. Raises ProtocolError."""
        for number in self._asked.feed(data).begun:
            if not self._owed:
                self._since = now
            self._owed.add(number)

    def answer(self, data: bytes, now: float) -> None:
        """What has come. Raises ProtocolError where it answers nothing that was asked."""
        fed = self._answered.feed(data)
        for number in fed.begun:
            if number not in self._owed:
                raise ProtocolError("it answers what nobody has asked")
        for number in fed.ended:
            if number not in self._owed:
                raise ProtocolError("it answers twice")
            self._owed.remove(number)
            self._since, self.greeted = now, True

    def pause(self, now: float) -> None:
        """It was us who let it wait, until now."""
        self._since = max(self._since, now)

    def silence(self, now: float) -> float:
        """How long an answer is owed and none has come; 0 if none is owed."""
        return now - self._since if self._owed else 0.0
