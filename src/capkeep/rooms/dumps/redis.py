"""Redis and Valkey: the snapshot that a server sends to whoever replicates it.

Sources: redis-cli(1), --rdb; the RDB file format: a magic, and 0xFF with a checksum at the end.
"""

import os
from collections.abc import Iterator
from typing import Final

from capkeep.plan.model import Dump
from capkeep.rooms.dumps.base import Noted, Piece, Tools, broken, tail
from capkeep.rooms.dumps.staging import size

FILE: Final = "dump.rdb"
MAGIC: Final = (b"REDIS", b"VALKEY")
END: Final = 0xFF
CHECKSUM_BYTES: Final = 8
CHECKERS: Final = ("redis-check-rdb", "valkey-check-rdb")


class Redis:
    """Over its unix socket."""

    def server(self, dump: Dump, tools: Tools) -> str:
        info = _info(dump, tools, "server")
        name = "Valkey" if "valkey_version" in info else "Redis"
        return f"{name} {info.get('valkey_version') or info.get('redis_version', '')}"

    def pieces(self, dump: Dump, tools: Tools) -> Iterator[Piece]:
        # On its standard output redis-cli would leave the mark with which the server ends (7.0).
        argv = (dump.program, "-s", dump.socket, "--rdb", f"{tools.folder}/{FILE}")
        yield Piece(FILE, "all keys", argv, writes_itself=True)

    def check(self, dump: Dump, tools: Tools, piece: Piece, path: str) -> Noted:
        with open(path, "rb") as file:
            if not file.read(9).startswith(MAGIC):
                raise broken(piece.what, "that is no RDB file")
        end = tail(path, CHECKSUM_BYTES + 1)
        if len(end) <= CHECKSUM_BYTES or end[0] != END:
            raise broken(piece.what, "the RDB file has no end")
        for name in CHECKERS:
            checker = f"{os.path.dirname(dump.program)}/{name}"
            if os.access(checker, os.X_OK):
                tools.ask(piece.what, (checker, path))  # reads every key, and the checksum
                break
        keys = _info(dump, tools, "keyspace").values()
        rows = sum(int(text.split(",")[0].removeprefix("keys=")) for text in keys)
        return Noted(piece.file, size(path), rows=rows)

    def version(self, dump: Dump) -> tuple[str, ...]:
        return (dump.program, "--version")


def _info(dump: Dump, tools: Tools, section: str) -> dict[str, str]:
    """What INFO says. Raises StepError, also for an error that the client takes for an answer."""
    said = tools.ask("the server", (dump.program, "-e", "-s", dump.socket, "INFO", section))
    lines = said.decode(errors="replace").split("\n")
    return dict(line.rstrip("\r").split(":", 1) for line in lines if ":" in line)
