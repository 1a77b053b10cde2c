"""How far a step is: counts, rate and the time left, from a room's progress messages."""

from collections import deque
from typing import Final

from capkeep.report.story import number_of, text_of
from capkeep.report.text import clean, clock, duration, number, size
from capkeep.rooms.protocol import Message

RATE_SECONDS: Final = 10.0  # the rate is the mean of so much of the past
_SAMPLE_SECONDS: Final = 0.5


class Progress:
    """The state of one step."""

    def __init__(self, message: Message, now: float) -> None:
        """`message` is the "step" event, `now` a clock that does not jump."""
        self.label = clean(f"{text_of(message, 'kind')} {text_of(message, 'repository')}".strip())
        self.current = ""
        self._begun = now
        self._now = now
        self._files = self._total_files = self._bytes = self._total_bytes = 0.0
        self._left = 0.0
        self._samples: deque[tuple[float, float]] = deque([(now, 0.0)])

    def take(self, message: Message, now: float) -> None:
        """A "progress" event."""
        self._now = now
        self._files = number_of(message, "files")
        self._total_files = number_of(message, "total_files")
        self._bytes = number_of(message, "bytes")
        self._total_bytes = number_of(message, "total_bytes")
        self._left = number_of(message, "seconds_left")
        current = message.get("current")
        first = current[0] if isinstance(current, list) and current else ""
        self.current = clean(str(first))
        if now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self._bytes))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()

    def rate(self) -> float:
        """Bytes per second of late; 0 while nothing can be said."""
        since, before = self._samples[0]
        spent = self._now - since
        return max(0.0, self._bytes - before) / spent if spent >= _SAMPLE_SECONDS else 0.0

    def percent(self) -> int | None:
        """Of the bytes, or of the files if there are none; None while the total is not known."""
        if self._total_bytes:
            return min(100, int(100 * self._bytes / self._total_bytes))
        if self._total_files:
            return min(100, int(100 * self._files / self._total_files))
        return None

    def seconds_left(self) -> float | None:
        """What the engine says, or what the rate says; None while neither does."""
        if self._left:
            return self._left
        rate, rest = self.rate(), self._total_bytes - self._bytes
        return rest / rate if rate and rest > 0 else None

    def parts(self, unreadable: int) -> list[str]:
        """What there is to say, the most important first."""
        parts = [self.label]
        percent, left, rate = self.percent(), self.seconds_left(), self.rate()
        if percent is not None:
            parts.append(f"{percent:3d} %")
        if unreadable:
            parts.append(f"{number(unreadable)} not read")
        parts.append(_of(size(self._bytes), self._total_bytes and size(self._total_bytes)))
        if left is not None:
            parts.append(f"{clock(left)} left")
        if rate:
            parts.append(f"{size(rate)}/s")
        total = self._total_files and number(int(self._total_files))
        parts += [
            _of(number(int(self._files)), total) + " files",
            duration(self._now - self._begun),
        ]
        return parts


def _of(done: str, total: str | float) -> str:
    return f"{done} of {total}" if total else done
