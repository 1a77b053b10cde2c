"""Anything else: a program of the administrator's, whose output is the dump."""

from collections.abc import Iterator
from typing import Final

from capkeep.plan.model import Dump
from capkeep.rooms.dumps.base import Noted, Piece, Tools, broken
from capkeep.rooms.dumps.staging import size

FILE: Final = "dump"


class Command:
    """Succeeds by its exit code, and by having said something."""

    def server(self, dump: Dump, tools: Tools) -> str:  # noqa: ARG002
        return dump.command[0]

    def pieces(self, dump: Dump, tools: Tools) -> Iterator[Piece]:  # noqa: ARG002
        yield Piece(FILE, "its output", dump.command)

    def check(self, dump: Dump, tools: Tools, piece: Piece, path: str) -> Noted:  # noqa: ARG002
        if size(path) == 0:
            raise broken(piece.what, "the command wrote nothing")
        return Noted(piece.file, size(path))

    def version(self, dump: Dump) -> tuple[str, ...]:  # noqa: ARG002
        return ("/usr/bin/true",)  # nobody knows what another argument would do
