"""What `capkeep run` shows: lines that are redrawn on a terminal, plain lines elsewhere, JSON."""

import json
import os
import pty
import re
import subprocess
import termios

from tests.rooms.house import GROUP, MEMBER
from tests.system.conftest import Product
from tests.system.scenes import random_file


def on_a_terminal(product: Product, *words: str) -> tuple[int, str, bool]:
    """Exit code, all that was written to the terminal, and whether its settings stayed."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    said = b""
    try:
        running = subprocess.Popen(
            product.home.command(*words), user=MEMBER, group=MEMBER, extra_groups=[GROUP],
            cwd="/", env={"PATH": "/usr/sbin:/usr/bin", "TERM": "xterm"}, stdin=theirs,
            stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.set_blocking(ours, False)
        while running.poll() is None:
            said += _there(ours)
            try:
                running.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        said += _there(ours)
        same = termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
    return running.returncode, said.decode(), same


def _there(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_a_terminal_sees_how_far_it_is_and_is_left_tidy(product: Product) -> None:
    random_file(product.source / "big", 300)
    code, said, same = on_a_terminal(product, "run")
    assert code == 0, said
    assert same
    drawn = [part for part in said.split("\r") if "\x1b[K" in part]
    assert len(drawn) > 5, said
    assert re.search(r"[\d.]+ MiB of [\d.]+ MiB", said), said
    assert re.search(r"\d files", said), said
    assert "/s" in said or "left" in said, said
    assert str(product.source / "big") in said
    last = said.rpartition("\x1b[J")[2]
    assert "complete" in last, said
    assert said.endswith("\n")


def test_elsewhere_lines_are_plain(product: Product) -> None:
    done = product("run")
    assert done.code == 0, done
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.out + done.err
    assert "complete" in done.out


def test_with_json_every_line_is_an_object_and_the_last_has_the_exit_code(
    product: Product,
) -> None:
    done = product("run", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    assert lines[-1] == {"event": "done", "exit_code": 0}
    assert done.code == 0
