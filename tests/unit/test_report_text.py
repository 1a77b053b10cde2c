"""Nothing that is printed steers a terminal, and numbers read as people write them."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.report.text import (
    age,
    clean,
    clean_lines,
    clock,
    duration,
    fit,
    fit_path,
    number,
    pad,
    size,
    table,
    width,
)

ANY = st.one_of(st.text(st.characters()), st.binary().map(os.fsdecode))


@given(ANY)
def test_clean_text_holds_nothing_that_a_terminal_acts_upon(text: str) -> None:
    for character in clean(text):
        assert unicodedata.category(character)[0] != "C", f"{character!r} is a control or format"
        assert unicodedata.category(character) not in ("Zl", "Zp")
    clean(text).encode()  # no surrogates are left


@given(ANY)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    "raw,shown",
    [
        (b"plain name (1).txt", "plain name (1).txt"),
        ("Zoë 写真".encode(), "Zoë 写真"),
        (b"\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        (b"a\nb\rc\td", r"a\nb\rc\td"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\x9b31m".encode(), r"\x9b31m"),  # the one-character form of ESC [
        ("gpj.\u202eexe".encode(), r"gpj.\u202eexe"),
        ("a\u200bb\u2028c".encode(), r"a\u200bb\u2028c"),
        (b"\x7f", r"\x7f"),
    ],
)
def test_names_as_people_see_them(raw: bytes, shown: str) -> None:
    assert clean(os.fsdecode(raw)) == shown


def test_lines_stay_lines() -> None:
    assert clean_lines("a\tb\nc\x1b") == ["a       b", r"c\x1b"]


@given(ANY, st.integers(-3, 60))
def test_what_is_fitted_fits(text: str, columns: int) -> None:
    for fitted in (fit(clean(text), columns), fit_path(clean(text), columns)):
        assert width(fitted) <= max(0, columns)


def test_a_path_is_known_by_its_end() -> None:
    assert fit_path("/home/alice/1.jpg", 8) == "…e/1.jpg"
    assert fit("abcdef", 4) == "abc…"
    assert fit_path("写真写真", 5) == "…写真"


def test_width_counts_columns() -> None:
    assert width("写") == 2
    assert width("e\u0301") == 1
    assert pad("写", 4) == "写  "


@pytest.mark.parametrize(
    "count,text",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"),
     (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB"), (7 << 60, "7168 PiB")],
)  # fmt: skip
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    "seconds,text",
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42, "42 s"), (245, "4 min 05 s"), (7380, "2 h 03 min"),
     (277200, "3 d 05 h")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_other_numbers() -> None:
    assert (clock(65), clock(7384), number(12345)) == ("1:05", "2:03:04", "12,345")
    assert [age(s) for s in (5, 119, 125, 7300, 180000)] == ["5 s", "119 s", "2 min", "2 h", "2 d"]


def test_columns_line_up() -> None:
    assert table([["a", "b"], ["写真", "c"], ["x", ""]]) == ["a     b", "写真  c", "x"]
