"""OpenLDAP: slapcat of its configuration and of every database, while slapd runs.

Its databases (LMDB) are read as they were when the reading began. Source: slapcat(8).
"""

import base64
from collections.abc import Iterator
from typing import Final

from capkeep.plan.model import Dump
from capkeep.rooms.dumps.base import Noted, Piece, Tools, broken, file_name, tail
from capkeep.rooms.dumps.staging import size

CONFIG: Final = "config.ldif"
FOLDER: Final = "slapd.d"
SUFFIX: Final = b"olcSuffix:"


class LDAP:
    """Reads slapd's own files, as its user."""

    def server(self, dump: Dump, tools: Tools) -> str:  # noqa: ARG002
        return "OpenLDAP slapcat"

    def pieces(self, dump: Dump, tools: Tools) -> Iterator[Piece]:
        # Else it folds lines, and a long suffix would be read in part.
        where = ("-F", f"{dump.paths[0]}/{FOLDER}", "-o", "ldif-wrap=no")
        yield Piece(CONFIG, "the configuration", (dump.program, *where, "-n", "0"))
        with open(f"{tools.folder}/{CONFIG}", "rb") as file:
            suffixes = [_value(line) for line in file if line.startswith(SUFFIX)]
        for suffix in suffixes:
            argv = (dump.program, *where, "-b", suffix)
            yield Piece(file_name(suffix, ".ldif"), suffix, argv, database=suffix)

    def check(self, dump: Dump, tools: Tools, piece: Piece, path: str) -> Noted:  # noqa: ARG002
        entries = 0
        with open(path, "rb") as file:
            for line in file:
                entries += line.startswith(b"dn:")
        if entries and tail(path, 2) != b"\n\n":
            raise broken(piece.what, "slapcat ended inside an entry")
        if not entries and piece.file == CONFIG:
            raise broken(piece.what, "slapcat wrote no entry")
        return Noted(piece.file, size(path), piece.database, rows=entries)

    def version(self, dump: Dump) -> tuple[str, ...]:
        return (dump.program, "-VVV")


def _value(line: bytes) -> str:
    """An attribute's value; base64 after two colons (ldif(5))."""
    text = line[len(SUFFIX) :].strip()
    return (base64.b64decode(text[1:]) if text.startswith(b":") else text).decode()
