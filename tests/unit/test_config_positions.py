"""Lines: every key that tomllib sees has one, and it is the right one."""

import json
import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.config.positions import line_index

TEXT = '''\
# a comment
top = 1 # [not.a.table]
[jobs.system] # ]
include = [
  "/etc", # , "/x"
  "/home",

  ["nested", 2],
]
"quoted key" = { file = "/a", b.c = """x
}y""" }
a . 'b.c' = \'\'\'
[no]
\'\'\'\'
last = "\\"\\\\"
date = 1979-05-27 07:32:00Z
[[list]]
x = 1
[[list]]
x = 2
[list.sub]
y = 3
[[list.inner]]
z = 4
[jobs]
late = true'''


def test_lines() -> None:
    data = tomllib.loads(TEXT)
    assert data["jobs"]["system"]["a"]["b.c"] == "[no]\n'"
    lines = line_index(TEXT)
    expected: dict[tuple[str | int, ...], int] = {
        ("top",): 2, ("jobs",): 3, ("jobs", "system"): 3, ("jobs", "system", "include"): 4,
        ("jobs", "system", "include", 0): 5, ("jobs", "system", "include", 1): 6,
        ("jobs", "system", "include", 2): 8, ("jobs", "system", "include", 2, 1): 8,
        ("jobs", "system", "quoted key"): 10, ("jobs", "system", "quoted key", "file"): 10,
        ("jobs", "system", "quoted key", "b", "c"): 10, ("jobs", "system", "a"): 12,
        ("jobs", "system", "a", "b.c"): 12, ("jobs", "system", "last"): 15,
        ("jobs", "system", "date"): 16, ("list",): 17, ("list", 0, "x"): 18,
        ("list", 1, "x"): 20, ("list", 1, "sub", "y"): 22, ("list", 1, "inner", 0, "z"): 24,
        ("jobs", "late"): 26,
    }  # fmt: skip
    assert {k: lines[k] for k in expected} == expected
    assert set(lines) == set(paths(data))


def paths(data: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items: list[tuple[str | int, object]] = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    return [p for k, v in items for p in [(*at, k), *paths(v, (*at, k))]]


KEYS = st.text(min_size=0, max_size=6).filter(lambda t: t.isprintable())
SCALARS = st.integers(-9, 9) | st.booleans() | st.text(max_size=8).filter(str.isprintable)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8
)


def inline(value: object) -> str:
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(k, ensure_ascii=False)} = {inline(v)}" for k, v in value.items()
            )
            + "}"
        )
    if isinstance(value, list):
        return "[\n# ] comment\n" + ",\n".join(map(inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@settings(database=None)  # a checkout may be read-only
@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4))
def test_every_key_of_any_document_has_its_line(data: dict[str, dict[str, object]]) -> None:
    lines: list[str] = []
    expected: dict[tuple[str | int, ...], int] = {}
    for table, keys in data.items():
        lines.append(f"  [ {json.dumps(table, ensure_ascii=False)} ]  # [x]")
        expected[table,] = len(lines)
        for key, value in keys.items():
            text = f"{json.dumps(key, ensure_ascii=False)} = {inline(value)}  # = {{"
            if "{" in text and "\n" in text and not acceptable(text):
                continue  # TOML 1.0 has no line break in an inline table
            expected[table, key] = len(lines) + 1
            lines += text.split("\n")
    text = "\n".join(lines)
    parsed = tomllib.loads(text)
    found = line_index(text)
    assert {k: found[k] for k in expected} == expected
    assert set(found) == set(paths(parsed))


def acceptable(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


@settings(database=None)  # a checkout may be read-only
@given(st.text("[]{}=.,\"'#\n ab\\1", max_size=40))
def test_whatever_tomllib_accepts_is_walked(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(line_index(text)) == set(paths(data))
