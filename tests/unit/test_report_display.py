"""How a run looks while it goes on, on a terminal of any width and without one."""

import io
import json
import os
import re
import sys

import pytest

from capkeep.report.progress import Progress
from capkeep.report.screen import LiveScreen, PlainScreen
from capkeep.report.style import PLAIN, Style, style_for
from capkeep.report.terminal import JsonDisplay, PeopleDisplay, display
from capkeep.report.text import width
from capkeep.rooms.protocol import Message

EVIL = os.fsdecode(b"/tmp/\x1b[2J\x1b]0;x\x07\xff\n\x9b1m")
FACTS = {
    "pid": 3, "uids": [990, 990, 990, 990], "effective": ["CAP_DAC_READ_SEARCH"],
    "no_new_privs": True, "seccomp": 2, "seccomp_filters": 2, "landlock": 7, "separated": ["mnt", "net"],
    "interfaces": ["lo"], "writable": ["/var/cache/x"],
}  # fmt: skip
RUN: Message = {"event": "run", "run": "r1", "job": "system", "action": "backup", "since": 1.0}
STEP: Message = {"event": "step", "kind": "backup", "repository": "offsite"}
TOTALS = {"files_new": 1, "total_files": 3000, "bytes_processed": 5 << 30, "bytes_added": 1 << 20}
STEP_END: Message = {
    "event": "step-end", "run": "r1", "seq": 1, "kind": "backup", "repository": "offsite",
    "outcome": "partial", "failure": None, "text": "1 file was not read", "engine": "restic 0.18.0",
    "snapshot": "abcdef0123", "seconds": 65.0, "totals": TOTALS, "engine_words": "", "exit_code": 3,
    "hint": "see may-miss",
}  # fmt: skip
END: Message = {
    "event": "end", "run": "r1", "outcome": "partial", "failure": None, "exit_code": 3,
    "text": "1 file was not read", "reasons": ["1 file was not read"], "seconds": 66.0,
}  # fmt: skip


def progress(files: int, current: str = "/home/alice/a", **more: object) -> Message:
    return {"event": "progress", "files": files, "total_files": 3000, "bytes": files << 20,
            "total_bytes": 3000 << 20, "current": [current], **more}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Understands what a live display sends, and no more: anything else is an error."""

    def __init__(self, columns: int = 80) -> None:
        super().__init__()
        self.columns = columns
        self.lines = [""]
        self.row = 0
        self.column = 0
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        for part in re.findall(r"\x1b\[\d*[AJK]|[\r\n]|[^\x1b\r\n]+|.", text):
            self._obey(part)
        return len(text)

    def _obey(self, part: str) -> None:
        if part == "\r":
            self.column = 0
        elif part == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif part.startswith("\x1b"):
            assert part[-1] in "AJK", f"unexpected sequence {part!r}"
            if part[-1] == "A":
                self.row -= int(part[2:-1])
                assert self.row >= 0
            else:
                self.lines[self.row] = self.lines[self.row][: self.column]
                if part[-1] == "J":
                    del self.lines[self.row + 1 :]
        else:
            assert part.isprintable(), f"{part!r} must not reach a terminal"
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
            self.column += len(part)
            assert width(self.lines[self.row]) < self.columns or not self.columns, "it would wrap"


def live(columns: int = 80) -> tuple[PeopleDisplay, Terminal, Clock]:
    terminal, clock = Terminal(columns), Clock()
    screen = LiveScreen(terminal)
    screen._columns = lambda: columns - 1  # type: ignore[method-assign]
    return PeopleDisplay(screen, PLAIN, now=clock), terminal, clock


def test_progress_is_drawn_in_place_and_taken_back() -> None:
    shown, terminal, clock = live()
    for message in (RUN, STEP):
        shown.handle(message)
    assert terminal.lines == ["backup of system  [run r1]", "backup offsite"]
    for files in (300, 600):
        clock.now += 1
        shown.handle(progress(files))
    assert terminal.lines == [
        "backup of system  [run r1]",
        "backup offsite   20 %  600 MiB of 2.9 GiB  0:08 left  300 MiB/s  2.0 s",
        "  /home/alice/a",
    ]
    shown.handle({"event": "message", "text": "the lock was stale"})
    assert terminal.lines == ["backup of system  [run r1]", "  the lock was stale", ""]
    clock.now += 1
    shown.handle(progress(900))
    shown.handle(STEP_END)
    assert terminal.lines == ["backup of system  [run r1]", "  the lock was stale", ""]


def test_it_is_drawn_ten_times_a_second_at_most_and_in_one_write() -> None:
    shown, terminal, clock = live()
    for message in (RUN, STEP):
        shown.handle(message)
    before = len(terminal.writes)
    for number in range(1000):
        clock.now += 0.005
        shown.handle(progress(number))
    assert 40 <= len(terminal.writes) - before <= 51


@pytest.mark.parametrize("columns", [4, 12, 20, 40, 80, 300])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    terminal, clock = Terminal(columns), Clock()
    screen = LiveScreen(terminal)
    screen._columns = lambda: columns - 1  # type: ignore[method-assign]
    step = Progress({**STEP, "repository": "写真" * 30}, clock.now)
    screen.begin(step)
    for number in range(50):
        clock.now += 0.2
        step.take(progress(number * 60, "/写真/" + "x" * number * 3), clock.now)
        screen.show(step, number)
        assert len(terminal.lines) == 2
    screen.erase()
    assert terminal.lines == [""]


@pytest.mark.parametrize(
    "message",
    [
        {**RUN, "run": EVIL, "job": EVIL, "action": EVIL},
        {**STEP, "kind": EVIL, "repository": EVIL},
        progress(1, EVIL),
        {"event": "message", "text": EVIL},
        {"event": "warning", "text": EVIL, "path": EVIL},
        {"event": "unreadable", "path": EVIL, "cause": EVIL, "detail": EVIL},
        {"event": "left-out", "path": EVIL, "detail": EVIL},
        {"event": "proof", "room": EVIL, "process": EVIL, "weaker": [EVIL],
         "facts": {**FACTS, "interfaces": [EVIL], "writable": [EVIL], "namespaces": [[EVIL, EVIL]]}},
        {**STEP_END, "kind": EVIL, "repository": EVIL, "text": EVIL, "snapshot": EVIL, "hint": EVIL,
         "engine": EVIL, "engine_words": EVIL},
        {**END, "text": EVIL, "reasons": [EVIL], "hint": EVIL},
        {"event": EVIL, EVIL: EVIL},
    ],
)  # fmt: skip
@pytest.mark.parametrize("full", [False, True])
def test_nothing_from_outside_steers_the_terminal(message: Message, full: bool) -> None:
    terminal, clock = Terminal(0), Clock()
    shown = PeopleDisplay(LiveScreen(terminal), PLAIN, full_proof=full, now=clock)
    story = [RUN, STEP, progress(1), STEP_END, END]
    position = [m.get("event") for m in story].index(message.get("event")) if message.get("event") in [
        m.get("event") for m in story
    ] else 2  # fmt: skip
    replaced = message.get("event") == story[position].get("event")
    for told in [*story[:position], message, *story[position + replaced :]]:
        clock.now += 1
        shown.handle(told)  # the terminal checks every character
    assert "partial" in "\n".join(terminal.lines)


def test_a_refusal_is_told_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    shown, terminal, _ = live()
    shown.handle({"event": "end", "outcome": None, "exit_code": 4, "text": EVIL, "hint": "wait"})
    assert capsys.readouterr().err.splitlines() == [
        r"capkeep: /tmp/\x1b[2J\x1b]0;x\x07\xff\n\x9b1m", "  hint: wait",
    ]  # fmt: skip
    assert terminal.lines == [""]


def test_without_a_terminal_there_are_few_lines() -> None:
    out, clock = io.StringIO(), Clock()
    shown = PeopleDisplay(PlainScreen(out), PLAIN, now=clock)
    shown.handle(RUN)
    shown.handle(STEP)
    for number in range(650):
        clock.now += 0.1
        shown.handle(progress(number))
    shown.handle(STEP_END)
    assert out.getvalue().splitlines()[:2] == ["backup of system  [run r1]", "  backup offsite …"]
    assert len(out.getvalue().splitlines()) == 4, "65 s: two lines of progress"
    assert "\x1b" not in out.getvalue()


def test_the_summary_says_everything_once() -> None:
    out, clock = io.StringIO(), Clock()
    shown = PeopleDisplay(PlainScreen(out), PLAIN, now=clock)
    proof: Message = {
        "event": "proof",
        "room": "reader-system-offsite",
        "process": "engine",
        "facts": FACTS,
    }
    runner: Message = {
        "event": "proof",
        "room": "runner",
        "process": "room",
        "facts": {**FACTS, "effective": []},
    }
    for message in (RUN, runner, STEP, proof):
        shown.handle(message)
    for number in range(30):
        shown.handle(
            {"event": "unreadable", "path": f"/f{number}", "cause": "denied", "detail": "no"}
        )
    shown.handle({"event": "left-out", "path": "/home/a/mnt", "cause": "", "detail": "fuse"})
    shown.handle(STEP_END)
    shown.handle(END)
    text = out.getvalue()
    assert text.splitlines()[2] == "backup of system: partial  [run r1 in 1 min 06 s]"
    for part in (
        "1 file was not read\n", "  hint: see may-miss\n", "3,000 files, 5.0 GiB",
        "1.0 MiB new", "snapshot abcdef01", "in 1 min 05 s", "engine: restic 0.18.0",
        "not read: 30\n", "/f19  denied: no\n", "… and 10 more (capkeep log r1)", "left out: 1\n",
        "/home/a/mnt  fuse\n",
    ):  # fmt: skip
        assert text.count(part) == 1, part
    assert "/f20" not in text
    rows = [line.split() for line in text.splitlines() if line.startswith("  r") and "990" in line]
    assert rows == [
        ["runner", "room", "990", "none", "yes", "filter", "(2)", "ABI", "7", "mnt", "net", "lo", "/var/cache/x"],
        ["reader-system-offsite", "engine", "990", "DAC_READ_SEARCH", "yes", "filter", "(2)", "ABI", "7", "mnt",
         "net", "lo", "/var/cache/x"],
    ]  # fmt: skip


def test_json_is_one_line_a_message_and_ascii() -> None:
    out = io.StringIO()
    message: Message = {"event": "unreadable", "path": EVIL}
    JsonDisplay(out).handle(message)
    assert out.getvalue().isascii()
    assert "\x1b" not in out.getvalue()
    assert json.loads(out.getvalue()) == message


@pytest.mark.parametrize(
    "message",
    [
        {}, {"event": 7}, {"event": "progress", "files": "x", "bytes": True, "current": {}},
        {"event": "progress", "files": -1, "bytes": 1e400, "total_bytes": float("nan")},
        {"event": "progress", "files": 10**30, "bytes": 10**30, "seconds_left": 10**30},
        {"event": "proof", "facts": None}, {"event": "proof", "facts": {"uids": 7, "seccomp": "x"}},
        {"event": "unreadable"}, {"event": "step"}, {"event": "step-end"}, {"event": "end"},
    ],
)  # fmt: skip
def test_odd_messages_do_not_end_the_display(message: Message) -> None:
    out, clock = io.StringIO(), Clock()
    shown = PeopleDisplay(PlainScreen(out), PLAIN, full_proof=True, now=clock)
    for told in (RUN, STEP, message, STEP_END, END):
        clock.now += 40
        shown.handle(told)
    assert out.getvalue()


def test_rate_forgets_the_past_and_the_time_left_follows() -> None:
    step = Progress(STEP, 0.0)
    for second in range(1, 100):
        step.take(progress(second), float(second))
    step.take(progress(1099), 100.0)
    assert 80 << 20 < step.rate() < 130 << 20
    left = step.seconds_left()
    assert left is not None and 14 < left < 25
    step.take(progress(1100, seconds_left=7), 101.0)
    assert step.seconds_left() == 7
    assert step.percent() == 36


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in style_for(Tty()).verdict("failed")
    assert style_for(io.StringIO()).verdict("failed") == "failed"
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b" in style_for(Tty()).bold("x")
    monkeypatch.setenv("NO_COLOR", "1")
    assert style_for(Tty()).bold("x") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert style_for(Tty()).bold("x") == "x"
    assert Style(colour=True).bold("") == ""


def test_the_display_fits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    shown = display(as_json=False)
    for message in (RUN, STEP, {**STEP_END, "text": "naïve …"}, END):
        shown.handle(message)
    shown.close()
    sys.stdout.flush()
    assert rb"backup offsite \u2026" in raw.getvalue(), "escaped, not an error"
    assert isinstance(display(as_json=True), JsonDisplay)
