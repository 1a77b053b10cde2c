"""Read the configuration's files: TOML texts with a line for every key, and their safety."""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from capkeep.config.mistakes import Collector, Place, dotted
from capkeep.config.positions import Path, line_index

MAIN_FILE: Final = "capkeep.toml"
DROP_INS: Final = "conf.d"
MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """One TOML file that could be read."""

    file: str
    data: Mapping[str, object]
    lines: Mapping[Path, int]

    def at(self, *path: str | int) -> Place:
        """Where that key is, or the nearest table around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return Place(self.file, self.lines[path[:end]], dotted(path))
        return Place(self.file, 1, dotted(path))


class Owner:
    """Whose files are to be trusted: root's, and in user mode the user's own."""

    def __init__(self, *, user_mode: bool) -> None:
        self.user_mode = user_mode
        self.uid = os.geteuid() if user_mode else 0
        self.name = "you" if user_mode else "root"
        self.chown = "chown $USER" if user_mode else "chown root:root"
        self.reader = -1  # who may have been given secrets: the only user of rooms

    def unsafe_to_read(self, state: os.stat_result) -> str:
        """Why others could have written that file or directory; "" if they could not."""
        if state.st_uid not in (0, self.uid):
            return f"belongs to uid {state.st_uid}, not to {self.name}"
        if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"can be written by others (mode {stat.S_IMODE(state.st_mode):04o})"
        return ""

    def unsafe_secret(self, state: os.stat_result) -> str:
        """Why a secret in that file is not secret; "" if it is."""
        if state.st_uid not in (self.uid, self.reader):
            return f"belongs to uid {state.st_uid}, not to {self.name}"
        if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return f"is open to others (mode {stat.S_IMODE(state.st_mode):04o})"
        return ""


def open_at_once(path: str, flags: int) -> int:
    """Opens for `open`, without waiting for the other end of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def _who(path: str, place: Place) -> str:
    """A file's name where the mistake's place does not say it already."""
    return "" if path == place.file else f"{path} "


class Reader:
    """Reads files of the configuration; what cannot be read or trusted becomes a mistake."""

    def __init__(self, directory: str, owner: Owner, collector: Collector) -> None:
        self.directory = directory
        self.owner = owner
        self.collector = collector

    def text(self, path: str, place: Place) -> str | None:
        """A file's text (names that are not UTF-8 as surrogates); None after a mistake."""
        try:
            with open(path, "rb", opener=open_at_once) as file:
                state = os.fstat(file.fileno())
                if not stat.S_ISREG(state.st_mode):
                    self.collector.mistake(
                        place, f"{_who(path, place)}is not a regular file", "name a file"
                    )
                    return None
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._unreadable(path, place, error)
            return None
        if unsafe := self.owner.unsafe_to_read(state):
            hint = f"{self.owner.chown} {path}; chmod go-w {path}"
            self.collector.mistake(place, f"{_who(path, place)}{unsafe}", hint)
        if len(data) > MAX_BYTES:
            self.collector.mistake(
                place, f"{_who(path, place)}is larger than {MAX_BYTES >> 20} MiB", "split it"
            )
            return None
        return data.decode("utf-8", "surrogateescape")

    def _unreadable(self, path: str, place: Place, error: OSError) -> None:
        hint = f"make the file, or take the {'key' if place.key else 'file'} away"
        if isinstance(error, PermissionError):
            hint = "ask as root: the configuration is not for everybody"
        self.collector.mistake(place, f"{_who(path, place)}cannot be read: {error.strerror}", hint)

    def source(self, path: str) -> Source | None:
        """A TOML file; None after a mistake."""
        text = self.text(path, Place(path, 0, ""))
        if text is None:
            return None
        text = text.replace("\r\n", "\n")
        bad = next((i for i, c in enumerate(text) if "\udc80" <= c <= "\udcff"), -1)
        if bad >= 0:
            line = text.count("\n", 0, bad) + 1
            self.collector.mistake(Place(path, line, ""), "not UTF-8", "save the file as UTF-8")
            return None
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self._syntax(path, text, str(error))
            return None
        except RecursionError:
            self.collector.mistake(Place(path, 0, ""), "tables or lists are nested too deeply")
            return None
        return Source(file=path, data=data, lines=line_index(text))

    def _syntax(self, path: str, text: str, message: str) -> None:
        found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
        problem = message[: found.start()] if found else message
        line = int(found[1]) if found and found[1] else text.count("\n") + 1
        column = f" (column {found[2]})" if found and found[2] else ""
        self.collector.mistake(
            Place(path, line, ""),
            f"not TOML: {problem[:1].lower()}{problem[1:]}{column}",
            'texts stand in quotes, lists in [ ]: include = ["/etc", "/home"]',
        )

    def sources(self) -> tuple[tuple[Source, ...], bool]:
        """All files in order, and whether every one of them could be read."""
        paths = [f"{self.directory}/{MAIN_FILE}"]
        drop_ins = f"{self.directory}/{DROP_INS}"
        try:
            names = sorted(n for n in os.listdir(drop_ins) if n.endswith(".toml") and n[0] != ".")
        except FileNotFoundError:
            names = []
        except OSError as error:
            self._unreadable(drop_ins, Place(drop_ins, 0, ""), error)
            return (), False
        if names and not os.path.lexists(paths[0]):
            paths = []  # drop-ins alone are a configuration
        elif not os.path.lexists(paths[0]):
            self.collector.mistake(
                Place(paths[0], 0, ""),
                "there is no configuration",
                f"begin with: capkeep config example > {paths[0]}",
            )
            return (), False
        for folder in (self.directory, drop_ins if names else self.directory):
            if unsafe := self.owner.unsafe_to_read(os.stat(folder)):
                hint = f"{self.owner.chown} {folder}; chmod go-w {folder}"
                self.collector.mistake(Place(folder, 0, ""), unsafe, hint)
        found = [self.source(p) for p in (*paths, *(f"{drop_ins}/{n}" for n in names))]
        return tuple(s for s in found if s is not None), None not in found

    def list_lines(self, name: str, place: Place) -> list[tuple[str, Place]]:
        """The entries of a list file and where each is; blank lines and # comments are none."""
        path = os.path.join(self.directory, name)
        text = self.text(path, place)
        if text is None:
            return []
        lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1)]
        return [(line, Place(path, i, place.key)) for i, line in lines if line and line[0] != "#"]
