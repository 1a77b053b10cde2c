"""The tables of ours while they are being made out of what is read."""

import re
from collections.abc import Iterable

from capkeep.takeover.model import (
    Kind,
    Path,
    Remark,
    SecretText,
    Setting,
    Table,
    Taken,
    Value,
)
from capkeep.takeover.nodes import Node
from capkeep.values import SecretSource

_LONGEST_NAME = 24  # of 32: a number may follow
# What looks like a secret in a command: the value of an option or variable that is called so, who logs
# in, and all of an address behind its host, which may be what lets one send something there. Names are
# looked at for so long only, or a command with a long text in it would take minutes.
_NAMED_SECRET = re.compile(
    r"(?i)((?:pass|pwd|secret|token|key|credential|auth)[\w-]{0,64}(?:[=:]\s*|\s+)"
    r"|(?<!\S)(?:-u|--user)[=\s]\s*)(\"[^\"]*\"|'[^']*'|\S+)"
)
_MYSQL_PASSWORD = re.compile(r"(?<=\s-p)(?=.*)(\"[^\"]*\"|'[^']*'|\S+)")
_SSHPASS = re.compile(r"(\bsshpass\s+-p\s*)(\"[^\"]*\"|'[^']*'|\S+)")
_LOGIN = re.compile(r"(?<=://)[^/\s@]*@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]+")
_PATH = re.compile(r"(https?://[^/\s'\"]+/)[^\s'\"]+")


class Draft:
    """Collects tables, remarks and secrets; `taken` freezes them."""

    def __init__(self, secrets_directory: str) -> None:
        self.directory = secrets_directory
        self._tables: dict[Path, dict[Path, Value]] = {}
        self._remarks: list[Remark] = []
        self._secrets: list[SecretText] = []

    def say(
        self, kind: Kind, node: Node, key: str, problem: str, hint: str = "", *, table: Path = ()
    ) -> None:
        """A remark, once."""
        remark = Remark(kind, node.file, node.line, key, problem, hint, table)
        if remark not in self._remarks:
            self._remarks.append(remark)

    def table(self, *path: str) -> Path:
        """Begins a table, which is written even if nothing is set in it."""
        self._tables.setdefault(path, {})
        return path

    def set(self, table: Path, key: str, value: Value | None, *, below: str = "") -> None:
        """Sets a key; None and empty lists are not written."""
        if value is not None and value != ():
            self.table(*table)
            self._tables[table][(below, key) if below else (key,)] = value

    def get(self, table: Path, key: str, *, below: str = "") -> Value | None:
        """What a key was set to."""
        return self._tables.get(table, {}).get((below, key) if below else (key,))

    def unset(self, table: Path, key: str) -> None:
        """Takes a key back."""
        self._tables.get(table, {}).pop((key,), None)

    def has(self, table: Path) -> bool:
        """Whether anything has been set in a table."""
        return bool(self._tables.get(table))

    def drop(self, table: Path) -> None:
        """Takes a table back."""
        self._tables.pop(table, None)

    def names(self, group: str) -> tuple[str, ...]:
        """The names in a group of tables: the repositories, the jobs."""
        found = [path[1] for path in self._tables if path[0] == group and len(path) > 1]
        return tuple(dict.fromkeys(found))

    def free_name(self, group: str, wanted: str) -> str:
        """A name that can be one, and is nobody's yet."""
        base = slug(wanted) or group.removesuffix("s")
        taken = self.names(group)
        return next(n for n in _numbered(base) if n not in taken)

    def secret(self, name: str, text: str) -> SecretSource:
        """Where a secret that stands in the file is to be put; the same text gets one file."""
        for known in self._secrets:
            if known.text == text:
                return SecretSource(file=known.path)
        used = [s.path for s in self._secrets]
        paths = (f"{self.directory}/{n}" for n in _numbered(slug(name) or "secret"))
        path = next(p for p in paths if p not in used)
        self._secrets.append(SecretText(path=path, text=text))
        return SecretSource(file=path)

    def taken(self) -> Taken:
        """All of it, in the order in which a configuration is read best."""
        order = ("repositories", "jobs", "dumps", "notify")
        paths = sorted(
            self._tables, key=lambda p: order.index(p[0]) if p[0] in order else len(order)
        )
        tables = [Table(p, tuple(Setting(*s) for s in self._tables[p].items())) for p in paths]
        remarks = [
            r._replace(
                file=one_line(r.file),
                key=one_line(r.key),
                problem=self._hidden(r.problem),
                hint=self._hidden(r.hint),
            )
            for r in sorted(self._remarks, key=lambda r: (r.file, r.line))
        ]
        return Taken(tuple(tables), tuple(remarks), tuple(self._secrets))

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            if len(secret.text) >= 4:
                text = text.replace(secret.text, "…")
        return one_line(_LOGIN.sub("…@", text))


def slug(text: str) -> str:
    """A text as a name of ours: a-z, 0-9, - and _."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-_")[:_LONGEST_NAME].rstrip("-_")


def redacted(command: str) -> str:
    """A command of somebody's, to be shown, without what looks like a secret in it."""
    command = _BEARER.sub(r"\1 …", _PATH.sub(r"\1…", _LOGIN.sub("…@", command)))
    command = _NAMED_SECRET.sub(r"\1…", _SSHPASS.sub(r"\1…", command))
    return _MYSQL_PASSWORD.sub("…", command) if re.search("mysql|mariadb", command) else command


def _numbered(base: str) -> Iterable[str]:
    yield base
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1


def one_line(text: str) -> str:
    """Nothing that could end a comment, or a terminal's line."""
    return "".join(c if c.isprintable() else "?" for c in text)
