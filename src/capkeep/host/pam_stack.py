"""Whether a login gets to pam_cap, and what that gives a user; pure.

Sources: pam.d(5), pam_cap(8), capability.conf(5), cap_iab(3).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

MODULE: Final = "pam_cap.so"
CONFIG: Final = "/etc/security/capability.conf"
_LINE: Final = re.compile(r"-?auth\s+(\[[^]]*]|\S+)\s+(\S+)\s*(.*)", re.IGNORECASE)
_INCLUDE: Final = re.compile(r"@include\s+(\S+)")
_ENDS: Final = ("done", "die")
_MOST: Final = 32  # files within files: the library's own limit
_FILES: Final = 1000  # that are read for one service: a file may name another one twice
# What the four words stand for, when the module says yes.
_WORDS: Final = {"required": "ok", "requisite": "ok", "sufficient": "done", "optional": "ok"}


class Line(NamedTuple):
    """One module that a login asks who somebody is."""

    file: str  # below /etc/pam.d
    number: int
    control: str
    module: str  # without its directory
    arguments: tuple[str, ...]
    stacks: tuple[int, ...]  # the substacks that it is in, outermost first

    @property
    def place(self) -> str:
        """File and line."""
        return f"/etc/pam.d/{self.file}:{self.number}"

    @property
    def on_success(self) -> str:
        """What comes when the module says yes: "ok", "done", or how many lines are passed over."""
        if not self.control.startswith("["):
            return _WORDS.get(self.control.lower(), "ok")
        pairs = dict(word.split("=", 1) for word in self.control[1:-1].split() if "=" in word)
        return pairs.get("success", pairs.get("default", "bad"))

    @property
    def config(self) -> str:
        """The configuration file that pam_cap reads."""
        given = (a.partition("=")[2] for a in self.arguments if a.startswith("config="))
        return next(given, CONFIG)


def lines(texts: Mapping[str, str], service: str) -> tuple[Line, ...]:
    """The `auth` lines of a service in their order, with what they include."""
    return tuple(_lines(texts, service, (), 0, iter(range(_FILES))))


def _lines(
    texts: Mapping[str, str], name: str, stacks: tuple[int, ...], depth: int, left: Iterator[int]
) -> Iterator[Line]:
    if depth > _MOST or next(left, None) is None:
        return
    for number, text in _whole(texts.get(name, "")):
        if found := _INCLUDE.match(text):
            yield from _lines(texts, _short(found[1]), stacks, depth + 1, left)
        elif found := _LINE.match(text):
            control, module = found[1], found[2]
            if control == "include":
                yield from _lines(texts, _short(module), stacks, depth + 1, left)
            elif control == "substack":
                # Names one stack: no other line of this file begins it.
                yield from _lines(texts, _short(module), (*stacks, number), depth + 1, left)
            else:
                words = tuple(found[3].split())
                yield Line(name, number, control, _short(module), words, stacks)


def _whole(text: str) -> Iterator[tuple[int, str]]:
    """Lines with those that go on in the next one joined, comments left out."""
    begun, first = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        first = first if begun else number
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        yield first, (begun + line).strip()
        begun = ""


def _short(path: str) -> str:
    return path.rpartition("/")[2]


def find(stack: Iterable[Line]) -> Line | None:
    """The line of pam_cap, if there is one."""
    return next((line for line in stack if line.module == MODULE), None)


def passed_over(stack: tuple[Line, ...]) -> Line | None:
    """The line whose yes keeps a login from getting to pam_cap; None: it gets there.

    pam_deny never says yes, and pam_rootok only to root.
    """
    found = find(stack)
    if found is None:
        return None
    goal = stack.index(found)
    for at, line in enumerate(stack[:goal]):
        if line.module in ("pam_deny.so", "pam_rootok.so"):
            continue
        inside = found.stacks[: len(line.stacks)] == line.stacks
        after = line.on_success
        jumps = after.isdecimal() and at + int(after) >= goal
        if inside and (after in _ENDS or jumps):  # a substack that ends ends nothing else
            return line
    return None


class Entry(NamedTuple):
    """The first line of capability.conf(5) that names somebody, which is the one that counts."""

    number: int
    text: str
    capabilities: tuple[str, ...]  # in lower case, as they are written


def entry(text: str, user: str, groups: Iterable[str] = ()) -> Entry | None:
    """What pam_cap would give a user."""
    names = {user, "*", *(f"@{group}" for group in groups)}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].split()
        if line and names.intersection(line[1:]):
            given = (_given(word) for word in line[0].lower().split(","))
            return Entry(number, " ".join(line), tuple(filter(None, given)))
    return None


def _given(word: str) -> str:
    """A capability that is made inheritable; "" for one that is only taken away (`!`), or none."""
    mark = word[: len(word) - len(word.lstrip("!^%"))]
    name = word[len(mark) :]
    return "" if name == "none" or mark == "!" else name


def gives(found: Entry | None, capability: str, number: int) -> bool:
    """Whether an entry gives a capability, by its name, its number, or with all others."""
    wanted = {capability.lower(), str(number), "all"}
    return found is not None and bool(wanted.intersection(found.capabilities))
